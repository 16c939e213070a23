"""Subscriptions as Stripe last told them: however often and in whatever order it is read, the newest reading stays."""

import asyncio
import itertools
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text, update

from app.billing import subscriptions
from app.billing.subscriptions import project
from app.db import Database
from app.errors import Conflict
from app.tables import CatalogPrice, Org
from tests.billing.stripe_objects import (
    CUSTOMER,
    END,
    MID,
    NEXT,
    START,
    Object,
    make_customer,
    price_id,
    subscription,
    unix,
)
from tests.factories import make_org

LATER = START + timedelta(minutes=1)
A_SECOND = timedelta(seconds=1)


async def write(database: Database, snapshot: Object, at: datetime = START, **terms: Any) -> UUID | None:
    async with database.begin() as connection:
        return await project(connection, snapshot, at, **terms)


async def rows(database: Database, statement: str) -> list[Any]:
    async with database.begin() as connection:
        return list((await connection.execute(text(statement))).all())


async def row(database: Database, id: str = "sub_1") -> Any:
    (found,) = await rows(database, f"SELECT * FROM subscriptions WHERE stripe_subscription_id = '{id}'")
    return found


async def periods(database: Database) -> list[tuple[Any, ...]]:
    found = await rows(
        database, "SELECT period_start, period_end, is_trial, claimed_until FROM metering_periods ORDER BY 1"
    )
    return [tuple(one) for one in found]


async def test_a_subscription_is_written_as_stripe_has_it(database: Database) -> None:
    org_id = await make_customer(database)
    snapshot = subscription(
        plan="growth", cancel_at_period_end=True, cancel_at=unix(END), current=None, schedule="sub_sched_1"
    )
    assert await write(database, snapshot) == org_id
    found = await row(database)
    assert (found.org_id, found.plan, found.plan_version, found.billing_interval) == (org_id, "growth", 1, "month")
    assert (found.status, found.started_at, found.period_start, found.period_end) == ("active", START, START, END)
    assert (found.cancel_at_period_end, found.cancel_at, found.ended_at, found.trial_end) == (True, END, None, None)
    assert (found.stripe_schedule_id, found.pending_plan, found.is_current) == ("sub_sched_1", None, True)
    assert (found.snapshot, found.synced_at, found.past_due_since) == (snapshot, START, None)
    assert await periods(database) == [(START, END, False, START)]


async def test_a_yearly_plan_is_metered_by_the_month(database: Database) -> None:
    await make_customer(database)
    year = START.replace(year=2028)
    await write(database, subscription(interval="year", end=year, metered=(START, END)))
    found = await row(database)
    assert (found.billing_interval, found.period_start, found.period_end) == ("year", START, year)
    assert await periods(database) == [(START, END, False, START)]


async def test_an_older_reading_never_replaces_a_newer_one(database: Database) -> None:
    org_id = await make_customer(database)
    await write(database, subscription(plan="growth"), LATER)
    assert await write(database, subscription(start=MID, end=NEXT, status="canceled", ended_at=unix(MID))) == org_id
    found = await row(database)
    assert (found.plan, found.status, found.is_current, found.synced_at) == ("growth", "active", True, LATER)
    assert await periods(database) == [(START, END, False, START)]


@pytest.mark.slow
async def test_every_order_of_readings_leaves_the_last_one(database: Database) -> None:
    """A life of six readings, written in each of 720 orders."""
    await make_customer(database)
    trial: Object = {"trial_start": unix(START), "trial_end": unix(MID)}
    life = [
        subscription(end=MID, status="incomplete", **trial),
        subscription(end=MID, status="trialing", **trial),
        subscription(start=MID, end=NEXT, **trial),
        subscription(start=MID, end=NEXT, plan="growth", status="past_due", **trial),
        subscription(start=MID, end=NEXT, plan="growth", cancel_at_period_end=True, **trial),
        subscription(start=MID, end=NEXT, plan="growth", status="canceled", ended_at=unix(END), **trial),
    ]
    columns = "plan, status, period_start, ended_at, past_due_since, cancel_at_period_end, is_current, synced_at"
    async with database.begin() as connection:
        for order in itertools.permutations(range(6)):
            attempt = await connection.begin_nested()
            for position in order:
                await project(connection, life[position], START + position * A_SECOND)
            found = (await connection.execute(text(f"SELECT {columns} FROM subscriptions"))).one()
            assert found == ("growth", "canceled", MID, END, None, False, False, START + 5 * A_SECOND)
            spans = (await connection.execute(text("SELECT period_start, period_end FROM metering_periods"))).all()
            # Of a period nobody may hear until it is over; if anybody did, it ended with the subscription.
            assert {tuple(span) for span in spans} <= {(START, MID), (MID, END)}
            await attempt.rollback()


async def test_renewals_add_a_period_and_a_second_telling_does_not(database: Database) -> None:
    await make_customer(database)
    await write(database, subscription())
    for _ in range(2):
        await write(database, subscription(start=END, end=NEXT) | {"start_date": unix(START)}, LATER)
    assert await periods(database) == [(START, END, False, START), (END, NEXT, False, END)]
    assert (await row(database)).started_at == START


async def test_a_trial_is_a_period_of_its_own_that_is_not_metered(database: Database) -> None:
    await make_customer(database)
    trial: Object = {"status": "trialing", "trial_start": unix(START), "trial_end": unix(MID)}
    await write(database, subscription(end=MID, **trial))
    await write(database, subscription(start=MID, end=NEXT, **trial | {"status": "active"}), LATER)
    assert await periods(database) == [(START, MID, True, START), (MID, NEXT, False, MID)]
    assert (await row(database)).trial_end == MID


async def test_a_trial_that_is_cut_short_ends_its_period(database: Database) -> None:
    await make_customer(database)
    trial: Object = {"trial_start": unix(START), "trial_end": unix(END)}
    await write(database, subscription(status="trialing", **trial))
    shorter: Object = {"trial_start": unix(START), "trial_end": unix(MID)}
    await write(database, subscription(start=MID, end=NEXT, **shorter), LATER)
    assert await periods(database) == [(START, MID, True, START), (MID, NEXT, False, MID)]


async def test_what_was_claimed_stays_inside_its_period(database: Database) -> None:
    """Windows are closed by our clock; the end of a subscription may be told to us later."""
    await make_customer(database)
    await write(database, subscription())
    claimed = MID + timedelta(minutes=15)
    async with database.begin() as connection:
        await connection.execute(text("UPDATE metering_periods SET claimed_until = :at"), {"at": claimed})
    await write(database, subscription(status="canceled", ended_at=unix(MID)), LATER)
    assert await periods(database) == [(START, claimed, False, claimed)]


async def test_a_period_that_begins_anew_in_the_middle_goes_on_from_what_was_claimed(database: Database) -> None:
    await make_customer(database)
    await write(database, subscription())
    claimed = MID + timedelta(minutes=5)
    async with database.begin() as connection:
        await connection.execute(text("UPDATE metering_periods SET claimed_until = :at"), {"at": claimed})
    await write(database, subscription(metered=(MID, NEXT)), LATER)
    assert await periods(database) == [(START, claimed, False, claimed), (MID, NEXT, False, claimed)]


async def test_only_a_subscription_that_lives_is_metered(database: Database) -> None:
    await make_customer(database)
    for status in ("incomplete", "paused", "incomplete_expired"):
        ended: Object = {"ended_at": unix(MID)} if status == "incomplete_expired" else {}
        await write(database, subscription(status=status, **ended), LATER)
        assert not (await row(database)).is_current
    assert await periods(database) == []


async def test_a_subscription_without_a_metered_price_yet_has_no_period(database: Database) -> None:
    """By the year it is bought without; the price is added in a moment."""
    await make_customer(database)
    bought = subscription(interval="year", end=START.replace(year=2028))
    bought["items"]["data"].pop()
    await write(database, bought)
    assert (await row(database)).is_current
    assert await periods(database) == []


async def test_of_several_that_live_the_newest_is_current(database: Database) -> None:
    await make_customer(database)
    newer = subscription("sub_2", plan="growth", start=MID, end=NEXT)
    await write(database, newer)
    await write(database, subscription())
    assert [(await row(database, id)).is_current for id in ("sub_1", "sub_2")] == [False, True]
    await write(database, newer | {"status": "canceled", "ended_at": unix(END)}, LATER)
    assert [(await row(database, id)).is_current for id in ("sub_1", "sub_2")] == [True, False]


async def test_one_that_waits_for_its_first_payment_does_not_take_the_place_of_another(database: Database) -> None:
    await make_customer(database)
    await write(database, subscription())
    await write(database, subscription("sub_2", start=MID, end=NEXT, status="incomplete"))
    assert [(await row(database, id)).is_current for id in ("sub_1", "sub_2")] == [True, False]


async def test_a_hundred_tellings_at_once_are_one_row_with_one_period(database: Database) -> None:
    await make_customer(database)
    await asyncio.gather(*(write(database, subscription(), START + n * A_SECOND) for n in range(100)))
    assert (await row(database)).synced_at == START + 99 * A_SECOND
    assert len(await periods(database)) == 1


async def test_past_due_since_is_what_stripe_says_and_is_kept_where_it_is_not_known(database: Database) -> None:
    await make_customer(database)
    overdue = subscription(status="past_due")
    await write(database, overdue, MID, open_since=START)
    assert (await row(database)).past_due_since == START
    await write(database, overdue, MID + A_SECOND)
    assert (await row(database)).past_due_since == START
    await write(database, subscription(), MID + 2 * A_SECOND)
    assert (await row(database)).past_due_since is None
    await write(database, overdue, MID + 3 * A_SECOND)
    assert (await row(database)).past_due_since == MID + 3 * A_SECOND
    await write(database, overdue, MID + 4 * A_SECOND, open_since=MID)
    assert (await row(database)).past_due_since == MID


@pytest.mark.parametrize(
    ("plan", "interval", "expected"),
    [("starter", "month", "starter"), ("starter", "year", "starter"), ("growth", "year", None)],
)
async def test_a_plan_that_is_to_come_is_read_from_the_schedule(
    database: Database, plan: str, interval: Any, expected: str | None
) -> None:
    await make_customer(database)
    flat, usage = price_id(plan, "flat", interval), price_id(plan, "usage", "month")
    schedule = {
        "id": "sub_sched_1",
        "status": "active",
        "current_phase": {"start_date": unix(START), "end_date": unix(END)},
        "phases": [
            {"start_date": unix(START), "items": [{"price": price_id("starter", "flat", "month")}]},
            {"start_date": unix(END), "items": [{"price": usage}, {"price": {"id": flat}}, {"price": "price_other"}]},
        ],
    }
    bought = subscription(plan="growth", interval="year", end=START.replace(year=2028), schedule=schedule)
    await write(database, bought)
    found = await row(database)
    assert (found.pending_plan, found.stripe_schedule_id) == (expected, "sub_sched_1")
    await write(database, bought | {"schedule": schedule | {"status": "released"}}, LATER)
    assert (await row(database)).pending_plan is None
    waiting = schedule | {"status": "not_started", "current_phase": None}
    await write(database, bought | {"schedule": waiting}, LATER + A_SECOND)
    assert (await row(database)).pending_plan == "starter"


async def test_a_price_is_known_by_its_id_where_its_lookup_key_has_gone_to_another(database: Database) -> None:
    await make_customer(database)
    bought = subscription(plan="growth")
    for item in bought["items"]["data"]:
        item["price"]["lookup_key"] = None
    await write(database, bought)
    assert (await row(database)).plan == "growth"
    assert await periods(database) == [(START, END, False, START)]


async def test_prices_that_are_not_ours_are_refused_unless_the_subscription_is_known(database: Database) -> None:
    await make_customer(database)
    foreign = subscription(plan="growth")
    for item in foreign["items"]["data"]:
        item["price"] = {"id": "price_other", "lookup_key": "other"}
    with pytest.raises(Conflict, match="no price of the catalogue") as refused:
        await write(database, foreign)
    assert refused.value.code == "unknown_price"
    await write(database, subscription())
    await write(database, foreign, LATER)
    found = await row(database)
    assert (found.plan, found.synced_at) == ("starter", LATER)


async def test_what_belongs_to_nobody_here_is_left_alone(database: Database) -> None:
    await make_customer(database, "cus_other")
    for metadata in ({}, {"org_id": str(uuid4())}, {"org_id": "not an id"}):
        assert await write(database, subscription(metadata=metadata)) is None
    assert await rows(database, "SELECT id FROM subscriptions") == []


async def test_the_metadata_says_whose_it_is_before_the_customer_is_known(database: Database) -> None:
    org_id = await make_customer(database, None)
    assert await write(database, subscription(metadata={"org_id": str(org_id)})) == org_id
    assert await rows(database, "SELECT stripe_customer_id FROM orgs") == [(CUSTOMER,)]


async def test_the_customer_decides_whatever_the_metadata_says(database: Database) -> None:
    org_id = await make_customer(database)
    other = await make_org(database, "Other")
    expanded = subscription(metadata={"org_id": str(other)}, customer={"id": CUSTOMER})
    assert await write(database, expanded) == org_id


async def test_another_customer_of_an_organisation_does_not_take_the_place_of_the_first(database: Database) -> None:
    org_id = await make_customer(database, "cus_first")
    assert await write(database, subscription(metadata={"org_id": str(org_id)})) == org_id
    assert await rows(database, "SELECT stripe_customer_id FROM orgs") == [("cus_first",)]


async def test_a_time_of_stripes_may_be_missing() -> None:
    assert subscriptions.moment(None) is None
    assert subscriptions.moment(unix(START)) == START


async def test_prices_may_have_changed_their_names(database: Database) -> None:
    """The catalogue's own table knows where a price lies, whatever it is called at Stripe now."""
    await make_customer(database)
    async with database.begin() as connection:
        await connection.execute(
            update(CatalogPrice)
            .where(CatalogPrice.stripe_price_id == price_id("growth", "flat", "month"))
            .values(stripe_price_id="price_moved")
        )
        await connection.execute(update(Org).values(stripe_customer_id=CUSTOMER))
    bought = subscription(plan="growth")
    bought["items"]["data"][0]["price"] = {"id": "price_moved", "lookup_key": None}
    await write(database, bought)
    assert (await row(database)).plan == "growth"
