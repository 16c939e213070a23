"""Changes of a subscription: when they begin, what they cost, and that nothing used is lost."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from app.billing import catalog, changes, claims, effects, outbox, sync
from app.billing.changes import Desk
from app.errors import BadRequest, Conflict, NotFound, StripeRefused, StripeUnavailable
from app.partitions import ensure_partitions
from tests.billing.metered import use
from tests.billing.stripe_world import GRACE, START, StripeWorld

MONTH_END = datetime(2027, 2, 28, 12, tzinfo=UTC)
YEAR_END = datetime(2028, 1, 31, 12, tzinfo=UTC)
MILLION = 1_000_000 * 150
"""A million tokens of input, in nano-USD."""


def desk(world: StripeWorld, org_id: UUID) -> Desk:
    return Desk(world.database, world.gateway, org_id, world.now, GRACE)


async def subscribed(
    world: StripeWorld, plan: str = "starter", interval: Any = "month", **terms: Any
) -> tuple[UUID, str]:
    """An organisation and its subscription, both sides knowing of it."""
    async with world.database.begin() as connection:
        await ensure_partitions(connection, START.date())
    org_id, customer = await world.customer()
    subscription = world.subscribe(customer, plan, interval)
    await world.settle()
    return org_id, subscription


async def held(world: StripeWorld, org_id: UUID) -> Any:
    (row,) = await world.rows("SELECT * FROM subscriptions WHERE org_id = :id AND is_current", id=org_id)
    return row


async def effects_of_all(world: StripeWorld) -> None:
    """Reads every subscription again."""
    for row in await world.rows("SELECT stripe_subscription_id AS id FROM subscriptions"):
        await effects.refresh(world.database, world.gateway, row.id, world.now, GRACE)


def decline(world: StripeWorld, subscription: str) -> None:
    """From now on the customer's card is not charged."""
    customer = world.v1.subscriptions.retrieve(subscription).customer
    world.simulator.control("POST", f"/customers/{customer}/decline")


def usage_lines(world: StripeWorld, plan: str) -> list[tuple[int, int]]:
    """Nano-USD and cents of the latest invoice's lines at a plan's price of usage."""
    price = world.price(plan, "usage")
    lines = latest_invoice(world).lines.data
    return [(line.quantity, line.amount) for line in lines if line.pricing.price_details.price == price]


def latest_invoice(world: StripeWorld) -> Any:
    return world.v1.invoices.list().data[0]


async def test_what_costs_more_begins_at_once_and_costs_what_was_shown(stripe_world: StripeWorld) -> None:
    org_id, _ = await subscribed(stripe_world)
    stripe_world.go(START + timedelta(days=14))
    seen = await changes.preview(desk(stripe_world, org_id), "growth", "month")
    assert seen.change.at is None
    assert sum(cents for _, cents in seen.lines) == seen.cents == 40_00  # half of what is between 19 and 99 dollars
    made = await changes.change_plan(desk(stripe_world, org_id), "growth", "month")
    assert made == seen.change
    invoice = latest_invoice(stripe_world)
    assert (invoice.status, invoice.total) == ("paid", seen.cents)
    # Without waiting for a webhook.
    assert (await held(stripe_world, org_id)).plan == "growth"
    assert await stripe_world.budget(org_id) == ("growth", "active", None)


async def test_credit_at_stripe_pays_for_a_change_as_shown(stripe_world: StripeWorld) -> None:
    org_id, subscription = await subscribed(stripe_world)
    customer = stripe_world.v1.subscriptions.retrieve(subscription).customer
    stripe_world.v1.customers.update(customer, {"balance": -30_00})
    seen = await changes.preview(desk(stripe_world, org_id), "growth", "month")
    assert (seen.total, seen.cents) == (80_00, 50_00)
    await changes.change_plan(desk(stripe_world, org_id), "growth", "month")
    assert latest_invoice(stripe_world).amount_paid == seen.cents


async def test_what_a_change_leaves_over_stays_as_credit_as_shown(stripe_world: StripeWorld) -> None:
    org_id, subscription = await subscribed(stripe_world, "starter", "year")
    coupon = stripe_world.v1.coupons.create({"percent_off": 90, "duration": "forever"})
    stripe_world.v1.subscriptions.update(subscription, {"discounts": [{"coupon": coupon.id}]})
    seen = await changes.preview(desk(stripe_world, org_id), "growth", "year")
    assert seen.total == seen.cents == 99_00 - 190_00
    await changes.change_plan(desk(stripe_world, org_id), "growth", "year")
    customer = stripe_world.v1.subscriptions.retrieve(subscription).customer
    assert stripe_world.v1.customers.retrieve(customer).balance == seen.cents


async def test_usage_up_to_a_change_is_billed_at_the_old_price(stripe_world: StripeWorld) -> None:
    org_id, _ = await subscribed(stripe_world)
    now = START + timedelta(days=14)
    # Included are a hundred million; the last two rows are of this very second, which is not over.
    await use(stripe_world.database, org_id, now - timedelta(seconds=1), tokens=120_000_000)
    await use(stripe_world.database, org_id, now, now, tokens=1_000_000)
    stripe_world.go(now)
    await changes.change_plan(desk(stripe_world, org_id), "growth", "month")
    assert usage_lines(stripe_world, "starter") == [(100 * MILLION, 0), (20 * MILLION, 3_00)]
    stripe_world.go(MONTH_END + timedelta(minutes=5))
    await claims.claim_due(stripe_world.database, stripe_world.now)
    await outbox.drain(stripe_world.database, stripe_world.gateway, now=stripe_world.now)
    stripe_world.go(MONTH_END + timedelta(hours=2))
    assert usage_lines(stripe_world, "growth") == [(2 * MILLION, 0)]


async def test_what_costs_less_waits_for_the_end_of_what_is_paid(stripe_world: StripeWorld) -> None:
    org_id, _ = await subscribed(stripe_world, "growth")
    seen = await changes.preview(desk(stripe_world, org_id), "starter", "month")
    assert (seen.change.at, seen.lines, seen.cents) == (MONTH_END, (), 0)
    await changes.change_plan(desk(stripe_world, org_id), "starter", "month")
    assert len(stripe_world.v1.invoices.list().data) == 1
    row = await held(stripe_world, org_id)
    assert (row.plan, row.pending_plan) == ("growth", "starter")
    stripe_world.go(MONTH_END + timedelta(hours=2))
    await stripe_world.settle()
    row = await held(stripe_world, org_id)
    assert (row.plan, row.pending_plan, row.stripe_schedule_id) == ("starter", None, row.stripe_schedule_id)
    assert latest_invoice(stripe_world).total == 19_00


async def test_who_bought_an_older_version_stays_on_it_and_may_choose_the_newer(
    stripe_world: StripeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    org_id, _ = await subscribed(stripe_world, "growth")
    newer = replace(catalog.plan("growth"), version=2, month_cents=89_00, year_cents=890_00)
    monkeypatch.setattr(catalog, "VERSIONS", {**catalog.VERSIONS, ("growth", 2): newer})
    monkeypatch.setattr(catalog, "PLANS", {**catalog.PLANS, "growth": newer})
    report = await sync.push(stripe_world.database, stripe_world.gateway, stripe_world.now)
    assert len(report.made) == 3
    await effects_of_all(stripe_world)
    row = await held(stripe_world, org_id)
    assert (row.plan, row.plan_version) == ("growth", 1)
    made = await changes.change_plan(desk(stripe_world, org_id), "growth", "month")
    assert made.at == MONTH_END
    row = await held(stripe_world, org_id)
    assert (row.plan_version, row.pending_plan) == (1, "growth")
    stripe_world.go(MONTH_END + timedelta(hours=2))
    await stripe_world.settle()
    row = await held(stripe_world, org_id)
    assert (row.plan_version, row.pending_plan) == (2, None)
    assert latest_invoice(stripe_world).total == 89_00


async def test_a_planned_change_can_be_planned_anew(stripe_world: StripeWorld) -> None:
    org_id, _ = await subscribed(stripe_world, "scale")
    await changes.change_plan(desk(stripe_world, org_id), "growth", "month")
    await changes.change_plan(desk(stripe_world, org_id), "starter", "month")
    assert (await held(stripe_world, org_id)).pending_plan == "starter"
    stripe_world.go(MONTH_END + timedelta(hours=2))
    await stripe_world.settle()
    assert (await held(stripe_world, org_id)).plan == "starter"


async def test_a_shorter_interval_waits_for_the_end_of_the_year(stripe_world: StripeWorld) -> None:
    org_id, _ = await subscribed(stripe_world, "starter", "year")
    made = await changes.change_plan(desk(stripe_world, org_id), "growth", "month")
    assert made.at == YEAR_END


async def test_a_longer_interval_begins_at_once(stripe_world: StripeWorld) -> None:
    org_id, _ = await subscribed(stripe_world)
    made = await changes.change_plan(desk(stripe_world, org_id), "starter", "year")
    assert made.at is None
    row = await held(stripe_world, org_id)
    assert (row.billing_interval, row.period_end) == ("year", YEAR_END)


@pytest.mark.parametrize(("interval", "end"), [("month", MONTH_END), ("year", YEAR_END)])
async def test_a_subscription_ends_with_what_is_paid(stripe_world: StripeWorld, interval: str, end: datetime) -> None:
    org_id, subscription = await subscribed(stripe_world, "growth", interval)
    for _ in range(2):
        await changes.cancel(desk(stripe_world, org_id))
    row = await held(stripe_world, org_id)
    assert (row.status, row.cancel_at) == ("active", end)
    stripe_world.go(end + timedelta(hours=2))
    await stripe_world.settle()
    assert stripe_world.v1.subscriptions.retrieve(subscription).status == "canceled"
    assert await stripe_world.budget(org_id) == ("free", "active", None)


async def test_an_end_can_be_withdrawn(stripe_world: StripeWorld) -> None:
    org_id, subscription = await subscribed(stripe_world, "growth")
    await changes.cancel(desk(stripe_world, org_id))
    for _ in range(2):
        await changes.resume(desk(stripe_world, org_id))
    assert (await held(stripe_world, org_id)).cancel_at is None
    stripe_world.go(MONTH_END + timedelta(hours=2))
    assert stripe_world.v1.subscriptions.retrieve(subscription).status == "active"


async def test_an_end_of_stripes_own_making_can_be_withdrawn(stripe_world: StripeWorld) -> None:
    org_id, subscription = await subscribed(stripe_world, "growth")
    stripe_world.v1.subscriptions.update(subscription, {"cancel_at_period_end": True})
    await changes.resume(desk(stripe_world, org_id))
    assert not stripe_world.v1.subscriptions.retrieve(subscription).cancel_at_period_end


async def test_a_planned_change_can_be_withdrawn(stripe_world: StripeWorld) -> None:
    org_id, _ = await subscribed(stripe_world, "growth")
    await changes.change_plan(desk(stripe_world, org_id), "starter", "month")
    await changes.resume(desk(stripe_world, org_id))
    assert (await held(stripe_world, org_id)).pending_plan is None
    stripe_world.go(MONTH_END + timedelta(hours=2))
    await stripe_world.settle()
    assert (await held(stripe_world, org_id)).plan == "growth"


async def test_a_change_withdraws_the_end_that_was_planned(stripe_world: StripeWorld) -> None:
    org_id, _ = await subscribed(stripe_world, "growth")
    await changes.cancel(desk(stripe_world, org_id))
    await changes.change_plan(desk(stripe_world, org_id), "scale", "month")
    row = await held(stripe_world, org_id)
    assert (row.plan, row.cancel_at) == ("scale", None)
    await changes.cancel(desk(stripe_world, org_id))
    await changes.change_plan(desk(stripe_world, org_id), "starter", "month")
    row = await held(stripe_world, org_id)
    assert (row.plan, row.pending_plan, row.cancel_at) == ("scale", "starter", None)


async def test_a_change_at_once_withdraws_one_that_waits(stripe_world: StripeWorld) -> None:
    org_id, _ = await subscribed(stripe_world, "growth")
    await changes.change_plan(desk(stripe_world, org_id), "starter", "month")
    await changes.change_plan(desk(stripe_world, org_id), "scale", "month")
    row = await held(stripe_world, org_id)
    assert (row.plan, row.pending_plan) == ("scale", None)


async def test_an_end_withdraws_a_change_that_waits(stripe_world: StripeWorld) -> None:
    org_id, _ = await subscribed(stripe_world, "growth")
    await changes.change_plan(desk(stripe_world, org_id), "starter", "month")
    await changes.cancel(desk(stripe_world, org_id))
    row = await held(stripe_world, org_id)
    assert (row.pending_plan, row.cancel_at) == (None, MONTH_END)


async def test_a_discount_outlives_a_planned_change(stripe_world: StripeWorld) -> None:
    org_id, subscription = await subscribed(stripe_world, "growth")
    stripe_world.v1.subscriptions.update(subscription, {"discounts": [{"coupon": "tollgate_startup"}]})
    await changes.change_plan(desk(stripe_world, org_id), "starter", "month")
    stripe_world.go(MONTH_END + timedelta(hours=2))
    assert latest_invoice(stripe_world).total == 9_50


async def test_a_trial_goes_on_over_a_planned_change(stripe_world: StripeWorld) -> None:
    org_id, customer = await stripe_world.customer()
    stripe_world.subscribe(customer, "growth", trial_period_days=10)
    await stripe_world.settle()
    made = await changes.change_plan(desk(stripe_world, org_id), "starter", "month")
    assert made.at == START + timedelta(days=10)
    (schedule,) = stripe_world.v1.subscription_schedules.list({"customer": customer}).data
    assert [phase.trial_end for phase in schedule.phases] == [int(made.at.timestamp()), None]
    stripe_world.go(START + timedelta(days=9))
    await stripe_world.settle()
    assert (await held(stripe_world, org_id)).status == "trialing"
    stripe_world.go(START + timedelta(days=11))
    await stripe_world.settle()
    row = await held(stripe_world, org_id)
    assert (row.status, row.plan) == ("active", "starter")


async def test_a_trial_ends_where_a_plan_without_one_begins(stripe_world: StripeWorld) -> None:
    org_id, customer = await stripe_world.customer()
    stripe_world.subscribe(customer, "starter", trial_period_days=14)
    stripe_world.go(START + timedelta(days=3))
    await stripe_world.settle()
    seen = await changes.preview(desk(stripe_world, org_id), "scale", "month")
    assert seen.cents == 499_00
    await changes.change_plan(desk(stripe_world, org_id), "scale", "month")
    invoice = latest_invoice(stripe_world)
    assert (invoice.status, invoice.total) == ("paid", 499_00)
    row = await held(stripe_world, org_id)
    assert (row.status, row.plan, row.period_start) == ("active", "scale", START + timedelta(days=3))
    # What is used from now on is metered.
    periods = await stripe_world.rows("SELECT is_trial FROM metering_periods ORDER BY period_start")
    assert [period.is_trial for period in periods] == [True, False]


async def test_a_trial_goes_on_where_only_the_interval_changes(stripe_world: StripeWorld) -> None:
    org_id, customer = await stripe_world.customer()
    stripe_world.subscribe(customer, "starter", trial_period_days=14)
    await stripe_world.settle()
    await changes.change_plan(desk(stripe_world, org_id), "starter", "year")
    row = await held(stripe_world, org_id)
    assert (row.status, row.billing_interval, row.trial_end) == ("trialing", "year", START + timedelta(days=14))
    assert await stripe_world.budget(org_id) == ("starter-trial", "active", None)


async def test_a_trial_that_cannot_be_paid_goes_on(stripe_world: StripeWorld) -> None:
    org_id, customer = await stripe_world.customer()
    subscription = stripe_world.subscribe(customer, "starter", trial_period_days=14)
    await stripe_world.settle()
    decline(stripe_world, subscription)
    with pytest.raises(StripeRefused):
        await changes.change_plan(desk(stripe_world, org_id), "growth", "month")
    await stripe_world.settle()
    assert await stripe_world.budget(org_id) == ("starter-trial", "active", None)


async def test_a_declined_card_changes_nothing(stripe_world: StripeWorld) -> None:
    org_id, subscription = await subscribed(stripe_world)
    decline(stripe_world, subscription)
    with pytest.raises(StripeRefused) as refused:
        await changes.change_plan(desk(stripe_world, org_id), "scale", "month")
    assert refused.value.status == 402
    await stripe_world.settle()
    assert (await held(stripe_world, org_id)).plan == "starter"
    assert stripe_world.v1.subscriptions.retrieve(subscription).status == "active"


async def test_a_declined_card_leaves_the_change_that_was_planned(stripe_world: StripeWorld) -> None:
    org_id, subscription = await subscribed(stripe_world, "growth")
    await changes.change_plan(desk(stripe_world, org_id), "starter", "month")
    decline(stripe_world, subscription)
    with pytest.raises(StripeRefused):
        await changes.change_plan(desk(stripe_world, org_id), "scale", "month")
    await stripe_world.settle()
    row = await held(stripe_world, org_id)
    assert (row.plan, row.pending_plan) == ("growth", "starter")
    stripe_world.go(MONTH_END)
    items = stripe_world.v1.subscriptions.retrieve(subscription)["items"].data
    keys = sorted(item.price.lookup_key for item in items)
    assert keys == ["tollgate_starter_v1_flat_month", "tollgate_starter_v1_usage_month"]


async def test_a_declined_card_leaves_a_schedule_that_plans_nothing_released(stripe_world: StripeWorld) -> None:
    org_id, subscription = await subscribed(stripe_world, "growth")
    # As a planned change is before it is written into the schedule.
    await stripe_world.gateway.create_schedule({"from_subscription": subscription})
    decline(stripe_world, subscription)
    with pytest.raises(StripeRefused):
        await changes.change_plan(desk(stripe_world, org_id), "scale", "month")
    assert stripe_world.v1.subscriptions.retrieve(subscription).schedule is None


async def test_who_owes_money_pays_first(stripe_world: StripeWorld) -> None:
    org_id, subscription = await subscribed(stripe_world)
    decline(stripe_world, subscription)
    stripe_world.go(MONTH_END + timedelta(hours=2))
    await stripe_world.settle()
    assert (await held(stripe_world, org_id)).status == "past_due"
    for ask in (changes.preview, changes.change_plan):
        with pytest.raises(Conflict):
            await ask(desk(stripe_world, org_id), "growth", "month")


async def test_the_present_plan_is_no_change(stripe_world: StripeWorld) -> None:
    org_id, _ = await subscribed(stripe_world)
    with pytest.raises(BadRequest):
        await changes.preview(desk(stripe_world, org_id), "starter", "month")


async def test_who_has_no_subscription_has_nothing_to_change(stripe_world: StripeWorld) -> None:
    org_id, _ = await stripe_world.customer()
    with pytest.raises(NotFound):
        await changes.cancel(desk(stripe_world, org_id))


async def test_a_subscription_that_was_not_made_here_is_left_alone(stripe_world: StripeWorld) -> None:
    org_id, subscription = await subscribed(stripe_world)
    price = stripe_world.v1.prices.create(
        {"currency": "usd", "unit_amount": 5, "recurring": {"interval": "month"}, "product_data": {"name": "Other"}}
    )
    item = stripe_world.v1.subscriptions.retrieve(subscription)["items"].data[0]
    stripe_world.v1.subscription_items.update(item.id, {"price": price.id})
    with pytest.raises(Conflict):
        await changes.preview(desk(stripe_world, org_id), "growth", "month")


async def test_nothing_changes_while_usage_cannot_be_reported(stripe_world: StripeWorld) -> None:
    org_id, subscription = await subscribed(stripe_world)
    await use(stripe_world.database, org_id, START + timedelta(days=1), tokens=1_000_000)
    stripe_world.go(START + timedelta(days=14))
    stripe_world.simulator.hazard("outage", path="/v1/billing/meter_events")
    with pytest.raises(StripeUnavailable):
        await changes.change_plan(desk(stripe_world, org_id), "growth", "month")
    price = stripe_world.v1.subscriptions.retrieve(subscription)["items"].data[0].price
    assert price.lookup_key == "tollgate_starter_v1_flat_month"


async def test_a_change_that_cannot_be_read_back_is_made_all_the_same(
    stripe_world: StripeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    org_id, subscription = await subscribed(stripe_world, "growth")
    original = stripe_world.gateway.update_subscription

    async def update_then_fall(subscription_id: str, terms: Mapping[str, Any]) -> dict[str, Any]:
        answer = await original(subscription_id, terms)
        stripe_world.simulator.hazard("outage")
        return answer

    monkeypatch.setattr(stripe_world.gateway, "update_subscription", update_then_fall)
    await changes.cancel(desk(stripe_world, org_id))
    assert (await held(stripe_world, org_id)).cancel_at is None
    stripe_world.simulator.control("DELETE", "/hazards")
    await stripe_world.settle()
    assert (await held(stripe_world, org_id)).cancel_at == MONTH_END
    assert stripe_world.v1.subscriptions.retrieve(subscription).cancel_at
