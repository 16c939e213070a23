"""Usage events: what each request is billed for, written exactly once.

``Meter`` counts what one request delivered; ``Ledger`` writes its settlement
(``app.settlements``) and commits before the last byte of the answer leaves. Settlements that
come while one commits share the next commit.

A settlement that PostgreSQL cannot take is synced to the journal, so that the answer
may end, and written as soon as it can; if this process does not live to see it, the
next one replays it (``app.recovery``).
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from uuid import UUID

import asyncpg
from pydantic_core import to_json

from app.auth import Key
from app.db import Database
from app.errors import AppError, TollgateError
from app.journal import Entry, Journal
from app.recovery import replay
from app.settlements import Kind, Price, Settlement, filled, settlement_lane, unbilled, write
from app.telemetry import LATE_SETTLEMENTS, TOKENS, USAGE_ROWS, get_logger, labelled

log = get_logger(__name__)

Pause = Callable[[float], Awaitable[None]]

_RETRY_S = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class _Late:
    """A settlement that waits; ``due_s`` is the event loop's time before which it must not run."""

    settlement: Settlement
    entries: Sequence[Entry]
    due_s: float = 0.0


class Ledger:
    """Takes settlements and sees to it that each is written once, now or later.

    Create it inside the event loop that uses it, ``start`` it, and ``aclose`` it when
    no request runs any more.

    Args:
        database: Where the rows go.
        journal: This process' own.
        timeout_s: Longest wait for PostgreSQL before a settlement is left for later.
        pause: Waits so many seconds between two attempts to catch up.
    """

    def __init__(
        self, database: Database, journal: Journal, *, timeout_s: float = 5.0, pause: Pause = asyncio.sleep
    ) -> None:
        self.journal = journal
        self._database = database
        self._lane = settlement_lane(database, timeout_s)
        self._pause = pause
        self._timeout_s = timeout_s
        self._late: dict[UUID, _Late] = {}
        self._has_replayed = False
        self._catching_up: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to replay what processes that have ended left behind."""
        self._catch_up()

    @property
    def num_late(self) -> int:
        """Settlements that wait for PostgreSQL."""
        return len(self._late)

    async def settle(self, settlement: Settlement, stream: Entry | None = None) -> None:
        """Writes it, committed when this returns, or keeps it for later on the disk.

        Args:
            settlement: Of a request that has ended.
            stream: Its entry in the journal, if it has one; closed when the row is written.

        Raises:
            OSError: It is neither written nor kept.
        """
        try:
            await write(self._lane, settlement)
        except (AppError, asyncpg.PostgresError) as error:
            log.warning("settlement.late", error=type(error).__name__)
            # What frees a reservation only is worth no journal: the worker frees it as well.
            kept = self.journal.keep(settlement.request_id, settlement.record) if settlement.bills else None
            self._late[settlement.request_id] = _Late(settlement, [entry for entry in (stream, kept) if entry])
            LATE_SETTLEMENTS.set(len(self._late))
            self._catch_up()
        else:
            if stream is not None:
                stream.close()

    async def release(self, request_id: UUID, key: Key) -> None:
        """Frees a reservation that may or may not be there; later, where the database is away."""
        await self.settle(unbilled(request_id, key))

    def release_later(self, request_id: UUID, key: Key) -> None:
        """Frees a reservation that may be under way still: once the database must have given up or made it."""
        due_s = asyncio.get_running_loop().time() + 2 * self._timeout_s
        self._late.setdefault(request_id, _Late(unbilled(request_id, key), (), due_s))
        self._catch_up()

    async def caught_up(self) -> None:
        """Returns once nothing is late and everything is replayed."""
        while self._catching_up is not None:
            await asyncio.wait({self._catching_up})

    async def aclose(self) -> None:
        """Tries once more what is late, and leaves it to the next process otherwise."""
        if self._catching_up is not None:
            self._catching_up.cancel()
            await asyncio.wait({self._catching_up})
        await self._write_late()
        await self._lane.aclose()
        self.journal.release()

    def _catch_up(self) -> None:
        if self._catching_up is None:
            self._catching_up = asyncio.create_task(self._repeat())

    async def _repeat(self) -> None:
        try:
            while True:
                await self._write_late()
                await self._replay()
                if self._has_replayed and not self._late:
                    return
                await self._pause(_RETRY_S)
        finally:
            self._catching_up = None

    async def _write_late(self) -> None:
        now_s = asyncio.get_running_loop().time()
        await asyncio.gather(*(self._write_one(late) for late in self._late.values() if late.due_s <= now_s))
        LATE_SETTLEMENTS.set(len(self._late))

    async def _write_one(self, late: "_Late") -> None:
        with suppress(AppError, asyncpg.PostgresError):
            await write(self._lane, late.settlement)
            # Meanwhile another may have come under the same id.
            if self._late.get(late.settlement.request_id) is late:
                del self._late[late.settlement.request_id]
            for entry in late.entries:
                entry.close()

    async def _replay(self) -> None:
        if not self._has_replayed:
            try:
                await replay(self._database, self._lane, self.journal.folder)
            except (TollgateError, asyncpg.PostgresError, OSError) as error:
                log.warning("journal.replay_failed", error=type(error).__name__)
            else:
                self._has_replayed = True


class Meter:
    """What one admitted request has delivered so far, and its single settlement.

    Args:
        ledger: Takes the settlement.
        request_id: Becomes the id of the usage row.
        key: Who pays.
        kind: Kind of work.
        model: Name of the model.
        model_digest: Its exact version.
        input_tokens: Tokens of the prompt or inputs; a prompt counts once however
            many answers it gets.
        price: In force for this kind of work.
        price_version: Of the price list that it is from.
        started_at: When the request came in, aware.
        parameters: What, with the model's version and the same input, gives the same
            answer again; as JSON, without the customer's texts.
    """

    def __init__(
        self,
        ledger: Ledger,
        request_id: UUID,
        key: Key,
        *,
        kind: Kind,
        model: str,
        model_digest: str,
        input_tokens: int,
        price: Price,
        price_version: int,
        started_at: datetime,
        parameters: Mapping[str, object] | None = None,
    ) -> None:
        self._ledger = ledger
        self._row = Settlement(
            request_id=request_id,
            org_id=key.org_id,
            key_id=key.id,
            started_at=started_at,
            model=model,
            model_digest=model_digest,
            kind=kind,
            input_tokens=input_tokens,
            price_version=price_version,
            parameters=None if parameters is None else to_json(parameters).decode(),
        )
        self._price = price
        self._entry: Entry | None = None
        self._is_settled = False
        self.request_id = request_id
        self.started_at = started_at
        self.model = model
        self.input_tokens = input_tokens
        self.cached_tokens = 0
        self.output_tokens = 0
        self.engine_ms = 0.0

    def begin_stream(self) -> None:
        """From here on what is delivered is billed even if this process is killed."""
        self._entry = self._ledger.journal.open(
            self._row.request_id, {**self._row.record, "price": asdict(self._price)}
        )

    def deliver(self, num_tokens: int) -> None:
        """Counts tokens that have just been handed to the client's connection."""
        self.output_tokens += num_tokens
        if self._entry is not None and num_tokens:
            self._entry.deliver(self.output_tokens, self.cached_tokens, self.engine_ms)

    def report(self, cached_tokens: int, engine_ms: float) -> None:
        """Takes what the engine has said so far of the whole request; a later report replaces it.

        Args:
            cached_tokens: Of the input, found in a cache.
            engine_ms: Accelerator time.
        """
        self.cached_tokens = min(self.input_tokens, cached_tokens)
        self.engine_ms = engine_ms

    async def settle(self, finish_reason: str) -> None:
        """Writes the row and frees the reservation; after it succeeded, further calls do nothing.

        When this returns the row is committed, or kept on the disk while the database is away.

        Args:
            finish_reason: ``stop`` or ``length`` of a whole answer, ``aborted`` where
                the client left, ``error`` where the answer broke off.

        Raises:
            OSError: Neither was possible; may be called again.
        """
        if self._is_settled:
            return
        row = filled(
            self._row, self._price, self.output_tokens, self.cached_tokens, self.engine_ms, finish_reason=finish_reason
        )
        await _to_its_end(self._ledger.settle(row, self._entry))
        self._is_settled = True
        labelled(USAGE_ROWS, row.kind, row.state).inc()
        labelled(TOKENS, self.model, "input").inc(self.input_tokens)
        labelled(TOKENS, self.model, "output").inc(self.output_tokens)

    async def release(self) -> None:
        """Frees the reservation of a request that costs nothing; does nothing after a settlement."""
        if not self._is_settled:
            self._is_settled = True
            await self._ledger.settle(replace(self._row, bills=False))


async def _to_its_end(settling: Coroutine[None, None, None]) -> None:
    """Awaits it; a cancellation of the request waits too, since what is billed is sent as well."""
    task = asyncio.ensure_future(settling)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        if task.cancelled():
            raise
        await task
