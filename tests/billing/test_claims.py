"""Every row that is due is claimed once, in the window and the period where it belongs."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import event as listen
from sqlalchemy import insert, text
from sqlalchemy.exc import DBAPIError

from app.billing import claims
from app.billing.catalog import METER
from app.billing.claims import DRAFT, WINDOW, Window
from app.billing.metering_checks import find_unclaimed_usage, find_unlike_claims
from app.db import Database
from app.errors import DataError
from app.tables import Invoice, MeterOutbox
from tests.billing.metered import (
    MICROSECOND,
    MINUTE,
    MONTH,
    SECOND,
    START,
    TOKEN_VALUE,
    Customer,
    make_customer,
    make_period,
    make_subscription,
    outbox_of,
    periods_of,
    rows_of,
    use,
)

END = START + MONTH
MOST_TOKENS = claims.MAX_VALUE // TOKEN_VALUE
"""Of input, in one meter event."""


async def values(database: Database, customer: Customer) -> list[int]:
    """Tokens of each meter event."""
    return [row.value // TOKEN_VALUE for row in await outbox_of(database, customer.org_id)]


async def unclaimed(database: Database, org_id: UUID) -> list[datetime]:
    rows = await rows_of(database, "usage_events", org_id, "billed_at")
    return [row.billed_at for row in rows if row.claim_id is None]


@given(st.integers(0, 10**9), st.integers(1, 10**6))
def test_a_window_is_short_and_ends_where_its_period_ends(offset: int, rest: int) -> None:
    start = START + timedelta(seconds=offset)
    period_end = start + timedelta(seconds=rest)
    end = claims.window_end(start, period_end)
    assert start < end <= period_end
    assert end - start <= WINDOW
    assert end == period_end or end - start >= MINUTE
    assert start <= Window(start, end).event_ts < end


def test_windows_are_aligned_to_the_hour() -> None:
    assert claims.window_end(START + 7 * MINUTE, END) == START + 15 * MINUTE


def test_a_window_that_would_be_too_short_is_a_whole_one() -> None:
    start = START + 15 * MINUTE - 59 * SECOND
    assert claims.window_end(start, END) == start + WINDOW


async def test_what_was_used_in_a_window_becomes_one_meter_event(database: Database) -> None:
    customer = await make_customer(database)
    await use(database, customer.org_id, START, START + 5 * MINUTE, START + 15 * MINUTE - MICROSECOND, tokens=7)
    await use(database, customer.org_id, START + 15 * MINUTE)
    await claims.claim_due(database, START + 17 * MINUTE)
    (row,) = await outbox_of(database, customer.org_id)
    assert (row.window_start, row.window_end) == (START, START + 15 * MINUTE)
    assert row.event_ts == START + 15 * MINUTE - SECOND
    assert (row.value, row.seq, row.state) == (21 * TOKEN_VALUE, 0, "pending")
    assert (row.subscription_id, row.stripe_customer_id) == (customer.subscription_id, customer.stripe_id)
    assert row.identifier == claims.identifier(customer.org_id, METER, START, 0)
    assert await unclaimed(database, customer.org_id) == [START + 15 * MINUTE]
    usage = await rows_of(database, "usage_events", customer.org_id, "billed_at")
    assert [usage_row.claim_id for usage_row in usage] == [row.id] * 3 + [None]
    (period,) = await periods_of(database, customer)
    assert period.claimed_until == START + 15 * MINUTE


async def test_every_kind_counts_by_its_price(database: Database) -> None:
    customer = await make_customer(database)
    tokens = {"input_tokens": 10, "cached_tokens": 4, "output_tokens": 3}
    await use(database, customer.org_id, START, **tokens)
    await use(database, customer.org_id, START, kind="classification", **tokens)
    await use(database, customer.org_id, START, kind="embedding", **tokens)
    await use(database, customer.org_id, START, price_version=2, **tokens)
    await claims.claim_due(database, START + 17 * MINUTE)
    (row,) = await outbox_of(database, customer.org_id)
    own = 6 * 150 + 4 * 75 + 3 * 600
    assert row.value == own + 10 * 100 + 10 * 20 + 6 * 100 + 4 * 50 + 3 * 400


def test_the_identifier_of_a_window_never_changes() -> None:
    org_id = UUID("01935f6e-0000-7000-8000-000000000001")
    made = claims.identifier(org_id, "tollgate_usage", START, 0)
    assert str(made) == "5cc05e78-e998-5a99-8b52-6b98798d26a1"
    assert made != claims.identifier(org_id, "tollgate_usage", START, 1)


@pytest.mark.parametrize(("late", "is_claimed"), [(59 * SECOND, False), (61 * SECOND, True)])
async def test_a_window_is_closed_a_minute_after_its_end(database: Database, late: timedelta, is_claimed: bool) -> None:
    customer = await make_customer(database)
    await use(database, customer.org_id, START)
    await claims.claim_due(database, START + 15 * MINUTE + late)
    assert await values(database, customer) == [1] * is_claimed


async def test_a_transaction_that_runs_may_still_write(database: Database) -> None:
    """What it bills bears the time of its beginning."""
    async with database.begin() as writer, database.begin() as connection:
        assert (await connection.execute(claims._OLDEST)).scalar_one() is None
        await writer.execute(text("SELECT 1"))
    async with database.begin() as writer:
        await writer.execute(text("SELECT 1"))
        async with database.begin() as connection:
            assert (await connection.execute(claims._OLDEST)).scalar_one() > timedelta()
            assert await claims.horizon(connection, START) == START - MINUTE


@pytest.mark.parametrize(
    ("oldest", "expected"),
    [(None, 1), (timedelta(), 1), (59 * SECOND, 1), (5 * MINUTE, 5), (3 * 60 * MINUTE, 10)],
)
def test_a_window_waits_for_who_may_still_write_into_it(oldest: timedelta | None, expected: int) -> None:
    assert claims.lag(oldest) == expected * MINUTE


async def test_the_two_sides_of_a_period_end_fall_into_two_periods(database: Database) -> None:
    customer = await make_customer(database)
    await make_period(database, customer.subscription_id, END, END + MONTH)
    await use(database, customer.org_id, END - MICROSECOND, tokens=3)
    await use(database, customer.org_id, END, tokens=5)
    await claims.claim_due(database, END + 20 * MINUTE)
    before, after = await outbox_of(database, customer.org_id)
    assert (before.value, before.event_ts) == (3 * TOKEN_VALUE, END - SECOND)
    assert (after.value, after.window_start) == (5 * TOKEN_VALUE, END)
    async with database.begin() as connection:
        first = await claims.value_between(connection, customer.subscription_id, START, END)
        second = await claims.value_between(connection, customer.subscription_id, END, END + MONTH)
    assert (first, second) == (3 * TOKEN_VALUE, 5 * TOKEN_VALUE)


async def test_a_period_that_ends_in_mid_window_cuts_it(database: Database) -> None:
    end = START + 2 * WINDOW + 4 * MINUTE + 7 * SECOND
    customer = await make_customer(database, end=end)
    await make_period(database, customer.subscription_id, end, end + MONTH)
    await use(database, customer.org_id, end - MICROSECOND, end)
    await claims.claim_due(database, end + 30 * MINUTE)
    before, after = await outbox_of(database, customer.org_id)
    assert (before.window_start, before.window_end) == (START + 2 * WINDOW, end)
    assert (after.window_start, after.window_end) == (end, START + 3 * WINDOW)


async def test_usage_after_the_last_known_period_waits_for_the_renewal(database: Database) -> None:
    customer = await make_customer(database)
    await use(database, customer.org_id, END + 20 * MINUTE)
    await claims.claim_due(database, END + 50 * MINUTE)
    await claims.flush(database, customer.org_id, END + 50 * MINUTE)
    assert await values(database, customer) == []
    await make_period(database, customer.subscription_id, END, END + MONTH)
    await claims.claim_due(database, END + 50 * MINUTE)
    assert await values(database, customer) == [1]


async def test_a_late_row_goes_with_the_next_window(database: Database) -> None:
    customer = await make_customer(database)
    await use(database, customer.org_id, START + MINUTE)
    await claims.claim_due(database, START + 17 * MINUTE)
    await use(database, customer.org_id, START + 2 * MINUTE, tokens=5)
    await claims.claim_due(database, START + 32 * MINUTE)
    assert await values(database, customer) == [1, 5]
    assert await unclaimed(database, customer.org_id) == []


async def test_a_late_row_of_a_closed_period_is_carried_over(database: Database) -> None:
    customer = await make_customer(database)
    await claims.claim_due(database, END + 2 * MINUTE)
    await make_period(database, customer.subscription_id, END, END + MONTH)
    await use(database, customer.org_id, END - MINUTE)
    await claims.claim_due(database, END + 20 * MINUTE)
    (row,) = await outbox_of(database, customer.org_id)
    assert row.event_ts == END + 15 * MINUTE - SECOND


@pytest.mark.parametrize(("late", "event_ts"), [(54 * MINUTE, END - SECOND), (55 * MINUTE, END + WINDOW - SECOND)])
async def test_what_an_invoice_can_take_no_more_is_carried_over(
    database: Database, late: timedelta, event_ts: datetime
) -> None:
    """The worker was away when the period ended."""
    customer = await make_customer(database)
    await make_period(database, customer.subscription_id, END, END + MONTH)
    await use(database, customer.org_id, END - MINUTE)
    await claims.claim_due(database, END + late)
    (row,) = await outbox_of(database, customer.org_id)
    assert row.event_ts == event_ts
    assert [period.claimed_until >= END for period in await periods_of(database, customer)] == [True, True]


async def test_what_was_invoiced_early_takes_no_more(database: Database) -> None:
    customer = await make_customer(database)
    await make_period(database, customer.subscription_id, END, END + MONTH)
    await use(database, customer.org_id, END - MINUTE)
    async with database.begin() as connection:
        await connection.execute(insert(Invoice).values(**invoice(customer, created=END, finalized_at=END + MINUTE)))
    await claims.claim_due(database, END + 20 * MINUTE)
    (row,) = await outbox_of(database, customer.org_id)
    assert row.event_ts > END


def invoice(customer: Customer, **times: datetime) -> dict[str, Any]:
    amounts = dict.fromkeys(("subtotal", "total", "amount_due", "amount_paid"), 0)
    terms = {"id": f"in_{customer.org_id}", "org_id": customer.org_id, "status": "open", "lines": [], **amounts}
    period = {"period_start": START, "period_end": END, "synced_at": END}
    return {**terms, **period, **times, "stripe_subscription_id": f"sub_{customer.subscription_id}"}


async def test_nothing_is_claimed_of_a_trial_and_of_what_was_used_before(database: Database) -> None:
    customer = await make_customer(database, START + MONTH, START + 2 * MONTH)
    await make_period(database, customer.subscription_id, START, START + MONTH, is_trial=True)
    await use(database, customer.org_id, START - MINUTE, START + MINUTE, START + MONTH - MICROSECOND)
    await use(database, customer.org_id, START + MONTH, tokens=5)
    for at in (START + 20 * MINUTE, START + MONTH + 20 * MINUTE):
        await claims.claim_due(database, at)
        await claims.flush(database, customer.org_id, at)
    assert await values(database, customer) == [5]


async def test_prepaid_usage_is_never_metered(database: Database) -> None:
    customer = await make_customer(database)
    await use(database, customer.org_id, START, is_prepaid=True)
    await claims.claim_due(database, START + 20 * MINUTE)
    assert await values(database, customer) == []


async def test_other_organisations_are_left_alone(database: Database) -> None:
    customer, other = await make_customer(database), await make_customer(database)
    free = await make_customer(database, START + MONTH, START + 2 * MONTH)
    for one in (customer, other, free):
        await use(database, one.org_id, START)
    await claims.claim_due(database, START + 20 * MINUTE)
    assert [await values(database, one) for one in (customer, other, free)] == [[1], [1], []]


async def test_usage_that_costs_nothing_makes_no_event(database: Database) -> None:
    customer = await make_customer(database)
    await use(database, customer.org_id, START, tokens=0)
    await claims.claim_due(database, START + 20 * MINUTE)
    assert await values(database, customer) == []
    assert await unclaimed(database, customer.org_id) == []


@pytest.mark.parametrize("status", ["incomplete", "incomplete_expired"])
async def test_a_subscription_that_was_never_paid_for_meters_nothing(database: Database, status: str) -> None:
    customer = await make_customer(database)
    await use(database, customer.org_id, START)
    async with database.begin() as connection:
        await connection.execute(text("UPDATE subscriptions SET status = :status"), {"status": status})
    await claims.claim_due(database, START + 20 * MINUTE)
    assert await values(database, customer) == []


@pytest.mark.parametrize("is_used", [False, True])
async def test_a_subscription_that_ended_with_its_customer_is_over_one_day(database: Database, is_used: bool) -> None:
    """Its last minutes are on no invoice."""
    ended_at = START + 5 * MINUTE
    customer = await make_customer(database, end=ended_at)
    if is_used:
        await use(database, customer.org_id, START)
    async with database.begin() as connection:
        await connection.execute(text("UPDATE orgs SET stripe_customer_id = NULL"))
        ended = text("UPDATE subscriptions SET status = 'canceled', ended_at = :at, is_current = false")
        await connection.execute(ended, {"at": ended_at})
    for late, is_over in ((20 * MINUTE, not is_used), (DRAFT, True)):
        now = ended_at + late
        await claims.claim_due(database, now)
        (period,) = await periods_of(database, customer)
        assert (period.claimed_until == ended_at) is is_over
        async with database.begin() as connection:
            assert await claims.claimed_until(connection, now) == now
    assert await values(database, customer) == []
    assert len(await find_unclaimed_usage(database)) == is_used


async def test_idle_time_is_passed_in_one_step(database: Database) -> None:
    """A worker that was away for weeks."""
    customer = await make_customer(database)
    await use(database, customer.org_id, START + timedelta(days=20))
    statements = 0

    def count(*_: object) -> None:
        nonlocal statements
        statements += 1

    listen.listen(database.engine.sync_engine, "before_cursor_execute", count)
    await claims.claim_due(database, START + timedelta(days=29))
    assert statements < 40
    (row,) = await outbox_of(database, customer.org_id)
    assert row.window_start == START + timedelta(days=20)
    (period,) = await periods_of(database, customer)
    assert period.claimed_until == START + timedelta(days=29) - WINDOW


async def test_of_two_that_live_the_newer_meters(database: Database) -> None:
    """A customer who has bought twice; the first is ended, and bills what was used until the second began."""
    customer = await make_customer(database)
    begins = START + 3 * MINUTE
    async with database.begin() as connection:
        await connection.execute(text("UPDATE subscriptions SET is_current = false"))
    second = await make_subscription(database, customer.org_id, begins)
    await make_period(database, second, begins, begins + MONTH)
    await use(database, customer.org_id, START, begins - MICROSECOND, begins, START + 5 * MINUTE)
    await claims.claim_due(database, START + 20 * MINUTE)
    rows = await outbox_of(database, customer.org_id)
    found = {(row.subscription_id, row.value // TOKEN_VALUE) for row in rows}
    assert found == {(customer.subscription_id, 2), (second, 2)}


async def test_two_windows_with_one_beginning_are_two_events(database: Database) -> None:
    """Which of two subscriptions is the current one changes between two claims."""
    customer = await make_customer(database)
    second = await make_subscription(database, customer.org_id, START, is_current=False)
    await make_period(database, second, START, END)
    await use(database, customer.org_id, START)
    await claims.flush(database, customer.org_id, START + MINUTE)
    async with database.begin() as connection:
        await connection.execute(text("UPDATE subscriptions SET is_current = false"))
        await connection.execute(
            text("UPDATE metering_periods SET claimed_until = :start WHERE subscription_id = :id"),
            {"start": START, "id": second},
        )
    await use(database, customer.org_id, START)
    await claims.claim_due(database, START + 20 * MINUTE)
    rows = await outbox_of(database, customer.org_id)
    assert sum(row.value for row in rows) == 2 * TOKEN_VALUE
    assert len({row.identifier for row in rows}) == 2


async def test_a_flush_claims_up_to_the_whole_second(database: Database) -> None:
    customer = await make_customer(database)
    now = START + 4 * MINUTE + 7 * SECOND + 500_000 * MICROSECOND
    await use(database, customer.org_id, START, now - SECOND, now - 2 * MICROSECOND)
    await claims.flush(database, customer.org_id, now)
    (row,) = await outbox_of(database, customer.org_id)
    cut = now.replace(microsecond=0)
    assert (row.value, row.window_end, row.event_ts) == (2 * TOKEN_VALUE, cut, cut - SECOND)
    await claims.claim_due(database, START + 20 * MINUTE)
    _, rest = await outbox_of(database, customer.org_id)
    assert (rest.value, rest.window_start, rest.window_end) == (TOKEN_VALUE, cut, START + WINDOW)


async def test_a_flush_twice_claims_nothing_twice(database: Database) -> None:
    customer = await make_customer(database)
    await use(database, customer.org_id, START)
    for _ in range(2):
        await claims.flush(database, customer.org_id, START + 5 * MINUTE)
    await claims.flush(database, customer.org_id, START + 4 * MINUTE)
    assert await values(database, customer) == [1]


async def test_a_flush_of_nothing_moves_on(database: Database) -> None:
    customer = await make_customer(database)
    await claims.flush(database, customer.org_id, START + 5 * MINUTE)
    (period,) = await periods_of(database, customer)
    assert period.claimed_until == START + 5 * MINUTE


async def test_a_flush_right_after_a_period_leaves_its_last_rows_to_it(database: Database) -> None:
    """Somebody may still be writing into the period that is over."""
    customer = await make_customer(database)
    await make_period(database, customer.subscription_id, END, END + MONTH)
    await use(database, customer.org_id, END - MICROSECOND, tokens=3)
    await use(database, customer.org_id, END + SECOND, tokens=5)
    await claims.flush(database, customer.org_id, END + 10 * SECOND)
    (row,) = await outbox_of(database, customer.org_id)
    assert (row.value, row.window_start) == (5 * TOKEN_VALUE, END)
    await claims.claim_due(database, END + 2 * MINUTE)
    rows = await outbox_of(database, customer.org_id)
    assert [(row.value // TOKEN_VALUE, row.event_ts < END) for row in rows] == [(3, True), (5, False)]


async def test_claims_at_once_claim_each_row_once(database: Database) -> None:
    customer = await make_customer(database)
    await use(database, customer.org_id, *(START + minute * MINUTE for minute in range(120)))
    now = START + 3 * 60 * MINUTE
    await asyncio.gather(
        *(claims.claim_due(database, now) for _ in range(4)),
        *(claims.flush(database, customer.org_id, now) for _ in range(4)),
    )
    assert sum(await values(database, customer)) == 120
    assert await unclaimed(database, customer.org_id) == []


async def test_rows_without_a_price_stop_nobody_else(database: Database) -> None:
    broken, customer = await make_customer(database), await make_customer(database)
    await use(database, broken.org_id, START, price_version=99)
    await use(database, customer.org_id, START)
    with pytest.raises(DataError, match="price version 99"):
        await claims.claim_due(database, START + 20 * MINUTE)
    assert await values(database, customer) == [1]
    assert await unclaimed(database, broken.org_id) == [START]


async def test_what_the_database_refuses_of_one_stops_nobody_else(database: Database) -> None:
    broken, customer = await make_customer(database), await make_customer(database)
    for one in (broken, customer):
        await use(database, one.org_id, START)
    async with database.begin() as connection:
        taken = {
            "org_id": customer.org_id,
            "subscription_id": customer.subscription_id,
            "identifier": claims.identifier(broken.org_id, METER, START, 0),
            "window_start": START - WINDOW,
            "window_end": START,
            "event_ts": START - SECOND,
        }
        await connection.execute(insert(MeterOutbox).values(**taken, stripe_customer_id="cus", meter=METER, value=1))
    with pytest.raises(DBAPIError, match="identifier"):
        await claims.claim_due(database, START + 20 * MINUTE)
    assert await values(database, customer) == [0, 1]
    assert await unclaimed(database, broken.org_id) == [START]


async def test_more_than_one_event_can_say_becomes_several(database: Database) -> None:
    customer, other = await make_customer(database), await make_customer(database)
    moments = [START, START + MICROSECOND, START + 14 * MINUTE, START + WINDOW]
    await use(database, customer.org_id, *moments, tokens=MOST_TOKENS)
    await use(database, other.org_id, START)
    await claims.claim_due(database, START + 20 * MINUTE)
    rows = await outbox_of(database, customer.org_id)
    assert [(row.value, row.seq, row.window_start) for row in rows] == [
        (MOST_TOKENS * TOKEN_VALUE, seq, START) for seq in range(3)
    ]
    assert len({row.identifier for row in rows}) == 3
    assert await values(database, other) == [1]
    assert await unclaimed(database, customer.org_id) == [START + WINDOW]
    assert [period.claimed_until for period in await periods_of(database, customer)] == [START + WINDOW]
    assert await find_unlike_claims(database) == []


async def test_an_event_says_as_much_as_it_can(database: Database) -> None:
    customer = await make_customer(database)
    await use(database, customer.org_id, START, tokens=MOST_TOKENS - 1)
    await use(database, customer.org_id, START + MINUTE)
    await claims.claim_due(database, START + 20 * MINUTE)
    assert await values(database, customer) == [MOST_TOKENS]


async def test_what_cannot_be_said_at_all_stops_nobody_else(database: Database) -> None:
    broken, customer = await make_customer(database), await make_customer(database)
    await use(database, broken.org_id, START, START, tokens=MOST_TOKENS)
    await use(database, customer.org_id, START)
    with pytest.raises(DataError, match="more than a meter event can say"):
        await claims.claim_due(database, START + 20 * MINUTE)
    assert await values(database, customer) == [1]
    assert len(await unclaimed(database, broken.org_id)) == 2


async def test_what_an_event_says_cannot_be_changed(database: Database) -> None:
    customer = await make_customer(database)
    await use(database, customer.org_id, START)
    await claims.claim_due(database, START + 20 * MINUTE)
    for change in ("value = value + 1", "event_ts = now()", "identifier = gen_random_uuid()"):
        with pytest.raises(DBAPIError, match="does not change"):
            async with database.begin() as connection:
                await connection.execute(text(f"UPDATE stripe_meter_outbox SET {change}"))


# Any order of what can happen.

# Its end cuts a window.
LENGTH = timedelta(hours=2, minutes=7, seconds=13)
NOTHING = st.none()
STEPS = st.one_of(
    st.tuples(st.just("wait"), st.sampled_from([1, 20, 59, 61, 300, 900, 1800, 3400, 7700, 11_000])),
    st.tuples(st.just("approach"), st.sampled_from([-30, -1, 0, 1, 20, 70, 900, 3299, 3300, 3700])),
    st.tuples(st.just("use"), st.sampled_from([0, 0, 1, 30, 1000, 8000])),
    st.tuples(st.just("edge"), st.sampled_from([-1, 0])),
    st.tuples(st.just("renew"), NOTHING),
    st.tuples(st.just("claim"), NOTHING),
    st.tuples(st.just("flush"), NOTHING),
    st.tuples(st.just("crash"), st.integers(0, 14)),
)


class Crash(Exception):
    """The worker was killed between two statements."""


class Story:
    """A customer whose periods are two hours long, and what happened to each row."""

    def __init__(self, database: Database, customer: Customer) -> None:
        self.database = database
        self.customer = customer
        self.now = START
        self.periods = [(START, START + LENGTH)]
        self.open_at_birth: dict[UUID, bool] = {}
        self.claimed_at: dict[UUID, datetime] = {}

    async def do(self, step: str, argument: int | None) -> None:
        match step:
            case "wait":
                self.now += timedelta(seconds=argument or 0)
            case "approach":
                # The end of the last period that is known.
                self.now = max(self.now, self.periods[-1][1] + timedelta(seconds=argument or 0))
            case "use":
                await self.use(max(START, self.now - timedelta(seconds=argument or 0)))
            case "edge":
                # Of the period that ended last.
                ends = [end for _, end in self.periods if end <= self.now]
                if ends:
                    await self.use(ends[-1] + (argument or 0) * MICROSECOND)
            case "renew":
                await self.renew()
            case "claim":
                await self.claiming(lambda: claims.claim_due(self.database, self.now))
            case "flush":
                await self.claiming(lambda: claims.flush(self.database, self.customer.org_id, self.now))
            case "crash":
                await self.claiming(lambda: self.crash(argument or 0))

    async def use(self, at: datetime) -> None:
        known = {row.id for row in await rows_of(self.database, "usage_events", self.customer.org_id)}
        is_open = True
        for period in await periods_of(self.database, self.customer):
            if period.period_start <= at < period.period_end:
                is_open = period.claimed_until < period.period_end
        await use(self.database, self.customer.org_id, at)
        rows = await rows_of(self.database, "usage_events", self.customer.org_id)
        self.open_at_birth |= {row.id: is_open for row in rows if row.id not in known}

    async def renew(self) -> None:
        start = self.periods[-1][1]
        if self.now >= start:
            self.periods.append((start, start + LENGTH))
            await make_period(self.database, self.customer.subscription_id, start, start + LENGTH)

    async def claiming(self, act: Callable[[], Awaitable[None]]) -> None:
        await act()
        for row in await rows_of(self.database, "usage_events", self.customer.org_id):
            if row.claim_id is not None:
                self.claimed_at.setdefault(row.id, self.now)

    async def crash(self, after: int) -> None:
        seen = 0

        def kill(*_: object) -> None:
            nonlocal seen
            seen += 1
            if seen > after:
                raise Crash

        listen.listen(self.database.engine.sync_engine, "before_cursor_execute", kill)
        try:
            await claims.claim_due(self.database, self.now)
        except Crash:
            pass
        finally:
            listen.remove(self.database.engine.sync_engine, "before_cursor_execute", kill)

    async def end(self) -> None:
        """Let everything come to its end."""
        while self.periods[-1][1] <= self.now + WINDOW:
            self.now = max(self.now, self.periods[-1][1])
            await self.renew()
        self.now += 2 * WINDOW
        await self.do("claim", None)
        if self.now >= self.periods[-1][1]:
            await self.renew()
            await self.do("claim", None)

    def period_of(self, at: datetime) -> int:
        return next(number for number, (start, end) in enumerate(self.periods) if start <= at < end)


@given(st.lists(STEPS, min_size=4, max_size=30))
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_any_order_claims_every_row_once_in_its_period(
    database: Database, steps: list[tuple[str, int | None]]
) -> None:
    story = Story(database, await make_customer(database, START, START + LENGTH))
    try:
        for step, argument in steps:
            await story.do(step, argument)
        await story.end()
        await check(story)
    finally:
        # The next example has this one's rows no more.
        async with database.begin() as connection:
            await connection.execute(
                text("TRUNCATE usage_events, stripe_meter_outbox, metering_periods, subscriptions")
            )


async def check(story: Story) -> None:
    usage = await rows_of(story.database, "usage_events", story.customer.org_id)
    events = {row.id: row for row in await outbox_of(story.database, story.customer.org_id)}
    for row in usage:
        made = events[row.claim_id]
        home, found, claimed_at = (
            story.period_of(row.billed_at),
            story.period_of(made.event_ts),
            story.claimed_at[row.id],
        )
        assert row.billed_at <= made.event_ts + SECOND
        in_time = story.open_at_birth[row.id] and claimed_at < story.periods[home][1] + DRAFT
        assert found == home if in_time else found > home
        assert claimed_at < story.periods[found][1] + DRAFT
    for made in events.values():
        assert made.value == TOKEN_VALUE * sum(row.claim_id == made.id for row in usage)
        number = story.period_of(made.event_ts)
        assert story.periods[number][0] <= made.window_start < made.window_end <= story.periods[number][1]
    ordered = sorted(events.values(), key=lambda made: made.window_start)
    assert all(before.window_end <= after.window_start for before, after in pairwise(ordered))
