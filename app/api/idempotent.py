"""Sent again with the same ``Idempotency-Key``: the same answer, from any process, billed once.

A layer around the routes, which know nothing of it. The first request runs; its answer is
written down as it is sent (``app.idempotency``), and it runs to its end even if its client
leaves, since that client may come back for it. Whoever sends it again reads what was
written, and what is still being written. A refusal is not kept, as nothing was billed:
the key is free again. An answer that was cut off is run again under the same id.
"""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import idempotency
from app.api.call import Call, require_call
from app.api.middleware import record_of
from app.api.recording import Recording
from app.auth import require_key
from app.errors import AppError, BadRequest, DeadlineExceeded, Overloaded
from app.idempotency import Asked, Claim, Known, Progress
from app.telemetry import IDEMPOTENT_REQUESTS, get_logger

log = get_logger(__name__)

Pause = Callable[[float], Awaitable[None]]
HEADER = "Idempotency-Key"
REPLAYED_HEADER = "idempotent-replayed"
MAX_KEY_LENGTH = 255
_POLL_S = 0.1


class IdempotencyLayer:
    """Runs a request with an ``Idempotency-Key`` once; others pass.

    Args:
        app: The layer below.
        pause: Waits so many seconds before an answer in the making is looked at again.
    """

    def __init__(self, app: ASGIApp, pause: Pause = asyncio.sleep) -> None:
        self._app = app
        self._pause = pause

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request; other ASGI events pass."""
        key = _key_of(scope)
        call = None if key is None else await _call_of(scope, receive)
        if key is None or call is None:
            await self._app(scope, receive, send)
            return
        _check_key(key)
        body = await call.request.body()
        record = record_of(scope)
        asked = Asked(call.key.org_id, key, _fingerprint(call, body), record.id, record.started_at)
        found = await self._find(call, asked)
        if isinstance(found, Known):
            await call.admit()
        while isinstance(found, Known):
            if await self._repeat(call, found, receive, send):
                return
            found = await self._find(call, asked)
        await self._run(call, found, body, send)

    async def _find(self, call: Call, asked: Asked) -> Claim | Known:
        async with call.services.database.begin() as connection:
            return await idempotency.claim(connection, asked)

    async def _run(self, call: Call, claim: Claim, body: bytes, send: Send) -> None:
        IDEMPOTENT_REQUESTS.labels("run_again" if claim.is_repeated else "run").inc()
        record = record_of(call.request.scope)
        record.id, record.started_at = claim.request_id, claim.started_at
        if claim.is_repeated:
            # The reservation of whoever was cut off; this run makes its own.
            await call.services.ledger.release(claim.request_id, call.key)
        async with Recording(call.services.database, claim.run_id, send, record) as recording:
            await self._app(call.request.scope, _only_body(body), recording.send)

    async def _repeat(self, call: Call, known: Known, receive: Receive, send: Send) -> bool:
        """Sends an answer that somebody else makes or has made; False: it is gone, and nothing was sent."""
        is_open, position, deadline_s = False, 0, time.monotonic() + call.timeout_s
        async with _watched(receive) as is_gone:
            while not is_gone():
                async with call.services.database.begin() as connection:
                    progress = await idempotency.read(connection, known.run_id, position)
                if progress is None or progress.is_lost:
                    if is_open:
                        raise Overloaded("The answer broke off; please retry with the same Idempotency-Key.")
                    return False
                if progress.status is not None and not is_open:
                    is_open = True
                    await self._open(call, known, progress, send)
                for part in progress.bodies:
                    await _send(send, part, more=True)
                position += len(progress.bodies)
                if progress.is_complete:
                    await _send(send, b"", more=False)
                    return True
                if time.monotonic() > deadline_s:
                    raise DeadlineExceeded("The request's deadline passed.")
                if not progress.bodies:
                    await self._pause(_POLL_S)
        return True

    @staticmethod
    async def _open(call: Call, known: Known, progress: Progress, send: Send) -> None:
        IDEMPOTENT_REQUESTS.labels("replayed" if progress.is_complete else "attached").inc()
        log.info("request.replayed", answer_of=str(known.request_id))
        record = record_of(call.request.scope)
        record.id, record.route = known.request_id, "replayed"
        headers = {**progress.headers, REPLAYED_HEADER: "true"}
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": progress.status, "headers": raw})


def _key_of(scope: Scope) -> str | None:
    if scope["type"] != "http" or scope["method"] != "POST" or not scope["path"].startswith("/v1/"):
        return None
    return Headers(scope=scope).get(HEADER)


def _check_key(key: str) -> None:
    if not (key.isascii() and key.isprintable() and 0 < len(key) <= MAX_KEY_LENGTH):
        raise BadRequest(f"An Idempotency-Key has 1 to {MAX_KEY_LENGTH} printable ASCII characters.", param=HEADER)


async def _call_of(scope: Scope, receive: Receive) -> Call | None:
    """Who calls; None: the route refuses it in its own words, or needs no key."""
    request = Request(scope, receive)
    try:
        return await require_call(request, await require_key(request))
    except AppError:
        return None


def _fingerprint(call: Call, body: bytes) -> bytes:
    """Of what was sent, and with which API key: another one may not be allowed the same."""
    where = f"{call.request.url.path}?{call.request.url.query}".encode()
    return hashlib.sha256(b"\0".join((call.key.id.bytes, where, body))).digest()


def _only_body(body: bytes) -> Receive:
    """The request as it was read; that its client leaves is not told."""
    messages: asyncio.Queue[Message] = asyncio.Queue()
    messages.put_nowait({"type": "http.request", "body": body, "more_body": False})

    async def receive() -> Message:
        return await messages.get()

    return receive


@asynccontextmanager
async def _watched(receive: Receive) -> AsyncIterator[Callable[[], bool]]:
    """Says whether the client has left."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    watching = asyncio.create_task(watch())
    try:
        yield watching.done
    finally:
        watching.cancel()
        await asyncio.wait({watching})


async def _send(send: Send, body: bytes, *, more: bool) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})
