"""Usage events: what each request is billed for, written exactly once.

``Meter`` counts what one request delivered; ``Ledger`` writes its row, moves its cost
from held to used in the budgets, deletes its reservation, all in one transaction, and
commits before the last byte of the answer leaves. The request id is the row's key and
writing it again changes nothing, so a settlement may be tried twice. Settlements that
come while one commits share the next commit.

A settlement that PostgreSQL cannot take is synced to the journal, so that the answer
may end, and written as soon as it can; if this process does not live to see it, the
next one replays it. Rows lie in month partitions that exist before anything is written
to them.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, date, datetime
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, Self
from uuid import UUID

import asyncpg
from pydantic_core import to_json
from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.auth import Key
from app.db import Database
from app.errors import AppError, DataError, TollgateError
from app.journal import Entry, Journal, Orphan, Remnant, orphans
from app.lane import Lane
from app.telemetry import LATE_SETTLEMENTS, TOKENS, USAGE_ROWS, get_logger, labelled

log = get_logger(__name__)

Kind = Literal["generation", "classification", "embedding"]
Pause = Callable[[float], Awaitable[None]]
MONTHS_AHEAD = 3
BROKEN_OFF = "error"
"""Finish reason of an answer that we did not bring to its end."""

_RETRY_S = 1.0
_RESERVED = "SELECT request_id, org_id, key_id FROM reservations"
_SOME = "ORDER BY org_id, key_id LIMIT 500"

# Locks first, always the organisation before the key: whatever follows waits for nobody.
# A subquery that counts a locked row is what makes a step come after the lock. Of two
# months that meet here, the row belongs to that of its transaction, as billed_at does.
_SETTLE = """
WITH org AS MATERIALIZED (
    SELECT org_id, credit FROM org_budgets WHERE org_id = $2::uuid FOR UPDATE
), key AS MATERIALIZED (
    SELECT b.key_id FROM rate_buckets b, (SELECT count(*) AS locks FROM org) AS first
    WHERE first.locks >= 0 AND b.key_id = (SELECT COALESCE(bucket_id, id) FROM api_keys WHERE id = $3::uuid)
    FOR UPDATE OF b
), released AS (
    DELETE FROM reservations r USING (SELECT count(*) AS locks FROM key) AS first
    WHERE r.request_id = $1::uuid AND first.locks >= 0 RETURNING r.cost, r.tokens
), billed AS (
    INSERT INTO usage_events (id, org_id, key_id, started_at, model, model_digest, kind, input_tokens, cached_tokens,
        output_tokens, finish_reason, engine_ms, price_version, state, parameters, is_prepaid)
    SELECT $1::uuid, $2::uuid, $3::uuid, $4::timestamptz, $5::text, $6::text, $7::text, $8::bigint, $9::bigint,
        $10::bigint, $11::text, $12::float8, $13::smallint, $14::text, $15::jsonb,
        (SELECT credit IS NOT NULL FROM org) IS TRUE
    FROM (SELECT count(*) AS locks FROM key) AS first
    WHERE first.locks >= 0 AND $17::boolean ON CONFLICT DO NOTHING RETURNING 1
), change AS MATERIALIZED (
    SELECT (SELECT count(*) FROM key) AS locks, (SELECT count(*) FROM billed) AS num_billed,
        COALESCE((SELECT cost FROM released), 0) AS cost_held,
        COALESCE((SELECT tokens FROM released), 0) AS tokens_held, (SELECT count(*) FROM released)::int AS num_released,
        (date_trunc('month', now() AT TIME ZONE 'UTC'))::date AS month
), org_changed AS (
    UPDATE org_budgets b SET
        month = GREATEST(b.month, c.month),
        cost_used = CASE WHEN b.month >= c.month THEN b.cost_used ELSE 0 END
            + CASE WHEN b.month <= c.month THEN c.num_billed * $16::bigint ELSE 0 END,
        tokens_used = CASE WHEN b.month >= c.month THEN b.tokens_used ELSE 0 END
            + CASE WHEN b.month <= c.month THEN c.num_billed * ($8::bigint + $10::bigint) ELSE 0 END,
        credit = b.credit - c.num_billed * $16::bigint,
        cost_held = b.cost_held - c.cost_held, tokens_held = b.tokens_held - c.tokens_held,
        num_running = b.num_running - c.num_released
    FROM change c WHERE b.org_id = $2::uuid AND c.locks >= 0 AND c.num_billed + c.num_released > 0
), key_changed AS (
    UPDATE rate_buckets b SET
        month = GREATEST(b.month, c.month),
        cost_used = CASE WHEN b.month >= c.month THEN b.cost_used ELSE 0 END
            + CASE WHEN b.month <= c.month THEN c.num_billed * $16::bigint ELSE 0 END,
        cost_held = b.cost_held - c.cost_held
    FROM change c WHERE b.key_id = (SELECT key_id FROM key) AND c.locks >= 0 AND c.num_billed + c.num_released > 0
)
SELECT num_billed FROM change
"""


@dataclass(frozen=True, slots=True)
class Price:
    """Micro-USD per million tokens of one kind of work.

    ``cached`` applies to the part of the input that was served from a cache, instead
    of ``input``.
    """

    input: int
    cached: int
    output: int

    def cost(self, input_tokens: int, cached_tokens: int, output_tokens: int) -> int:
        """What so many tokens cost, exactly, in 10^-12 USD; the cached ones are part of the input."""
        return (input_tokens - cached_tokens) * self.input + cached_tokens * self.cached + output_tokens * self.output


@dataclass(frozen=True, slots=True)
class Settlement:
    """The end of a request: its usage row, or none, and its reservation no more.

    Attributes:
        cost: Of the row, 10^-12 USD.
        bills: Whether there is a row; without one everything but the ids counts for nothing.
    """

    request_id: UUID
    org_id: UUID
    key_id: UUID
    started_at: datetime
    model: str = ""
    model_digest: str = ""
    kind: str = ""
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    finish_reason: str = ""
    engine_ms: float = 0.0
    price_version: int = 0
    state: str = "final"
    parameters: str | None = None
    cost: int = 0
    bills: bool = True

    @property
    def arguments(self) -> tuple[Any, ...]:
        """For the statement, in the order of the fields."""
        return _FIELDS(self)

    @property
    def record(self) -> dict[str, Any]:
        """As JSON."""
        return dict(zip(self.__slots__, self.arguments, strict=True))

    @classmethod
    def parse(cls, record: Mapping[str, Any]) -> Self:
        """The settlement behind a ``record``."""
        ids = {name: UUID(record[name]) for name in ("request_id", "org_id", "key_id")}
        return cls(**{**record, **ids, "started_at": datetime.fromisoformat(record["started_at"])})


_FIELDS: Callable[[Settlement], tuple[Any, ...]] = attrgetter(*Settlement.__slots__)


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
            await _write(self._lane, settlement)
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
        await self.settle(_unbilled(request_id, key))

    def release_later(self, request_id: UUID, key: Key) -> None:
        """Frees a reservation that may be under way still: once the database must have given up or made it."""
        due_s = asyncio.get_running_loop().time() + 2 * self._timeout_s
        self._late.setdefault(request_id, _Late(_unbilled(request_id, key), (), due_s))
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
            await _write(self._lane, late.settlement)
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
        row = _filled(
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


def _unbilled(request_id: UUID, key: Key) -> Settlement:
    return Settlement(request_id, key.org_id, key.id, datetime.now(UTC), bills=False)


def settlement_lane(database: Database, timeout_s: float = 5.0) -> Lane:
    """A lane for settlements; the caller closes it."""
    return Lane(database.url, _SETTLE, timeout_s=timeout_s, server_settings={"application_name": "tollgate ledger"})


async def replay(database: Database, lane: Lane, folder: Path) -> int:
    """Bills what journals of processes that have ended hold, and frees what those had reserved.

    Args:
        database: To find their reservations.
        lane: For settlements.
        folder: Of the journals.

    Returns:
        Number of usage rows that the journals called for; those that were there already stay as they are.

    Raises:
        DatabaseUnavailable: The journals that are left can be replayed later.
        DataError: One holds what no request has; the others are replayed.
        OSError: A journal cannot be read.
    """
    num_rows, failure = 0, None
    for orphan in orphans(folder):
        try:
            rows = [row for remnant in orphan.remnants().values() if (row := _row_of(remnant)) is not None]
            await asyncio.gather(*(_write(lane, row) for row in rows))
            await _release_of(database, lane, orphan)
        except (TollgateError, asyncpg.PostgresError) as error:
            # One that cannot be replayed keeps nobody from the others.
            orphan.leave()
            failure = failure or error
            continue
        except BaseException:
            orphan.leave()
            raise
        orphan.delete()
        num_rows += len(rows)
        for row in rows:
            labelled(USAGE_ROWS, row.kind, row.state).inc()
        log.info("journal.replayed", holder=str(orphan.holder), num_rows=len(rows))
    if failure is not None:
        raise failure
    return num_rows


async def release_expired(database: Database) -> int:
    """Frees reservations whose time is over; returns how many.

    Their requests have ended without a word: the process was killed, and no other has
    replayed its journal since.
    """
    num_freed, lane = 0, settlement_lane(database)
    try:
        while True:
            async with database.begin() as connection:
                found = (await connection.execute(text(f"{_RESERVED} WHERE expires_at <= now() {_SOME}"))).all()
            if not found:
                return num_freed
            await _release(lane, found)
            num_freed += len(found)
    finally:
        await lane.aclose()


async def ensure_partitions(connection: AsyncConnection, today: date, months_ahead: int = MONTHS_AHEAD) -> list[str]:
    """Makes the partitions of ``usage_events`` for this month and those ahead.

    May run at any time and in several processes at once; the lock lasts as long as
    the transaction.

    Returns:
        The names of the partitions, existing ones included.
    """
    # A partition that is missing needs the whole table for a moment: not behind somebody's
    # long read, while all settlements wait behind this. There are months until the next try.
    await connection.execute(text("SET LOCAL lock_timeout = '2s'"))
    await connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('usage_events_partitions'))"))
    names = []
    for start, end in _months(today, months_ahead):
        name = f"usage_events_y{start.year:04d}m{start.month:02d}"
        # Names and bounds are made of integers; DDL takes no bound parameters.
        await connection.execute(
            text(
                f"CREATE TABLE IF NOT EXISTS {name} PARTITION OF usage_events"
                f" FOR VALUES FROM ('{_midnight(start)}') TO ('{_midnight(end)}')"
            )
        )
        names.append(name)
    return names


async def _write(lane: Lane, settlement: Settlement) -> None:
    await lane.ask((settlement.org_id.bytes, settlement.key_id.bytes), settlement.arguments)


async def _release(lane: Lane, reserved: Sequence[Row[Any]]) -> None:
    now = datetime.now(UTC)
    freed = (Settlement(row.request_id, row.org_id, row.key_id, now, bills=False) for row in reserved)
    await asyncio.gather(*(_write(lane, settlement) for settlement in freed))


async def _release_of(database: Database, lane: Lane, orphan: Orphan) -> None:
    while True:
        async with database.begin() as connection:
            statement = text(f"{_RESERVED} WHERE holder = :holder {_SOME}")
            found = (await connection.execute(statement, {"holder": orphan.holder})).all()
        if not found:
            return
        await _release(lane, found)


def _row_of(remnant: Remnant) -> Settlement | None:
    """What a journal calls for; None: nothing was delivered, which costs nothing.

    Raises:
        DataError: It was written by a version that this one does not understand.
    """
    try:
        price = Price(**remnant.opening.get("price", {"input": 0, "cached": 0, "output": 0}))
        row = Settlement.parse({name: value for name, value in remnant.opening.items() if name != "price"})
    except (TypeError, ValueError, KeyError):
        raise DataError("a line of the journal is of another version") from None
    if remnant.is_whole:
        return replace(row, state="recovered")
    if not remnant.output_tokens:
        return None
    row = _filled(row, price, remnant.output_tokens, remnant.cached_tokens, remnant.engine_ms, finish_reason=BROKEN_OFF)
    return replace(row, state="recovered")


def _filled(
    row: Settlement, price: Price, output_tokens: int, cached_tokens: int, engine_ms: float, *, finish_reason: str
) -> Settlement:
    return replace(
        row,
        finish_reason=finish_reason,
        output_tokens=output_tokens,
        cached_tokens=cached_tokens,
        engine_ms=engine_ms,
        cost=price.cost(row.input_tokens, cached_tokens, output_tokens),
    )


def _months(today: date, months_ahead: int) -> Iterator[tuple[date, date]]:
    first = today.year * 12 + today.month - 1
    for month in range(first, first + months_ahead + 1):
        yield date(month // 12, month % 12 + 1, 1), date((month + 1) // 12, (month + 1) % 12 + 1, 1)


def _midnight(day: date) -> str:
    return datetime(day.year, day.month, day.day, tzinfo=UTC).isoformat()
