"""What events lead to: real ones of a simulated Stripe, twice, late, in any order, or not at all."""

import itertools
import json
import random
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from pydantic import SecretStr

from app.billing import checkout, duplicates, effects, inbox
from app.billing.checkout import Buyer
from app.billing.effects import SUBJECTS, THIN_TYPES, Ref, refs_of
from app.config import Settings
from app.errors import StripeRefused, StripeUnavailable
from app.telemetry import DUPLICATE_SUBSCRIPTIONS
from tests.billing.stripe_world import GRACE, START, StripeWorld
from tests.billing.told import forget, state
from tests.simulators.stripe.simulator import API_KEY

DAY = timedelta(days=1)
USD = 10**12


@pytest.fixture
def shop(settings: Settings) -> Settings:
    """Settings of an installation that sells."""
    return settings.model_copy(update={"stripe_api_key": SecretStr(API_KEY)})


def plain(rows: Sequence[Any]) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in rows]


async def test_a_subscription_that_is_bought_entitles(stripe_world: StripeWorld) -> None:
    org_id, customer = await stripe_world.customer()
    bought = stripe_world.subscribe(customer, "growth")
    await stripe_world.settle()
    assert await stripe_world.budget(org_id) == ("growth", "active", None)
    found = await state(stripe_world.database)
    assert [row[:2] for row in found["subscriptions"]] == [(bought, "growth")]
    assert [row[1:4] for row in found["invoices"]] == [("paid", 9900, 9900)]
    assert [row[1:3] for row in found["payments"]] == [("invoice", found["invoices"][0][0])]
    assert found["waiting"] == []
    assert len(await stripe_world.rows("SELECT period_end FROM metering_periods")) == 1


@pytest.mark.slow
async def test_the_core_events_of_a_lifecycle_leave_the_same_in_every_order(
    stripe_world: StripeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bought, to be ended, ended: every order of the subscription's own events, one by one, each of them twice.

    That readings of a longer life may be written in every order is seen in ``test_subscriptions``.
    """
    world = stripe_world
    org_id, customer = await world.customer()
    bought = world.subscribe(customer)
    world.v1.subscriptions.update(bought, {"cancel_at_period_end": True})
    world.v1.subscriptions.cancel(bought)
    await world.settle()
    expected = await state(world.database)
    assert expected["budgets"] == [(org_id, "free", "active", None, None)]
    assert [row[4] for row in expected["subscriptions"]] == ["canceled"]
    core = [body for body in world.bodies() if json.loads(body)["type"].startswith("customer.subscription.")]
    others = [body for body in world.bodies() if body not in core]
    assert len(core) == 4
    for order in itertools.permutations(core):
        await forget(world.database)
        await world.take_in(others)
        await world.work_off()
        monkeypatch.setattr(inbox, "BATCH", 1)
        await world.take_in([*order, *order])
        await world.work_off()
        monkeypatch.undo()
        assert await state(world.database) == expected


@pytest.mark.parametrize("seed", range(8))
async def test_events_that_come_late_while_life_goes_on_change_nothing(stripe_world: StripeWorld, seed: int) -> None:
    """Some events are worked off at once, others long after, when the subscription is something else already."""
    world, chance = stripe_world, random.Random(seed)
    org_id, customer = await world.customer()
    withheld: list[bytes] = []
    for act in lifecycle(world, customer):
        act()
        known = {row.id for row in await world.rows("SELECT id FROM stripe_events")}
        new = [body for body in world.bodies() if json.loads(body)["id"] not in known and body not in withheld]
        withheld += new
        chance.shuffle(withheld)
        told, withheld = withheld[: len(withheld) // 2], withheld[len(withheld) // 2 :]
        await world.take_in(told)
        await world.work_off()
    await world.take_in(withheld)
    await world.work_off()
    found = await state(world.database)
    await forget(world.database)
    await world.settle()
    assert found == await state(world.database)
    assert await world.budget(org_id) == ("growth", "active", None)


def lifecycle(world: StripeWorld, customer: str) -> list[Callable[[], object]]:
    """A trial, its end, a change of mind, and another plan at last."""
    subscriptions = world.v1.subscriptions
    bought: list[str] = []
    return [
        lambda: bought.append(world.subscribe(customer, trial_period_days=3)),
        lambda: world.go(START + 3 * DAY + timedelta(hours=2)),
        lambda: subscriptions.update(bought[0], {"cancel_at_period_end": True}),
        lambda: subscriptions.update(bought[0], {"cancel_at_period_end": False}),
        lambda: subscriptions.cancel(bought[0]),
        lambda: bought.append(world.subscribe(customer, "growth")),
        lambda: world.go(START + 40 * DAY),
    ]


async def test_events_that_come_one_by_one_and_shuffled_leave_the_same(stripe_world: StripeWorld) -> None:
    """All that happens in two months, each event worked off by itself, none in its place."""
    world = stripe_world
    _, customer = await world.customer()
    await world.customer("Other")
    world.subscribe(customer)
    world.go(START + 32 * DAY)
    await world.settle()
    expected = await state(world.database)
    bodies = world.bodies()
    for seed in range(2):
        await forget(world.database)
        random.Random(seed).shuffle(bodies)
        for body in bodies:
            await world.take_in([body])
            await world.work_off()
        assert await state(world.database) == expected


async def test_events_that_are_lost_are_listed_by_stripe_and_made_up_for(stripe_world: StripeWorld) -> None:
    world = stripe_world
    org_id, customer = await world.customer()
    world.subscribe(customer, "growth")
    kept = [body for body in world.bodies() if json.loads(body)["type"] == "charge.succeeded"]
    await world.take_in(kept)
    await world.work_off()
    assert await world.budget(org_id) == ("free", "active", None)
    missed = await inbox.sweep(world.database, world.gateway, world.now)
    assert missed > 0
    await world.work_off()
    assert await world.budget(org_id) == ("growth", "active", None)
    assert await inbox.sweep(world.database, world.gateway, world.now) == 0


async def test_a_payment_that_fails_is_dunned_and_restored_by_paying(stripe_world: StripeWorld) -> None:
    """The renewal fails, grace passes, nothing is served; the card is replaced, the invoice paid, all is well."""
    world = stripe_world
    org_id, customer = await world.customer()
    bought = world.subscribe(customer)
    world.simulator.control("POST", f"/customers/{customer}/decline")
    renewal = START + 28 * DAY  # the end of February
    world.go(renewal + timedelta(hours=2))
    await world.settle()
    assert await world.budget(org_id) == ("starter", "active", None)
    (row,) = await world.rows("SELECT status, past_due_since FROM subscriptions")
    assert row.status == "past_due"
    assert renewal < row.past_due_since <= renewal + timedelta(hours=2)
    failed_at = row.past_due_since
    world.go(failed_at + GRACE)
    await world.settle()
    (row,) = await world.rows("SELECT status, past_due_since FROM subscriptions")
    assert (row.status, row.past_due_since) == ("past_due", failed_at), (
        "since the first failure, whatever was tried since"
    )
    assert await world.budget(org_id) == ("starter", "restricted", "past_due")
    world.simulator.control("POST", f"/customers/{customer}/decline", on=False)
    (open_invoice,) = await world.rows("SELECT id FROM invoices WHERE status = 'open'")
    world.v1.invoices.pay(open_invoice.id)
    await world.settle()
    assert await world.budget(org_id) == ("starter", "active", None)
    assert world.v1.subscriptions.retrieve(bought).status == "active"


async def test_a_payment_that_stays_out_ends_on_the_free_plan(stripe_world: StripeWorld) -> None:
    world = stripe_world
    org_id, customer = await world.customer()
    world.subscribe(customer)
    world.simulator.control("POST", f"/customers/{customer}/decline")
    world.go(START + 60 * DAY)
    await world.settle()
    assert await world.budget(org_id) == ("free", "active", None)


async def test_a_first_payment_that_fails_entitles_to_nothing(stripe_world: StripeWorld) -> None:
    world = stripe_world
    org_id, customer = await world.customer(card="pm_card_visa")
    world.simulator.control("POST", f"/customers/{customer}/decline")
    world.subscribe(customer, payment_behavior="allow_incomplete")
    await world.settle()
    assert await world.budget(org_id) == ("free", "active", None)
    assert await world.rows("SELECT period_start FROM metering_periods") == []


async def test_a_trial_ends_in_a_paid_plan(stripe_world: StripeWorld) -> None:
    world = stripe_world
    org_id, customer = await world.customer()
    world.subscribe(customer, trial_period_days=14)
    await world.settle()
    assert await world.budget(org_id) == ("starter-trial", "active", None)
    world.go(START + 14 * DAY + timedelta(hours=2))
    await world.settle()
    assert await world.budget(org_id) == ("starter", "active", None)
    periods = await world.rows("SELECT period_start, is_trial FROM metering_periods ORDER BY 1")
    assert plain(periods) == [(START, True), (START + 14 * DAY, False)]


async def test_a_subscription_that_ends_at_the_end_of_its_period_serves_until_then(stripe_world: StripeWorld) -> None:
    world = stripe_world
    org_id, customer = await world.customer()
    world.v1.subscriptions.update(world.subscribe(customer), {"cancel_at_period_end": True})
    await world.settle()
    assert await world.budget(org_id) == ("starter", "active", None)
    world.go(START + 29 * DAY)
    await world.settle()
    assert await world.budget(org_id) == ("free", "active", None)
    (row,) = await world.rows("SELECT period_end, claimed_until FROM metering_periods")
    assert row.period_end == START + 28 * DAY


async def test_an_upgrade_is_the_new_plan_and_one_period(stripe_world: StripeWorld) -> None:
    world = stripe_world
    org_id, customer = await world.customer()
    bought = world.subscribe(customer)
    world.go(START + 10 * DAY)
    items = world.v1.subscriptions.retrieve(bought)["items"].data
    prices = (world.price("growth", "flat"), world.price("growth", "usage"))
    swapped = [{"id": item.id, "price": price} for item, price in zip(items, prices, strict=True)]
    world.v1.subscriptions.update(bought, {"items": swapped, "proration_behavior": "always_invoice"})
    await world.settle()
    assert await world.budget(org_id) == ("growth", "active", None)
    periods = await world.rows("SELECT period_start, period_end FROM metering_periods")
    assert plain(periods) == [(START, START + 28 * DAY)]


async def test_a_downgrade_that_is_to_come_is_known_and_then_comes(stripe_world: StripeWorld) -> None:
    world = stripe_world
    org_id, customer = await world.customer()
    bought = world.subscribe(customer, "growth")
    schedule = world.v1.subscription_schedules.create({"from_subscription": bought})
    phase = schedule.phases[0]
    now = [{"price": item.price, **({"quantity": 1} if item.quantity else {})} for item in phase["items"]]
    then = [{"price": world.price("starter", "flat"), "quantity": 1}, {"price": world.price("starter", "usage")}]
    world.v1.subscription_schedules.update(
        schedule.id,
        {
            "end_behavior": "release",
            "phases": [
                {"items": now, "start_date": phase.start_date, "end_date": phase.end_date},
                {"items": then, "duration": {"interval": "month", "interval_count": 1}},
            ],
        },
    )
    await world.settle()
    assert plain(await world.rows("SELECT plan, pending_plan, stripe_schedule_id FROM subscriptions")) == [
        ("growth", "starter", schedule.id)
    ]
    world.go(START + 29 * DAY)
    await world.settle()
    assert plain(await world.rows("SELECT plan, pending_plan FROM subscriptions")) == [("starter", None)]
    assert await world.budget(org_id) == ("starter", "active", None)


async def test_a_yearly_plan_is_completed_with_its_metered_price(stripe_world: StripeWorld) -> None:
    """The checkout sells prices of one interval only."""
    world = stripe_world
    org_id, customer = await world.customer()
    flat = {"price": world.price("growth", "flat", "year")}
    terms = {"customer": customer, "items": [flat], "billing_mode": {"type": "flexible"}}
    bought = world.v1.subscriptions.create(terms).id
    await world.settle()
    await world.settle()
    assert len(world.v1.subscriptions.retrieve(bought)["items"].data) == 2
    assert await world.budget(org_id) == ("growth", "active", None)
    assert len(await world.rows("SELECT period_start FROM metering_periods")) == 1


async def buy_credit(world: StripeWorld, shop: Settings, org_id: UUID, cents: int = 2500) -> str:
    """Pays for credit at the checkout; returns the charge."""
    buyer = Buyer(org_id, "a@acme.example", "http://portal.example")
    url = await checkout.buy_credit(world.database, world.gateway, shop, buyer, cents, world.now)
    answer = world.simulator.raw(
        "POST",
        url.removeprefix(world.simulator.url),
        "number=4242424242424242",
        content_type="application/x-www-form-urlencoded",
    )
    assert answer.status_code == 303
    return str(world.v1.charges.list().data[0].id)


async def test_credit_that_is_bought_refunded_and_disputed(stripe_world: StripeWorld, shop: Settings) -> None:
    world = stripe_world
    org_id, _ = await world.customer()
    await buy_credit(world, shop, org_id)
    for _ in range(2):
        await world.settle()
        assert await world.budget(org_id) == ("prepaid", "active", None)
        assert plain(await world.rows("SELECT credit FROM org_budgets")) == [(25 * USD,)]
    second = await buy_credit(world, shop, org_id, 1000)
    world.simulator.control("POST", f"/charges/{second}/refund", amount=400)
    await world.settle()
    assert plain(await world.rows("SELECT credit FROM org_budgets")) == [(31 * USD,)]
    dispute = world.simulator.control("POST", f"/charges/{await buy_credit(world, shop, org_id)}/dispute")
    await world.settle()
    assert await world.budget(org_id) == ("prepaid", "restricted", "disputed")
    world.v1.disputes.close(dispute["id"])
    await world.settle()
    assert plain(await world.rows("SELECT credit FROM org_budgets")) == [(31 * USD,)], "what was lost is taken back"
    assert (await world.budget(org_id))[2] == "disputed"
    world.go(START + DAY)
    await buy_credit(world, shop, org_id)
    await world.settle()
    assert await world.budget(org_id) == ("prepaid", "active", None), "with the next payment all is well"


async def test_a_dispute_restricts_and_is_lifted_when_it_is_won(stripe_world: StripeWorld) -> None:
    world = stripe_world
    org_id, customer = await world.customer()
    world.subscribe(customer)
    charge = world.v1.charges.list({"customer": customer}).data[0]
    dispute = world.simulator.control("POST", f"/charges/{charge.id}/dispute")
    await world.settle()
    assert await world.budget(org_id) == ("starter", "restricted", "disputed")
    evidence = {"evidence": {"uncategorized_text": "winning_evidence"}}
    world.v1.disputes.update(dispute["id"], evidence)
    await world.settle()
    assert await world.budget(org_id) == ("starter", "active", None)


async def test_a_refunded_invoice_is_noted_and_takes_no_plan_away(stripe_world: StripeWorld) -> None:
    world = stripe_world
    org_id, customer = await world.customer()
    world.subscribe(customer)
    charge = world.v1.charges.list({"customer": customer}).data[0]
    world.v1.refunds.create({"charge": charge.id, "amount": 500})
    await world.settle()
    assert plain(await world.rows("SELECT amount, amount_refunded FROM payments")) == [(1900, 500)]
    assert await world.budget(org_id) == ("starter", "active", None)


async def test_of_two_subscriptions_the_older_one_ends_and_its_time_becomes_credit(stripe_world: StripeWorld) -> None:
    world = stripe_world
    org_id, customer = await world.customer()
    older = world.subscribe(customer)
    world.go(START + 14 * DAY)
    newer = world.subscribe(customer, "growth")
    await world.settle()
    assert await world.budget(org_id) == ("growth", "active", None)
    before = DUPLICATE_SUBSCRIPTIONS._value.get()
    assert await duplicates.end_all(world.database, world.gateway, world.now, GRACE) == 1
    assert await duplicates.end_all(world.database, world.gateway, world.now, GRACE) == 0
    assert DUPLICATE_SUBSCRIPTIONS._value.get() == before + 1
    assert world.v1.subscriptions.retrieve(older).status == "canceled"
    assert world.v1.subscriptions.retrieve(newer).status == "active"
    # Half of 19 dollars: what was paid for and not used.
    assert world.v1.customers.retrieve(customer).balance == -950
    assert plain(await world.rows("SELECT action, target FROM audit_log WHERE action LIKE 'subscription.%'")) == [
        ("subscription.end_duplicate", f"subscription:{older}")
    ]
    await world.settle()
    assert await world.budget(org_id) == ("growth", "active", None)


async def test_a_newer_subscription_that_has_ended_meanwhile_ends_no_other(stripe_world: StripeWorld) -> None:
    world = stripe_world
    org_id, customer = await world.customer()
    older = world.subscribe(customer)
    world.go(START + DAY)
    newer = world.subscribe(customer, "growth")
    await world.settle()
    world.v1.subscriptions.cancel(newer)  # nobody has told us
    assert await duplicates.end_all(world.database, world.gateway, world.now, GRACE) == 0
    assert world.v1.subscriptions.retrieve(older).status == "active"
    assert await world.budget(org_id) == ("starter", "active", None)


async def test_a_customer_that_is_deleted_is_forgotten(stripe_world: StripeWorld) -> None:
    world = stripe_world
    _, customer = await world.customer()
    world.subscribe(customer)
    await world.settle()
    world.v1.customers.delete(customer)
    await world.settle()
    assert plain(await world.rows("SELECT stripe_customer_id FROM orgs")) == [(None,)]
    # An event about one that is still there changes nothing.
    _, other = await world.customer("Other")
    await effects.bring_up_to_date(await work_of(world), Ref("customer", other))
    assert plain(await world.rows("SELECT stripe_customer_id FROM orgs WHERE name = 'Other'")) == [(other,)]


async def work_of(world: StripeWorld) -> effects.Work:
    (now,) = (await world.rows("SELECT clock_timestamp() AS now"))[0]
    return effects.Work(world.database, world.gateway, now, world.now, GRACE)


async def test_a_draft_that_is_deleted_is_forgotten(stripe_world: StripeWorld) -> None:
    world = stripe_world
    _, customer = await world.customer()
    draft = world.v1.invoices.create({"customer": customer, "auto_advance": False}).id
    await world.settle()
    assert plain(await world.rows("SELECT id, status FROM invoices")) == [(draft, "draft")]
    world.v1.invoices.delete(draft)
    await world.settle()
    assert await world.rows("SELECT id FROM invoices") == []


async def test_what_stripe_does_not_show_is_an_error(stripe_world: StripeWorld) -> None:
    work = await work_of(stripe_world)
    with pytest.raises(StripeRefused, match="No such subscription"):
        await effects.bring_up_to_date(work, Ref("subscription", "sub_nowhere"))
    await effects.bring_up_to_date(work, Ref("payment", "pi_nowhere"))
    stripe_world.simulator.hazard("outage", path="/v1/invoices")
    with pytest.raises(StripeUnavailable):
        await effects.bring_up_to_date(work, Ref("invoice", "in_nowhere"))
    stripe_world.simulator.control("DELETE", "/hazards")
    stripe_world.simulator.hazard("rate_limit_429")
    with pytest.raises(StripeUnavailable):
        await effects.bring_up_to_date(work, Ref("invoice", "in_nowhere"))


async def test_a_refusal_of_an_invoice_that_is_not_its_absence_is_an_error(
    stripe_world: StripeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(invoice_id: str) -> dict[str, Any]:
        raise StripeRefused(f"You may not see {invoice_id}.", stripe_status=403)

    monkeypatch.setattr(stripe_world.gateway, "retrieve_invoice", refuse)
    with pytest.raises(StripeRefused, match="may not see"):
        await effects.bring_up_to_date(await work_of(stripe_world), Ref("invoice", "in_1"))


async def test_what_others_sell_in_the_same_account_is_none_of_our_business(stripe_world: StripeWorld) -> None:
    world = stripe_world
    card = {"payment_method": "pm_card_visa", "invoice_settings": {"default_payment_method": "pm_card_visa"}}
    stranger = world.v1.customers.create(card).id
    world.subscribe(stranger)
    await world.settle()
    found = await state(world.database)
    assert all(rows == [] for rows in found.values())


async def test_a_price_that_is_changed_at_stripe_is_seen_as_drift(stripe_world: StripeWorld) -> None:
    world = stripe_world
    world.v1.prices.update(world.price("growth", "flat"), {"active": False})
    await world.settle()
    drifted = await world.rows("SELECT lookup_key, drift FROM catalog_prices WHERE drift IS NOT NULL")
    assert [row.lookup_key for row in drifted] == ["tollgate_growth_v1_flat_month"]
    world.v1.prices.update(world.price("growth", "flat"), {"active": True})
    await world.settle()
    assert await world.rows("SELECT 1 FROM catalog_prices WHERE drift IS NOT NULL") == []


async def test_a_complaint_about_meter_events_reaches_the_outbox(stripe_world: StripeWorld) -> None:
    world = stripe_world
    _, customer = await world.customer()
    world.subscribe(customer)
    await world.settle()
    world.simulator.hazard("meter_event_rejected")
    identifier = "6f0c7a52-6b0a-5d0e-8f6e-2f3f4e1f0c11"
    payload = {"stripe_customer_id": customer, "value": "7"}
    event = {
        "event_name": "tollgate_usage",
        "payload": payload,
        "identifier": identifier,
        "timestamp": int(START.timestamp()),
    }
    world.v1.billing.meter_events.create(event)
    await world.run(
        "INSERT INTO stripe_meter_outbox (id, org_id, subscription_id, stripe_customer_id, meter, window_start,"
        " window_end, value, event_ts, identifier, state, acked_at) SELECT gen_random_uuid(), org_id, id, :customer,"
        " 'tollgate_usage', started_at, started_at, 7, started_at, CAST(:identifier AS uuid), 'acked', now()"
        " FROM subscriptions",
        customer=customer,
        identifier=UUID(identifier),
    )
    await world.settle()
    (row,) = await world.rows("SELECT state FROM stripe_meter_outbox")
    assert row.state == "reconcile"


@pytest.mark.parametrize(
    ("type", "object", "expected"),
    [
        ("customer.subscription.updated", {"id": "sub_1"}, [Ref("subscription", "sub_1")]),
        ("subscription_schedule.updated", {"id": "sched", "subscription": "sub_1"}, [Ref("subscription", "sub_1")]),
        (
            "subscription_schedule.released",
            {"id": "sched", "subscription": None, "released_subscription": "sub_1"},
            [Ref("subscription", "sub_1")],
        ),
        ("subscription_schedule.created", {"id": "sched", "subscription": None}, []),
        ("invoice.paid", {"id": "in_1", "parent": None}, [Ref("invoice", "in_1")]),
        (
            "invoice.paid",
            {"id": "in_1", "parent": {"subscription_details": {"subscription": {"id": "sub_1"}}}},
            [Ref("invoice", "in_1"), Ref("subscription", "sub_1")],
        ),
        ("charge.refunded", {"id": "ch_1", "payment_intent": "pi_1"}, [Ref("payment", "pi_1")]),
        ("charge.succeeded", {"id": "ch_1", "payment_intent": None}, []),
        ("refund.failed", {"id": "re_1", "payment_intent": "pi_1"}, [Ref("payment", "pi_1")]),
        (
            "checkout.session.completed",
            {"subscription": "sub_1", "payment_intent": None},
            [Ref("subscription", "sub_1")],
        ),
        ("checkout.session.completed", {"subscription": None, "payment_intent": "pi_1"}, [Ref("payment", "pi_1")]),
        ("customer.deleted", {"id": "cus_1"}, [Ref("customer", "cus_1")]),
        ("price.updated", {"id": "price_1"}, [Ref("catalog", "")]),
        ("customer.updated", {"id": "cus_1"}, []),
        ("a.type.of.the.future", {}, []),
    ],
)
def test_an_event_names_what_is_to_be_read(type: str, object: dict[str, Any], expected: list[Ref]) -> None:
    assert refs_of({"id": "evt_1", "type": type, "data": {"object": object}}) == tuple(expected)


def test_thin_events_are_read_by_their_own_id() -> None:
    for type in THIN_TYPES:
        assert refs_of({"id": "evt_1", "type": type}) == (Ref("meter", "evt_1"),)


def test_every_type_that_we_ask_for_is_one_of_stripes() -> None:
    from pathlib import Path

    import stripe

    known = (Path(stripe.__file__).parent / "_event.py").read_text()
    assert [type for type in SUBJECTS if f'"{type}"' not in known] == []


async def test_a_change_that_was_just_made_can_be_read_at_once(stripe_world: StripeWorld) -> None:
    world = stripe_world
    org_id, customer = await world.customer()
    bought = world.subscribe(customer)
    await effects.refresh(world.database, world.gateway, bought, world.now, GRACE)
    assert await world.budget(org_id) == ("starter", "active", None)
    assert isinstance(world.now, datetime)
