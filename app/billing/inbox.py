"""The inbox: what Stripe tells us, kept byte for byte before anything is made of it, then worked off.

An event says that something changed, not what to believe: its objects are read from Stripe
again, and what is read is written down (``app.billing.effects``). So events may come twice,
late, in any order or not at all, and a hundred about one subscription cost one reading:
what was read after an event had come in is not read again because of it.

A worker claims a batch by moving its ``due_at`` into the future and commits that; whoever
dies with a batch leaves it to be claimed again when that time has come. An event that
fails is tried again, later each time, and given up in the end for a person to look at;
that Stripe is away is not held against it. Times are the database's: they order the work
of several workers, and are no business of Stripe's clocks.
"""

import asyncio
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.billing import effects
from app.billing.effects import Ref, Work
from app.billing.gateway import Gateway
from app.db import Database
from app.errors import BadRequest, StripeUnavailable, TollgateError
from app.telemetry import STRIPE_EVENTS, STRIPE_INBOX, STRIPE_INBOX_SECONDS, get_logger

log = get_logger(__name__)

BATCH = 500
"""Events claimed at once: the more, the more of them are about the same object."""
MAX_ATTEMPTS = 12
"""Over about four hours."""
LEASE_S = 300
MAX_BACK_OFF_S = 3600
READERS = 8
"""Objects read from Stripe at a time."""
MAX_UNANSWERED = 3
"""Calls of a batch without an answer before Stripe is left alone until the next turn."""
SWEEP_OVERLAP = timedelta(hours=2)
STRIPE_REMEMBERS = timedelta(days=29)
KEPT_FOR = timedelta(days=90)
"""How long an event is kept that is done with: as long as anybody may ask what Stripe said."""
_ALWAYS = datetime.max.replace(tzinfo=UTC)
_MAX_ERROR = 500
_NAME = re.compile(r"[A-Za-z0-9_.]{1,255}")

_STORE = text(
    "INSERT INTO stripe_events (id, type, created, body) VALUES (:id, :type, :created, :body)"
    " ON CONFLICT (id) DO NOTHING"
)
_CLAIM = text(
    "WITH due AS (SELECT id FROM stripe_events WHERE processed_at IS NULL AND NOT is_dead AND due_at <= now()"
    " ORDER BY due_at LIMIT :limit FOR UPDATE SKIP LOCKED)"
    " UPDATE stripe_events e SET attempts = e.attempts + 1, due_at = now() + make_interval(secs => :lease)"
    " FROM due WHERE e.id = due.id RETURNING e.id, e.body, e.attempts, e.received_at, clock_timestamp() AS claimed_at"
)
_DONE = text("UPDATE stripe_events SET processed_at = now(), last_error = NULL WHERE id = ANY(:ids)")
_FAIL = text(
    "UPDATE stripe_events SET last_error = :error, is_dead = :is_dead, attempts = :attempts,"
    " due_at = now() + make_interval(secs => :wait) WHERE id = :id"
)
_COUNT = text(
    "SELECT count(*) FILTER (WHERE NOT is_dead) AS waiting, count(*) FILTER (WHERE is_dead) AS dead,"
    " COALESCE(EXTRACT(EPOCH FROM now() - min(received_at) FILTER (WHERE NOT is_dead)), 0)::float8 AS age"
    " FROM stripe_events WHERE processed_at IS NULL"
)
_SWEPT = text("SELECT until FROM stripe_sweeps")
_SET_SWEPT = text(
    "INSERT INTO stripe_sweeps (until) VALUES (:now) ON CONFLICT (id) DO UPDATE SET until = excluded.until"
)
_KNOWN = text("SELECT id FROM stripe_events WHERE id = ANY(:ids)")
# It is received before it is processed, and the index is of that.
_DELETE_OLD = text(
    "DELETE FROM stripe_events WHERE received_at < now() - CAST(:kept_for AS interval)"
    " AND processed_at < now() - CAST(:kept_for AS interval)"
)
_LIST = text(
    "SELECT id, type, created, received_at, attempts, is_dead, last_error FROM stripe_events"
    " WHERE processed_at IS NULL AND (is_dead OR NOT :dead_only) ORDER BY received_at, id LIMIT :limit"
)
_RETRY = text(
    "UPDATE stripe_events SET is_dead = false, attempts = 0, due_at = now()"
    " WHERE processed_at IS NULL AND (id = ANY(:ids) OR (:all_dead AND is_dead))"
)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why something could not be brought up to date.

    Attributes:
        is_ours: It will most likely fail again; False: Stripe was not there.
    """

    error: str
    is_ours: bool


class Batch:
    """Events that are worked off together: everything that any of them is about is read once.

    Args:
        database: Transactions are short; none is open while Stripe is asked.
        gateway: To read what the events are about.
        now: Decides what organisations are entitled to.
        grace: How long they are served on after a payment has failed.
    """

    def __init__(self, database: Database, gateway: Gateway, now: datetime, grace: timedelta) -> None:
        self._database = database
        self._gateway = gateway
        self._now = now
        self._grace = grace
        self._readers = asyncio.Semaphore(READERS)
        self._num_unanswered = 0

    @property
    def is_stripe_away(self) -> bool:
        """Whether so many calls went unanswered that no more are made."""
        return self._num_unanswered >= MAX_UNANSWERED

    async def work_off(self, claimed: Sequence[Row[Any]]) -> int:
        """Brings up to date what claimed events are about; returns how many of them are done with."""
        if not claimed:
            return 0
        # By then every event of the batch had happened, and nothing of it has been read.
        work = Work(self._database, self._gateway, claimed[0].claimed_at, self._now, self._grace)
        named = {row.id: _refs_of(row.body) for row in claimed}
        refs = await self._outdated(claimed, named)
        failures = dict(zip(refs, await asyncio.gather(*(self._attempt(work, ref) for ref in refs)), strict=True))
        failed: dict[str, Failure] = {}
        for id, found in named.items():
            problems = [found] if isinstance(found, Failure) else [failures.get(ref) for ref in found]
            problem = next((problem for problem in problems if problem is not None), None)
            if problem is not None:
                failed[id] = problem
        done = [row.id for row in claimed if row.id not in failed]
        async with self._database.begin() as connection:
            await connection.execute(_DONE, {"ids": done})
            for row in claimed:
                if row.id in failed:
                    await _fail(connection, row.id, row.attempts, failed[row.id])
        STRIPE_EVENTS.labels("processed").inc(len(done))
        return len(done)

    async def _outdated(self, claimed: Sequence[Row[Any]], named: Mapping[str, tuple[Ref, ...] | Failure]) -> list[Ref]:
        """What has to be read: a reading that began after an event had come in has seen what it tells."""
        told_at: dict[Ref, datetime] = {}
        for row in claimed:
            found = named[row.id]
            # What failed before, or is tried again by hand, is read whatever is written.
            at = row.received_at if row.attempts == 1 else _ALWAYS
            for ref in () if isinstance(found, Failure) else found:
                told_at[ref] = max(at, told_at.get(ref, at))
        async with self._database.begin() as connection:
            read_at = await effects.last_readings(connection, told_at)
        return sorted(ref for ref, at in told_at.items() if ref not in read_at or read_at[ref] < at)

    async def _attempt(self, work: Work, ref: Ref) -> Failure | None:
        async with self._readers:
            if self.is_stripe_away:
                return Failure("Stripe is away.", is_ours=False)
            try:
                await effects.bring_up_to_date(work, ref)
            except StripeUnavailable as error:
                self._num_unanswered += 1
                return Failure(error.message, is_ours=False)
            except TollgateError as error:
                log.warning("stripe.event_failed", kind=ref.kind, ref=ref.id, error=error.message)
                return Failure(error.message, is_ours=True)
            except Exception as error:
                log.exception("stripe.event_failed", kind=ref.kind, ref=ref.id)
                return Failure(f"{type(error).__name__}: {error}", is_ours=True)
            return None


async def store(connection: AsyncConnection, body: bytes) -> bool:
    """Keeps an event whose signature was verified.

    Args:
        connection: An open transaction; commit it before Stripe is told that the event was taken.
        body: As it came in: a snapshot event or the notification of a thin one.

    Returns:
        Whether it is new; one that is known changes nothing.

    Raises:
        BadRequest: It is no event of Stripe's.
    """
    stored = await connection.execute(_STORE, {**_envelope(body), "body": body})
    return bool(stored.rowcount)


async def work_off(database: Database, gateway: Gateway, now: datetime, grace: timedelta) -> int:
    """Works off what is due, until nothing is or Stripe is away.

    Several workers may do so at once.

    Args:
        database: Transactions are short; none is open while Stripe is asked.
        gateway: To read what the events are about.
        now: Decides what organisations are entitled to.
        grace: How long they are served on after a payment has failed.

    Returns:
        How many events it has dealt with.
    """
    num_events, is_more = 0, True
    while is_more:
        async with database.begin() as connection:
            claimed = (await connection.execute(_CLAIM, {"limit": BATCH, "lease": LEASE_S})).all()
        batch = Batch(database, gateway, now, grace)
        num_events += await batch.work_off(claimed)
        is_more = len(claimed) == BATCH and not batch.is_stripe_away
    await _measure(database)
    return num_events


async def sweep(database: Database, gateway: Gateway, now: datetime) -> int:
    """Takes in what happened at Stripe and was never delivered, since it was looked for last.

    Whatever came in meanwhile says nothing of what did not: the first event after an outage may be a new one.

    Args:
        database: With the inbox.
        gateway: To list events.
        now: By Stripe's clock.

    Returns:
        How many were missing.

    Raises:
        StripeUnavailable: They cannot be listed now; likewise ``StripeRefused``.
    """
    async with database.begin() as connection:
        swept: datetime | None = await connection.scalar(_SWEPT)
    oldest = now - STRIPE_REMEMBERS
    # Where it was never looked for, everything may be missing.
    since = oldest if swept is None else max(min(swept, now) - SWEEP_OVERLAP, oldest)
    events = await gateway.list_events(int(since.timestamp()), tuple(effects.SUBJECTS))
    async with database.begin() as connection:
        ids = [event["id"] for event in events]
        known = set((await connection.execute(_KNOWN, {"ids": ids})).scalars())
        missing = [event for event in events if event["id"] not in known]
        for event in reversed(missing):
            await store(connection, json.dumps(event).encode())
        await connection.execute(_SET_SWEPT, {"now": now})
    if missing:
        log.warning("stripe.events_missed", events=len(missing))
        STRIPE_EVENTS.labels("swept").inc(len(missing))
    return len(missing)


async def delete_old(connection: AsyncConnection) -> int:
    """Removes events that have been done with for long; they name people. Returns how many."""
    return (await connection.execute(_DELETE_OLD, {"kept_for": KEPT_FOR})).rowcount


async def list_waiting(connection: AsyncConnection, *, dead_only: bool, limit: int) -> Sequence[Row[Any]]:
    """Events that are not dealt with, oldest first: those given up, or all."""
    return (await connection.execute(_LIST, {"dead_only": dead_only, "limit": limit})).all()


async def retry(connection: AsyncConnection, ids: Sequence[str], *, all_dead: bool = False) -> int:
    """Lets events be tried again at once, as if for the first time.

    Args:
        connection: An open transaction.
        ids: Of events that are not dealt with; others are left alone.
        all_dead: Everything that was given up as well.

    Returns:
        How many.
    """
    return (await connection.execute(_RETRY, {"ids": list(ids), "all_dead": all_dead})).rowcount


def _refs_of(body: bytes) -> tuple[Ref, ...] | Failure:
    try:
        return effects.refs_of(json.loads(body))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        return Failure(f"The event is not built as expected: {error!r}", is_ours=True)


async def _fail(connection: AsyncConnection, id: str, attempts: int, failure: Failure) -> None:
    is_dead = failure.is_ours and attempts >= MAX_ATTEMPTS
    bind = {
        "id": id,
        "error": failure.error[:_MAX_ERROR].replace("\0", ""),
        "is_dead": is_dead,
        "attempts": attempts if failure.is_ours else attempts - 1,
        "wait": min(5.0 * 2 ** (attempts - 1), MAX_BACK_OFF_S),
    }
    await connection.execute(_FAIL, bind)
    STRIPE_EVENTS.labels("dead" if is_dead else "failed").inc()
    if is_dead:
        log.error("stripe.event_given_up", event_id=id, error=failure.error)


async def _measure(database: Database) -> None:
    async with database.begin() as connection:
        row = (await connection.execute(_COUNT)).one()
    STRIPE_INBOX.labels("waiting").set(row.waiting)
    STRIPE_INBOX.labels("dead").set(row.dead)
    STRIPE_INBOX_SECONDS.set(row.age)


def _envelope(body: bytes) -> dict[str, Any]:
    """Id, type and time of an event."""
    try:
        event = json.loads(body)
        created = event["created"]
        # Thin events write it out.
        at = datetime.fromisoformat(created) if isinstance(created, str) else datetime.fromtimestamp(created, UTC)
        names = {"id": event["id"], "type": event["type"]}
        if not all(_NAME.fullmatch(name) for name in names.values()):
            raise ValueError("names")
    except (ValueError, KeyError, TypeError, OverflowError, OSError, RecursionError):
        raise BadRequest("The body is not an event of Stripe's.", code="invalid_event") from None
    return {**names, "created": at.replace(tzinfo=at.tzinfo or UTC)}
