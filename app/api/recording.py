"""An answer is written down while it is sent, for whoever asks for it again."""

import asyncio
from contextlib import suppress
from types import TracebackType
from typing import Self
from uuid import UUID

from pydantic_core import to_json
from sqlalchemy.exc import SQLAlchemyError
from starlette.datastructures import Headers
from starlette.types import Message, Send

from app import idempotency
from app.api.answers import BUDGET_HEADER
from app.api.middleware import RequestRecord
from app.db import Database
from app.errors import AppError, Conflict
from app.idempotency import Part
from app.telemetry import get_logger

log = get_logger(__name__)

_KEPT_HEADERS = ("content-type", "cache-control", "x-accel-buffering", BUDGET_HEADER)
_FIRST_ERROR = 400
_EXTEND_S = idempotency.LEASE_S / 3
# Between two writes of a stream; whoever reads it looks as often.
_PAUSE_S = 0.1
# An answer does not wait longer than this to be kept.
_PATIENCE_S = 5.0
_LOST = (AppError, SQLAlchemyError, TimeoutError)


class Recording:
    """Passes an answer on to its client and writes it down; the routes send to ``send``.

    Use as ``async with``. An answer is kept once it is whole, before its last byte is
    sent. A refusal is forgotten, and so is what was cut off before it began; what was
    cut off later is let go, for whoever runs it again. A database that is away delays
    the end of an answer by a few seconds and breaks nothing. Of an answer with a secret
    in it, only that there was one is kept.

    Args:
        database: Where to.
        run_id: Of the claim.
        send: To the client.
        record: Of the request; headers of the answer are taken from it as well.
    """

    def __init__(self, database: Database, run_id: UUID, send: Send, record: RequestRecord) -> None:
        self._database = database
        self._run_id = run_id
        self._forward = send
        self._record = record
        self._status: int | None = None
        self._headers: dict[str, str] = {}
        self._new: list[bytes] = []
        # What an attempt took: it may have succeeded unnoticed, so a part never changes.
        self._sealed: list[Part] = []
        self._position = 0
        self._has_begun = False
        self._is_refused = False
        self._is_decided = False
        self._has_news = asyncio.Event()
        self._lock = asyncio.Lock()
        self._writing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._writing = asyncio.create_task(self._write_on())
        return self

    async def __aexit__(
        self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None
    ) -> None:
        assert self._writing is not None
        self._writing.cancel()
        await asyncio.wait({self._writing})
        if not self._is_decided:
            # What the request itself brought to an end is billed as it is, and nothing more of it is given.
            await self._decide(is_whole=self._has_begun and isinstance(error, AppError))

    async def send(self, message: Message) -> None:
        """Takes one message of the answer; the last one is passed on when the answer is kept."""
        if message["type"] == "http.response.start":
            self._begin(message)
        elif message["type"] == "http.response.body":
            self._add(message.get("body", b""))
            if not message.get("more_body", False):
                await self._decide(is_whole=True)
        await self._forward(message)

    def _begin(self, message: Message) -> None:
        self._has_begun = True
        self._is_refused = message["status"] >= _FIRST_ERROR
        if self._record.is_secret:
            self._status = Conflict.default_status
            self._headers = {"content-type": "application/json", **Conflict.default_headers}
            self._new = [to_json(_shown_once(self._record).body())]
            return
        self._status = message["status"]
        headers = {**Headers(raw=message["headers"]), **self._record.headers}
        self._headers = {name: headers[name] for name in _KEPT_HEADERS if name in headers}

    def _add(self, body: bytes) -> None:
        if body and not self._record.is_secret:
            self._new.append(body)
            self._has_news.set()

    async def _decide(self, *, is_whole: bool) -> None:
        """What becomes of the answer, at its end."""
        self._is_decided = True
        try:
            async with asyncio.timeout(_PATIENCE_S), self._lock:
                if is_whole and not self._is_refused:
                    await self._write(is_complete=True)
                elif self._has_begun and not self._is_refused:
                    async with self._database.begin() as connection:
                        await idempotency.let_go(connection, self._run_id)
                else:
                    async with self._database.begin() as connection:
                        await idempotency.forget(connection, self._run_id)
        except _LOST as error:
            # The lease ends by itself, and the request is then run again under its id.
            log.warning("idempotency.not_kept", error=type(error).__name__)

    async def _write_on(self) -> None:
        is_mine = True
        while is_mine:
            with suppress(TimeoutError):
                # wait_for of Python 3.11 may lose the cancellation that ends this, and its caller waits for it.
                async with asyncio.timeout(_EXTEND_S):
                    await self._has_news.wait()
            self._has_news.clear()
            try:
                async with self._lock:
                    if self._is_decided:
                        return
                    is_mine = await self._write(is_complete=False)
            except _LOST as error:
                log.warning("idempotency.late", error=type(error).__name__)
                self._has_news.set()
            await asyncio.sleep(_PAUSE_S)

    async def _write(self, *, is_complete: bool) -> bool:
        if self._new and not self._is_refused:
            self._sealed.append(Part(self._position, b"".join(self._new)))
            self._position += 1
            self._new.clear()
        sealed = tuple(self._sealed)
        async with self._database.begin() as connection:
            is_mine = await idempotency.write(
                connection,
                self._run_id,
                sealed,
                status=None if self._is_refused else self._status,
                headers=self._headers,
                is_complete=is_complete,
            )
        del self._sealed[: len(sealed)]
        return is_mine


def _shown_once(record: RequestRecord) -> Conflict:
    return Conflict(
        f"This request has been carried out, as {record.id}. Its answer holds a key, which is shown once and not kept.",
        code="shown_once",
    )
