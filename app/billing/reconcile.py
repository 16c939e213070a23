"""Does Stripe count what it took? Its sums by the hour against the outbox.

Doubted events are settled by these sums: a sum says of an hour which of its events
were counted, as far as only one selection of them adds up to it. What was not counted is
sent again as another event. Taken events are only compared: a sum that lags looks like a loss, and
sending again what was counted charges a customer twice, so that is left to a person
(``tollgate billing reconcile --reissue``).

An hour is looked at when nothing of it has moved for as long as Stripe's sums may lag.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.billing import claims, reissues
from app.billing.gateway import Gateway
from app.billing.outbox import LAG
from app.billing.turns import Turns
from app.db import Database
from app.errors import StripeRefused
from app.telemetry import METER_DRIFT, METER_EVENTS, METER_OUTBOX_ROWS, METER_WAITING_SECONDS, get_logger

log = get_logger(__name__)

HOUR = timedelta(hours=1)
SPAN = timedelta(days=3)
"""How far back the job compares."""
MAX_SELECTIONS = 100_000
"""Sums of events of one hour that are tried."""

_NANO_USD_PER_MICRO_USD = 1_000
_MISSING = "resource_missing"
_STATES = ("sending", "pending", "reconcile", "rejected")

_DOUBTED = text(
    "SELECT DISTINCT stripe_customer_id, meter, date_trunc('hour', event_ts, 'UTC') AS hour FROM stripe_meter_outbox"
    " WHERE state = 'reconcile' AND due_at <= :now ORDER BY 3, 1, 2"
)
_OF_HOUR = (
    "SELECT id, org_id, state, value, acked_at, due_at FROM stripe_meter_outbox"
    " WHERE stripe_customer_id = :customer AND meter = :meter AND event_ts >= :hour"
    " AND event_ts < CAST(:hour AS timestamptz) + interval '1 hour'"
    " AND state IN ('pending', 'sending', 'acked', 'reconcile') ORDER BY event_ts, id"
)
_EVENTS = text(_OF_HOUR)
_EVENTS_LOCKED = text(f"{_OF_HOUR} FOR UPDATE")
_SET_ACKED = text(
    "UPDATE stripe_meter_outbox SET state = 'acked', acked_at = :now, last_error = NULL WHERE id = ANY(:ids)"
)
_LATER = text(
    "UPDATE stripe_meter_outbox SET due_at = :due_at, last_error = COALESCE(:problem, last_error) WHERE id = ANY(:ids)"
)
_BOOKS = text(
    "SELECT stripe_customer_id AS customer, meter, date_trunc('hour', event_ts, 'UTC') AS hour,"
    " COALESCE(sum(value) FILTER (WHERE state = 'acked'), 0)::bigint AS value,"
    " bool_and(state IN ('acked', 'rejected') AND COALESCE(acked_at <= :settled, true)) AS is_settled"
    " FROM stripe_meter_outbox WHERE event_ts >= :start AND event_ts < :end"
    " AND state NOT IN ('replaced', 'written_off')"
    " AND (CAST(:org_id AS uuid) IS NULL OR org_id = :org_id) GROUP BY 1, 2, 3 ORDER BY 1, 2, 3"
)
_DOUBT = text(
    "UPDATE stripe_meter_outbox SET state = 'reconcile', due_at = :now, last_error = 'Stripe has counted less'"
    " WHERE stripe_customer_id = :customer AND meter = :meter AND state = 'acked' AND event_ts >= :hour"
    " AND event_ts < CAST(:hour AS timestamptz) + interval '1 hour'"
)
_REJECT = text(
    "UPDATE stripe_meter_outbox SET state = 'rejected', last_error = :problem"
    " WHERE stripe_customer_id = :customer AND meter = :meter AND state = 'reconcile' AND event_ts >= :hour"
    " AND event_ts < CAST(:hour AS timestamptz) + interval '1 hour'"
)
_ROWS = text(
    "SELECT state, count(*) AS num_rows, min(event_ts) AS oldest FROM stripe_meter_outbox"
    " WHERE state IN ('pending', 'sending', 'reconcile', 'rejected') GROUP BY state"
)


@dataclass(frozen=True, slots=True)
class Hour:
    """The meter events of a customer in an hour, by their time."""

    customer: str
    meter: str
    start: datetime

    @property
    def bind(self) -> dict[str, object]:
        """For a statement."""
        return {"customer": self.customer, "meter": self.meter, "hour": self.start}


@dataclass(frozen=True, slots=True)
class Difference:
    """An hour of which Stripe has counted something else than it took, in 10^-9 USD."""

    hour: Hour
    taken: int
    counted: int


@dataclass(frozen=True, slots=True)
class Event:
    """A meter event of an hour; whether it was counted is not known if it is doubted."""

    id: UUID
    value: int
    is_doubted: bool


async def settle_doubts(database: Database, gateway: Gateway, now: datetime) -> None:
    """Looks up what became of doubted events, hour by hour, and sends again what was not counted.

    Args:
        database: With the outbox.
        gateway: To Stripe.
        now: By Stripe's clock.

    Raises:
        StripeUnavailable: The rest is settled later; likewise ``ConfigError``.
        StripeRefused: Stripe does not tell of a customer; the doubts of the others are settled.
    """
    async with database.begin() as connection:
        found = (await connection.execute(_DOUBTED, {"now": now})).all()
    turns = Turns("meter.doubt_failed")
    for row in found:
        hour = Hour(row.stripe_customer_id, row.meter, row.hour)
        with turns.of(customer=hour.customer):
            await _settle(database, gateway, hour, now)
    turns.end()


async def compare(
    database: Database,
    gateway: Gateway,
    start: datetime,
    end: datetime,
    now: datetime,
    turns: Turns,
    org_id: UUID | None = None,
) -> list[Difference]:
    """The hours in which Stripe has counted something else than it took; those that still move are left out.

    Args:
        database: With the outbox.
        gateway: To Stripe; one call for each customer and four days.
        start: Inclusive; its whole hour is compared.
        end: Exclusive; only hours that ended before it are.
        now: By Stripe's clock.
        turns: A customer has one; of one that Stripe does not tell of, nothing is compared.
        org_id: One organisation's; None: everybody's.

    Raises:
        StripeUnavailable: As every call; likewise ``ConfigError``.
    """
    first, last = _whole(start), _whole(end)
    bind = {"start": first, "end": last, "settled": now - LAG, "org_id": org_id}
    async with database.begin() as connection:
        books = (await connection.execute(_BOOKS, bind)).all()
    taken = {Hour(row.customer, row.meter, row.hour): row for row in books}
    differences: list[Difference] = []
    for customer, meter in dict.fromkeys((row.customer, row.meter) for row in books):
        with turns.of(customer=customer):
            sums = await gateway.meter_sums(await gateway.meter_id(meter), customer, first, last)
            ours = [hour for hour in taken if (hour.customer, hour.meter) == (customer, meter)]
            for hour in dict.fromkeys([*ours, *(Hour(customer, meter, at) for at in sums)]):
                row, counted = taken.get(hour), sums.get(hour.start, 0)
                value = row.value if row is not None else 0
                if value != counted and (row is None or row.is_settled):
                    differences.append(Difference(hour, value, counted))
    return differences


async def watch(database: Database, gateway: Gateway, now: datetime) -> None:
    """Compares the last days, and shows by how much they differ.

    Raises:
        StripeUnavailable: As every call; likewise ``ConfigError``.
        StripeRefused: Stripe does not tell of a customer; the others are compared.
    """
    turns = Turns("meter.compare_failed")
    differences = await compare(database, gateway, now - SPAN, now - LAG, now, turns)
    METER_DRIFT.set(sum(abs(one.taken - one.counted) for one in differences) / _NANO_USD_PER_MICRO_USD)
    for one in differences:
        log.error(
            "meter.drift",
            customer=one.hour.customer,
            hour=one.hour.start.isoformat(),
            taken=one.taken,
            counted=one.counted,
        )
    turns.end()


async def doubt(database: Database, differences: Sequence[Difference], now: datetime) -> int:
    """Doubts every taken event of the hours of which Stripe has counted less; returns how many hours."""
    lacking = [one for one in differences if one.counted < one.taken]
    async with database.begin() as connection:
        for one in lacking:
            await connection.execute(_DOUBT, {**one.hour.bind, "now": now})
    return len(lacking)


async def measure(database: Database, now: datetime) -> None:
    """Sets the metrics of what waits to be claimed, and in the outbox."""
    async with database.begin() as connection:
        rows = {row.state: row for row in (await connection.execute(_ROWS)).all()}
        claimed_until = await claims.claimed_until(connection, now)
    for state in _STATES:
        METER_OUTBOX_ROWS.labels(state).set(rows[state].num_rows if state in rows else 0)
    unsent = [rows[state].oldest for state in ("pending", "sending") if state in rows]
    METER_WAITING_SECONDS.set(max(0.0, (now - min([claimed_until, *unsent])).total_seconds()))


def uncounted(events: Sequence[Event], counted: int) -> list[UUID] | None:
    """Which of an hour's events Stripe has not counted; None: no selection of the doubted ones says it.

    A sum that is more than everything we know of tells that all of ours are in it.

    Args:
        events: Of the hour.
        counted: Stripe's sum of it, in the same unit as their values.
    """
    shortfall = sum(event.value for event in events) - counted
    if shortfall <= 0:
        return []
    doubted = [event for event in events if event.is_doubted]
    if shortfall == sum(event.value for event in doubted):
        return [event.id for event in doubted]
    selections: dict[int, tuple[UUID, ...]] = {0: ()}
    for event in doubted:
        if len(selections) > MAX_SELECTIONS:
            return None
        for total, ids in list(selections.items()):
            selections.setdefault(total + event.value, (*ids, event.id))
    found = selections.get(shortfall)
    return None if found is None else list(found)


async def _settle(database: Database, gateway: Gateway, hour: Hour, now: datetime) -> None:
    async with database.begin() as connection:
        before = (await connection.execute(_EVENTS, hour.bind)).all()
        if _moves(before, now):
            await _later(connection, before, now, None)
            return
    meter_id, end = await gateway.meter_id(hour.meter), hour.start + HOUR
    try:
        sums = await gateway.meter_sums(meter_id, hour.customer, hour.start, end)
    except StripeRefused as refusal:
        if refusal.stripe_code != _MISSING:
            raise
        await _reject(database, hour, refusal.message)
        return
    async with database.begin() as connection:
        rows = (await connection.execute(_EVENTS_LOCKED, hour.bind)).all()
        if rows == before:
            await _decide(connection, hour, rows, sums.get(hour.start, 0), now)


async def _reject(database: Database, hour: Hour, problem: str) -> None:
    """Of a customer that was deleted nobody will ever tell what was counted: a person has to know."""
    async with database.begin() as connection:
        rejected = (await connection.execute(_REJECT, {**hour.bind, "problem": problem})).rowcount
    METER_EVENTS.labels("rejected").inc(rejected)
    log.error("meter_events.lost", customer=hour.customer, hour=hour.start.isoformat(), problem=problem)


async def _decide(
    connection: AsyncConnection, hour: Hour, rows: Sequence[Row[Any]], counted: int, now: datetime
) -> None:
    lost = uncounted([Event(row.id, row.value, row.state == "reconcile") for row in rows], counted)
    if lost is None:
        METER_EVENTS.labels("unexplained").inc()
        log.error("meter.unexplained", customer=hour.customer, hour=hour.start.isoformat(), counted=counted)
        await _later(connection, rows, now, "Stripe's sum of its hour fits no selection of events")
        return
    kept = [row.id for row in rows if row.state == "reconcile" and row.id not in lost]
    await connection.execute(_SET_ACKED, {"ids": kept, "now": now})
    for row in rows:
        if row.id not in lost or await reissues.reissue(connection, row.id, now):
            continue
        if not await reissues.give_up(connection, row.id, row.org_id):
            await _later(connection, [row], now, None)


async def _later(connection: AsyncConnection, rows: Sequence[Row[Any]], now: datetime, problem: str | None) -> None:
    ids = [row.id for row in rows if row.state == "reconcile"]
    await connection.execute(_LATER, {"ids": ids, "due_at": now + LAG / 4, "problem": problem})


def _moves(rows: Sequence[Row[Any]], now: datetime) -> bool:
    """Whether an hour has events of which Stripe's sum may not tell yet."""
    return any(
        row.state in ("pending", "sending")
        or (row.state == "acked" and row.acked_at > now - LAG)
        or (row.state == "reconcile" and row.due_at > now)
        for row in rows
    )


def _whole(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
