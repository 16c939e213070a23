"""Which usage rows are reported to Stripe, and in which period.

A window of at most a quarter of an hour is closed once nothing can be billed in it any
more. Closing it is one transaction: it marks the organisation's rows that nobody has claimed
yet, writes their sum into the outbox, and moves the period's ``claimed_until``. So
every row is claimed once, by whichever window is closed first after it appeared;
late ones too, which then belong to the period that runs. Windows end where periods
end, and bear the time of their last second, so that no window lies in two periods.
Time in which nothing was used is passed over without a transaction for each window.
What costs more than one meter event can say becomes several of the same window.

Nothing here talks to Stripe: what is claimed, ``app.billing.outbox`` sends.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid5

from sqlalchemy import Row, insert, text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.billing.catalog import METER
from app.billing.prices import PICO_USD_PER_NANO_USD, PRICES
from app.billing.turns import Turns
from app.db import Database
from app.errors import DataError
from app.tables import MeterOutbox, new_id

WINDOW = timedelta(minutes=15)
"""Aligned to the hour; sums at Stripe are by the hour."""
DRAFT = timedelta(minutes=55)
"""After the end of a period for which its usage still reaches its invoice; Stripe keeps that open for an hour."""
MAX_VALUE = 10**15 - 1
"""Of a meter event, in 10^-9 USD: Stripe takes 15 digits. A million USD."""
NAMESPACE = UUID("5d3a6c1e-7f0b-4f0e-9d5e-0b8f3a1c7e42")
"""Of the identifiers of meter events. It never changes: they make that sending twice counts once."""

_SECOND = timedelta(seconds=1)
_MICROSECOND = timedelta(microseconds=1)
# A row is billed at the beginning of its transaction. Those that have begun and are not in the server's view yet get a
# minute; one that takes longer than ten is no settlement, which the server ends within seconds, and what it writes
# after all is late.
_LEAST_LAG = timedelta(minutes=1)
_MOST_LAG = timedelta(minutes=10)
# One that would be shorter goes on for a whole WINDOW: what is claimed after a flush bears a
# time after whatever the flush was for.
_SHORTEST = timedelta(minutes=1)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_OLDEST = text(
    "SELECT now() - min(xact_start) FROM pg_stat_activity WHERE datname = current_database()"
    " AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
)
# A subscription that was never paid for bills nothing. One that ended with its customer has no invoice any more, but
# is over one day.
_OPEN = (
    "SELECT p.subscription_id, p.period_start, p.period_end, p.claimed_until, s.org_id, s.is_current,"
    " o.stripe_customer_id FROM metering_periods p JOIN subscriptions s ON s.id = p.subscription_id"
    " JOIN orgs o ON o.id = s.org_id WHERE NOT p.is_trial AND p.claimed_until < p.period_end"
    " AND s.status NOT IN ('incomplete', 'incomplete_expired')"
    " AND (o.stripe_customer_id IS NOT NULL OR s.ended_at IS NOT NULL)"
)
_OPEN_OF_ALL = text(f"{_OPEN} AND p.claimed_until < :now ORDER BY p.period_start")
_OLDEST_OPEN = text(
    f"SELECT min(claimed_until) FROM ({_OPEN} AND p.claimed_until < :now) AS open"  # noqa: S608
    " WHERE stripe_customer_id IS NOT NULL"
)
_OPEN_OF_ORG = text(f"{_OPEN} AND p.claimed_until < :now AND s.org_id = :org_id ORDER BY p.period_start")
_OPEN_ONE = text(f"{_OPEN} AND p.subscription_id = :subscription_id AND p.period_start = :period_start FOR UPDATE OF p")
# Two claims of one organisation's rows could lock them in two orders.
_LOCK = text("SELECT pg_advisory_xact_lock(hashtext('claims'), hashtext(CAST(CAST(:org_id AS uuid) AS text)))")
# Metering begins with the first period that is no trial; what is left of a period that is still open is that one's.
# Where two subscriptions live at once, what is used since the current one meters is its.
_SPAN = text(
    "SELECT COALESCE(max(p.period_end) FILTER (WHERE s.id = :subscription_id AND p.period_end <= :period_start"
    " AND p.claimed_until < p.period_end), min(p.period_start) FILTER (WHERE s.id = :subscription_id)) AS start,"
    " min(p.period_start) FILTER (WHERE s.id <> :subscription_id AND s.is_current) AS successor"
    " FROM metering_periods p JOIN subscriptions s ON s.id = p.subscription_id"
    " WHERE s.org_id = :org_id AND NOT p.is_trial"
)
_IS_INVOICED = text(
    "SELECT EXISTS (SELECT 1 FROM invoices i JOIN subscriptions s USING (stripe_subscription_id)"
    " WHERE s.id = :subscription_id AND i.finalized_at IS NOT NULL AND i.created >= :period_end)"
)
_FIRST = text(
    "SELECT min(billed_at) FROM usage_events WHERE org_id = :org_id AND claim_id IS NULL AND NOT is_prepaid"
    " AND billed_at >= :start AND billed_at < :end"
)
_MOVE = text(
    "UPDATE metering_periods SET claimed_until = :until"
    " WHERE subscription_id = :subscription_id AND period_start = :period_start"
)
_SEQ = text(
    "SELECT COALESCE(max(seq) + 1, 0) FROM stripe_meter_outbox"
    " WHERE org_id = :org_id AND meter = :meter AND window_start = :window_start"
)
_VALUE = text(
    "SELECT COALESCE(sum(value), 0)::bigint FROM stripe_meter_outbox"
    " WHERE subscription_id = :subscription_id AND event_ts >= :start AND event_ts < :end"
    " AND state NOT IN ('replaced', 'written_off')"
)


@dataclass(frozen=True, slots=True)
class Window:
    """A part of a metering period, from ``start`` until before ``end``."""

    start: datetime
    end: datetime

    @property
    def event_ts(self) -> datetime:
        """Its last whole second: inside the window and so inside its period."""
        return self.end - _SECOND


def window_end(start: datetime, period_end: datetime) -> datetime:
    """Where the window that begins at ``start`` ends unless it is flushed before."""
    end = _aligned(start) + WINDOW
    if end - start < _SHORTEST:
        end = start + WINDOW
    return min(end, period_end)


def identifier(org_id: UUID, meter: str, window_start: datetime, seq: int) -> UUID:
    """By which Stripe knows a meter event, however often it is sent."""
    return uuid5(NAMESPACE, f"{org_id}/{meter}/{window_start.astimezone(UTC).isoformat()}/{seq}")


async def horizon(connection: AsyncConnection, now: datetime) -> datetime:
    """Before this, by the clock that says ``now``, nothing can be billed any more but what is late."""
    oldest: timedelta | None = (await connection.execute(_OLDEST)).scalar_one()
    return now - lag(oldest)


def lag(oldest: timedelta | None) -> timedelta:
    """How long after its end a window is closed, where the oldest transaction has run for so long."""
    return min(max(oldest or _LEAST_LAG, _LEAST_LAG), _MOST_LAG)


async def claim_due(database: Database, now: datetime) -> None:
    """Closes every window that is over, of every subscription; a transaction each.

    Args:
        database: With the usage rows.
        now: By Stripe's clock, which periods are told by.

    Raises:
        DataError: An organisation's rows have no price; those of the others are claimed. Likewise ``DBAPIError``.
    """
    async with database.begin() as connection:
        until = await horizon(connection, now)
        periods = (await connection.execute(_OPEN_OF_ALL, {"now": until})).all()
    turns = Turns("claim.failed")
    for period in periods:
        if window_end(period.claimed_until, period.period_end) > until:
            continue
        with turns.of(org_id=str(period.org_id)):
            await _claim_all(database, period, now, until)
    turns.end()


async def flush(database: Database, org_id: UUID, now: datetime) -> None:
    """Claims what the organisation has used up to the last whole second before ``now``.

    Call it, and then ``outbox.drain`` with the same organisation, before anything at
    Stripe that ends a price: a change of the plan, a cancellation at once.

    Args:
        database: With the usage rows.
        org_id: Whose.
        now: By Stripe's clock.

    Raises:
        DataError: Rows have no price.
    """
    async with database.begin() as connection:
        until = await horizon(connection, now)
        periods = (await connection.execute(_OPEN_OF_ORG, {"now": now, "org_id": org_id})).all()
    for period in periods:
        # What is over is closed as ever: rows of its last second may be under way.
        cut = until if period.period_end <= now else now.replace(microsecond=0)
        await _claim_all(database, period, now, cut, cuts=period.period_end > now)


async def lock(connection: AsyncConnection, org_id: UUID) -> None:
    """Lets nobody else claim rows of the organisation until the transaction ends."""
    await connection.execute(_LOCK, {"org_id": org_id})


async def write_off_rest(connection: AsyncConnection, period: Row[Any]) -> int:
    """Claims what is left of a period that is over, in meter events that nobody sends.

    Args:
        connection: An open transaction that holds the organisation's ``lock``.
        period: Its ``period_start`` and ``period_end``, ``org_id``, ``subscription_id`` and ``stripe_customer_id``.

    Returns:
        What it cost, in 10^-9 USD.

    Raises:
        DataError: Rows have no price.
    """
    rest = Window(period.period_start, period.period_end)
    total, is_all = 0, False
    while not is_all:
        value, is_all = await _claim(connection, period, rest, rest, "written_off")
        total += value
    return total


async def value_between(connection: AsyncConnection, subscription_id: UUID, start: datetime, end: datetime) -> int:
    """What has been claimed for a period and is Stripe's to bill in it, in 10^-9 USD.

    Args:
        connection: An open transaction.
        subscription_id: Ours.
        start: Inclusive, by the time that the meter events bear.
        end: Exclusive.
    """
    bind = {"subscription_id": subscription_id, "start": start, "end": end}
    return int((await connection.execute(_VALUE, bind)).scalar_one())


async def claimed_until(connection: AsyncConnection, now: datetime) -> datetime:
    """Up to when everybody's usage is claimed; ``now`` where there is nobody's to claim."""
    oldest: datetime | None = (await connection.execute(_OLDEST_OPEN, {"now": now})).scalar_one()
    return oldest or now


async def mark(
    connection: AsyncConnection, claim_id: UUID, org_id: UUID, start: datetime, end: datetime, *, is_prepaid: bool
) -> int:
    """Claims an organisation's unclaimed rows billed from ``start`` until before ``end``.

    Locks them until the transaction ends.

    Args:
        connection: An open transaction.
        claim_id: Of what accounts for them.
        org_id: Whose.
        start: Inclusive.
        end: Exclusive.
        is_prepaid: Those that were paid from credit, or those that were not.

    Returns:
        What they cost, in 10^-12 USD.

    Raises:
        DataError: A row has a price that is not in the list.
    """
    # Said in full, as the partial indexes say it.
    which = "is_prepaid" if is_prepaid else "NOT is_prepaid"
    statement = text(
        "WITH claimed AS (UPDATE usage_events SET claim_id = :claim_id WHERE org_id = :org_id AND claim_id IS NULL"  # noqa: S608 - one of two constants
        f" AND {which} AND billed_at >= :start AND billed_at < :end"
        " RETURNING price_version, kind, input_tokens, cached_tokens, output_tokens)"
        " SELECT price_version, kind, sum(input_tokens)::bigint AS input_tokens, sum(cached_tokens)::bigint"
        " AS cached_tokens, sum(output_tokens)::bigint AS output_tokens FROM claimed GROUP BY 1, 2"
    )
    bind = {"claim_id": claim_id, "org_id": org_id, "start": start, "end": end}
    return sum(map(_cost_of, (await connection.execute(statement, bind)).all()))


async def _claim_all(
    database: Database, period: Row[Any], now: datetime, until: datetime, *, cuts: bool = False
) -> None:
    is_more = True
    while is_more:
        async with database.begin() as connection:
            is_more = await _claim_next(connection, period, now, until, cuts=cuts)


async def _claim_next(
    connection: AsyncConnection, stale: Row[Any], now: datetime, until: datetime, *, cuts: bool
) -> bool:
    """Closes the next window of a period that has something in it; whether there may be more."""
    await lock(connection, stale.org_id)
    key = {"subscription_id": stale.subscription_id, "period_start": stale.period_start}
    period = (await connection.execute(_OPEN_ONE, key)).one_or_none()
    if period is None or period.claimed_until >= until:
        return False
    if await _is_invoiced(connection, period, now):
        # The invoice takes no more: what is left is late, and the next period's.
        await connection.execute(_MOVE, {**key, "until": period.period_end})
        return False
    span = await _span(connection, period)
    end = min(until, period.period_end)
    bind = {"org_id": period.org_id, "start": span.start, "end": min(end, span.end)}
    first: datetime | None = (await connection.execute(_FIRST, bind)).scalar_one()
    if first is None:
        await connection.execute(_MOVE, {**key, "until": _passed(period, end, cuts=cuts)})
        return False
    if period.stripe_customer_id is None:
        return False
    start = max(period.claimed_until, _aligned(first))
    window = Window(start, window_end(start, period.period_end))
    if window.end > end and cuts:
        window = Window(start, end)
    if window.end > end:
        await connection.execute(_MOVE, {**key, "until": start})
        return False
    _, is_all = await _claim(connection, period, window, span)
    if is_all:
        await connection.execute(_MOVE, {**key, "until": window.end})
    return True


async def _claim(
    connection: AsyncConnection, period: Row[Any], window: Window, span: Window, state: str = "pending"
) -> tuple[int, bool]:
    """Makes a meter event of what a window has, or of as much as one can say; its value, and whether that was all."""
    claim_id = new_id()
    wanted = Window(span.start, min(window.end, span.end))
    cost, until = await _mark_most(connection, claim_id, period.org_id, wanted)
    value, rest = divmod(cost, PICO_USD_PER_NANO_USD)
    assert rest == 0, "the list of prices has multiples of 1,000 only"
    if value:
        row = {"id": claim_id, "value": value, "state": state}
        await _put_out(connection, period, window, row)
    return value, until == wanted.end


async def _mark_most(connection: AsyncConnection, claim_id: UUID, org_id: UUID, wanted: Window) -> tuple[int, datetime]:
    """Claims the rows of ``wanted``, or the first of them if all would be too much for one meter event.

    Returns:
        What they cost, in 10^-12 USD, and the end of what is claimed.
    """
    end = wanted.end
    while True:
        async with connection.begin_nested() as attempt:
            cost = await mark(connection, claim_id, org_id, wanted.start, end, is_prepaid=False)
            if cost <= MAX_VALUE * PICO_USD_PER_NANO_USD:
                return cost, end
            await attempt.rollback()
        bind = {"org_id": org_id, "start": wanted.start, "end": end}
        first: datetime = (await connection.execute(_FIRST, bind)).scalar_one()
        if end - first <= _MICROSECOND:
            raise DataError(f"rows billed at {first} cost more than a meter event can say")
        end = first + (end - first) / 2


async def _put_out(
    connection: AsyncConnection, period: Row[Any], window: Window, claimed: Mapping[str, object]
) -> None:
    bind = {"org_id": period.org_id, "meter": METER, "window_start": window.start}
    seq = int((await connection.execute(_SEQ, bind)).scalar_one())
    row = {
        **bind,
        **claimed,
        "subscription_id": period.subscription_id,
        "stripe_customer_id": period.stripe_customer_id,
        "window_end": window.end,
        "seq": seq,
        "event_ts": window.event_ts,
        "identifier": identifier(period.org_id, METER, window.start, seq),
        # Stripe's test clocks know another present than the database.
        "due_at": _EPOCH,
    }
    await connection.execute(insert(MeterOutbox).values(row))


async def _span(connection: AsyncConnection, period: Row[Any]) -> Window:
    """What a subscription meters: from its first period on, and of two that live the newer what it can."""
    bind = {"subscription_id": period.subscription_id, "org_id": period.org_id, "period_start": period.period_start}
    found = (await connection.execute(_SPAN, bind)).one()
    is_succeeded = not period.is_current and found.successor is not None
    return Window(found.start, found.successor if is_succeeded else period.period_end)


async def _is_invoiced(connection: AsyncConnection, period: Row[Any], now: datetime) -> bool:
    if now < period.period_end:
        return False
    bind = {"subscription_id": period.subscription_id, "period_end": period.period_end}
    return now >= period.period_end + DRAFT or bool((await connection.execute(_IS_INVOICED, bind)).scalar_one())


def _passed(period: Row[Any], end: datetime, *, cuts: bool) -> datetime:
    """Up to where a period with no row to claim is done; a window that runs goes on."""
    if cuts or end == period.period_end:
        return end
    done: datetime = period.claimed_until
    return max(done, _aligned(end))


def _aligned(moment: datetime) -> datetime:
    """The last end of a quarter of an hour up to ``moment``."""
    since: timedelta = (moment - _EPOCH) % WINDOW
    return moment - since


def _cost_of(row: Row[Any]) -> int:
    price = PRICES.get((row.price_version, row.kind))
    if price is None:
        raise DataError(f"rows of {row.kind} have price version {row.price_version}, which is not in the list")
    return price.cost(row.input_tokens, row.cached_tokens, row.output_tokens)
