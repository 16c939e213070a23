"""Buying at Stripe: what is asked for there, and what comes of it."""

import asyncio
from datetime import timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import insert

from app.billing import checkout
from app.billing.checkout import Buyer
from app.billing.gateway import Gateway
from app.config import Settings
from app.db import Database
from app.errors import BadRequest, Conflict, NotFound, StripeUnavailable
from app.tables import Membership, new_id
from tests.billing.stripe_world import START, StripeWorld
from tests.factories import make_org, make_user
from tests.simulators.stripe.simulator import Simulator

CARD = "4242 4242 4242 4242"
BASE_URL = "https://portal.example"


async def make_buyer(world: StripeWorld) -> Buyer:
    """A new organisation whose customer lives by the clock of the test."""
    buyer = Buyer(await make_org(world.database, plan="free"), "a@acme.example", BASE_URL)
    await checkout.ensure_customer(world.database, world.gateway, buyer, START, test_clock=world.clock)
    return buyer


async def subscribe(
    world: StripeWorld, settings: Settings, buyer: Buyer, plan: str = "starter", interval: str = "month", **terms: Any
) -> str:
    return await checkout.subscribe(world.database, world.gateway, settings, buyer, plan, interval, START, **terms)


def sessions(world: StripeWorld) -> list[Any]:
    """Of the checkout, newest first, with what they sell."""
    return list(world.v1.checkout.sessions.list({"expand": ["data.line_items"]}).data)


async def pay(url: str) -> None:
    async with httpx.AsyncClient() as browser:
        answer = await browser.post(url, data={"number": CARD})
    assert answer.status_code == 303, answer.text
    assert answer.headers["location"].startswith(f"{BASE_URL}/billing?bought=")


async def test_calls_at_once_make_one_customer(stripe_world: StripeWorld) -> None:
    buyer = Buyer(await make_org(stripe_world.database), "a@acme.example", BASE_URL)
    made = await asyncio.gather(
        *(checkout.ensure_customer(stripe_world.database, stripe_world.gateway, buyer, START) for _ in range(5))
    )
    assert len(set(made)) == 1
    (customer,) = stripe_world.v1.customers.list().data
    assert (customer.id, customer.email, customer.metadata["org_id"]) == (made[0], buyer.email, str(buyer.org_id))


async def test_whoever_comes_second_to_the_database_takes_the_first_customer(stripe_world: StripeWorld) -> None:
    buyer = Buyer(await make_org(stripe_world.database), None, BASE_URL)
    first, second = await asyncio.gather(
        *(
            checkout.ensure_customer(stripe_world.database, stripe_world.gateway, buyer, START + timedelta(minutes=at))
            for at in range(2)
        )
    )
    assert first == second
    later = START + timedelta(days=1)
    assert await checkout.ensure_customer(stripe_world.database, stripe_world.gateway, buyer, later) == first


async def test_a_failure_that_stripe_repeats_is_over_after_a_minute(stripe_world: StripeWorld) -> None:
    buyer = Buyer(await make_org(stripe_world.database), None, BASE_URL)
    stripe_world.simulator.hazard("error_500", path="/v1/customers", times=1)
    for _ in range(2):
        with pytest.raises(StripeUnavailable):
            await checkout.ensure_customer(stripe_world.database, stripe_world.gateway, buyer, START)
    later = START + timedelta(minutes=1)
    assert await checkout.ensure_customer(stripe_world.database, stripe_world.gateway, buyer, later)


async def test_nobody_has_no_customer(database: Database) -> None:
    gateway = Gateway("sk_test", api_base="http://127.0.0.1:9")
    with pytest.raises(NotFound):
        await checkout.ensure_customer(database, gateway, Buyer(new_id(), None, BASE_URL), START)
    await gateway.aclose()


async def test_a_first_subscription_begins_with_a_trial(stripe_world: StripeWorld, settings: Settings) -> None:
    buyer = await make_buyer(stripe_world)
    url = await subscribe(stripe_world, settings, buyer)
    (session,) = sessions(stripe_world)
    sold = [line.price.lookup_key for line in session.line_items.data]
    assert sold == ["tollgate_starter_v1_flat_month", "tollgate_starter_v1_usage_month"]
    assert session.client_reference_id == str(buyer.org_id)
    assert session.allow_promotion_codes
    assert not session.automatic_tax.enabled
    await pay(url)
    await stripe_world.settle()
    assert await stripe_world.budget(buyer.org_id) == ("starter-trial", "active", None)
    (row,) = await stripe_world.rows("SELECT status, trial_end FROM subscriptions")
    assert (row.status, row.trial_end) == ("trialing", START + timedelta(days=14))


async def test_a_plan_by_the_year_gets_its_price_of_usage(stripe_world: StripeWorld, settings: Settings) -> None:
    buyer = await make_buyer(stripe_world)
    await pay(await subscribe(stripe_world, settings, buyer, "growth", "year"))
    await stripe_world.settle()
    (subscription,) = stripe_world.v1.subscriptions.list().data
    keys = sorted(item.price.lookup_key for item in subscription["items"].data)
    assert keys == ["tollgate_growth_v1_flat_year", "tollgate_growth_v1_usage_month"]
    (period,) = await stripe_world.rows("SELECT period_start, period_end FROM metering_periods")
    assert (period.period_start, period.period_end) == (START, START.replace(month=2, day=28))
    await stripe_world.settle()
    assert len(stripe_world.v1.subscription_items.list({"subscription": subscription.id}).data) == 2


async def test_a_price_of_usage_that_could_not_be_added_is_added_a_minute_later(stripe_world: StripeWorld) -> None:
    _, customer = await stripe_world.customer()
    flat = {"price": stripe_world.price("growth", "flat", "year")}
    terms = {"customer": customer, "items": [flat], "billing_mode": {"type": "flexible"}}
    subscription = stripe_world.v1.subscriptions.create(terms).id
    stripe_world.simulator.hazard("error_500", path="/v1/subscription_items", times=1)
    # Stripe answers what failed with the same failure for a day.
    for _ in range(2):
        await stripe_world.settle()
        await stripe_world.run("UPDATE stripe_events SET due_at = now()")
        assert len(stripe_world.v1.subscriptions.retrieve(subscription)["items"].data) == 1
    stripe_world.now += timedelta(minutes=1)
    await stripe_world.work_off()
    assert len(stripe_world.v1.subscriptions.retrieve(subscription)["items"].data) == 2


async def test_a_plan_by_the_year_counts_where_stripe_takes_no_price_of_usage(stripe_world: StripeWorld) -> None:
    org_id, customer = await stripe_world.customer()
    flat = {"price": stripe_world.price("growth", "flat", "year")}
    # Made by hand, say.
    terms = {"customer": customer, "items": [flat], "billing_mode": {"type": "classic"}}
    stripe_world.v1.subscriptions.create(terms)
    await stripe_world.settle()
    assert await stripe_world.budget(org_id) == ("growth", "active", None)
    errors = await stripe_world.rows("SELECT last_error FROM stripe_events WHERE last_error LIKE '%mix intervals%'")
    assert errors


async def test_who_has_had_one_gets_no_second_trial(stripe_world: StripeWorld, settings: Settings) -> None:
    buyer = await make_buyer(stripe_world)
    await pay(await subscribe(stripe_world, settings, buyer))
    await stripe_world.settle()
    with pytest.raises(Conflict):
        await subscribe(stripe_world, settings, buyer, "growth")
    (subscription,) = stripe_world.v1.subscriptions.list().data
    stripe_world.v1.subscriptions.cancel(subscription.id)
    await stripe_world.settle()
    await pay(await subscribe(stripe_world, settings, buyer))
    await stripe_world.settle()
    assert await stripe_world.budget(buyer.org_id) == ("starter", "active", None)


@pytest.mark.parametrize(("role", "plan"), [("owner", "starter"), ("billing", "starter-trial")])
async def test_who_has_tried_for_an_organisation_of_theirs_does_not_try_for_another(
    stripe_world: StripeWorld, settings: Settings, role: str, plan: str
) -> None:
    first = await make_buyer(stripe_world)
    await pay(await subscribe(stripe_world, settings, first))
    await stripe_world.settle()
    person = await make_user(stripe_world.database, first.org_id, "a@acme.example", role)
    second = await make_buyer(stripe_world)
    async with stripe_world.database.begin() as connection:
        await connection.execute(insert(Membership).values(org_id=second.org_id, user_id=person, role="owner"))
    await pay(await subscribe(stripe_world, settings, second))
    await stripe_world.settle()
    assert await stripe_world.budget(second.org_id) == (plan, "active", None)


async def test_a_new_checkout_ends_the_older_one(stripe_world: StripeWorld, settings: Settings) -> None:
    buyer = await make_buyer(stripe_world)
    await checkout.buy_credit(stripe_world.database, stripe_world.gateway, settings, buyer, 10_00, START)
    await subscribe(stripe_world, settings, buyer)
    await subscribe(stripe_world, settings, buyer, "growth")
    found = [(session.mode, session.status) for session in sessions(stripe_world)]
    assert found == [("subscription", "open"), ("subscription", "expired"), ("payment", "open")]


async def test_clicks_at_once_all_lead_to_a_checkout(
    stripe_world: StripeWorld, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    buyer = await make_buyer(stripe_world)
    await subscribe(stripe_world, settings, buyer)
    expire, arrived = stripe_world.gateway.expire_checkout, asyncio.Barrier(2)

    async def meet_and_expire(session_id: str) -> dict[str, Any]:
        await arrived.wait()
        return await expire(session_id)

    monkeypatch.setattr(stripe_world.gateway, "expire_checkout", meet_and_expire)
    urls = await asyncio.gather(*(subscribe(stripe_world, settings, buyer) for _ in range(2)))
    assert len(set(urls)) == 2


async def test_what_was_paid_a_moment_ago_is_not_sold_again(stripe_world: StripeWorld, settings: Settings) -> None:
    buyer = await make_buyer(stripe_world)
    await pay(await subscribe(stripe_world, settings, buyer))
    # No webhook has come in.
    with pytest.raises(Conflict):
        await subscribe(stripe_world, settings, buyer, "growth")
    assert [session.status for session in sessions(stripe_world)] == ["complete"]


async def test_what_else_the_account_sells_is_in_nobodys_way(stripe_world: StripeWorld, settings: Settings) -> None:
    buyer = await make_buyer(stripe_world)
    customer = await checkout.ensure_customer(stripe_world.database, stripe_world.gateway, buyer, START)
    card = stripe_world.v1.payment_methods.attach("pm_card_visa", {"customer": customer}).id
    recurring = {"currency": "usd", "unit_amount": 5, "recurring": {"interval": "month"}}
    price = stripe_world.v1.prices.create({**recurring, "product_data": {"name": "Other"}})
    stripe_world.v1.subscriptions.create(
        {"customer": customer, "items": [{"price": price.id}], "default_payment_method": card}
    )
    assert await subscribe(stripe_world, settings, buyer)


async def test_a_coupon_takes_the_place_of_codes(stripe_world: StripeWorld, settings: Settings) -> None:
    buyer = await make_buyer(stripe_world)
    await pay(await subscribe(stripe_world, settings, buyer, "growth", coupon="tollgate_startup"))
    (invoice,) = stripe_world.v1.invoices.list().data
    assert (invoice.subtotal, invoice.total) == (99_00, 49_50)
    (session,) = sessions(stripe_world)
    assert not session.allow_promotion_codes


async def test_tax_is_computed_where_it_is_switched_on(stripe_world: StripeWorld, settings: Settings) -> None:
    buyer = await make_buyer(stripe_world)
    taxed = settings.model_copy(update={"stripe_tax": True})
    await subscribe(stripe_world, taxed, buyer)
    (session,) = sessions(stripe_world)
    assert session.automatic_tax.enabled
    assert session.billing_address_collection == "required"


@pytest.mark.parametrize(
    ("plan", "interval"),
    [
        ("free", "month"),
        ("prepaid", "month"),
        ("starter-trial", "month"),
        ("internal", "month"),
        ("growth", "week"),
        ("", ""),
    ],
)
async def test_what_is_not_sold_is_refused(
    stripe_world: StripeWorld, settings: Settings, plan: str, interval: str
) -> None:
    buyer = await make_buyer(stripe_world)
    with pytest.raises(BadRequest):
        await subscribe(stripe_world, settings, buyer, plan, interval)


async def test_an_unknown_coupon_is_refused(stripe_world: StripeWorld, settings: Settings) -> None:
    buyer = await make_buyer(stripe_world)
    with pytest.raises(BadRequest):
        await subscribe(stripe_world, settings, buyer, coupon="free_beer")


async def test_without_the_catalogue_nothing_is_sold(database: Database, gateway: Gateway, settings: Settings) -> None:
    buyer = Buyer(await make_org(database), None, BASE_URL)
    with pytest.raises(StripeUnavailable):
        await checkout.subscribe(database, gateway, settings, buyer, "growth", "month", START)


async def test_credit_that_is_paid_for_can_be_spent(stripe_world: StripeWorld, settings: Settings) -> None:
    buyer = await make_buyer(stripe_world)
    url = await checkout.buy_credit(stripe_world.database, stripe_world.gateway, settings, buyer, 25_00, START)
    await pay(url)
    await stripe_world.settle()
    assert (await stripe_world.budget(buyer.org_id))[0] == "prepaid"
    (row,) = await stripe_world.rows("SELECT credit FROM org_budgets WHERE org_id = :id", id=buyer.org_id)
    assert row.credit == 25 * 10**12


@pytest.mark.parametrize("cents", [0, -25_00, 25_01, 1])
async def test_other_amounts_of_credit_are_not_sold(stripe_world: StripeWorld, settings: Settings, cents: int) -> None:
    buyer = await make_buyer(stripe_world)
    with pytest.raises(BadRequest):
        await checkout.buy_credit(stripe_world.database, stripe_world.gateway, settings, buyer, cents, START)


async def test_stripes_portal_opens_as_we_have_set_it_up(stripe_world: StripeWorld) -> None:
    buyer = await make_buyer(stripe_world)
    stripe_world.v1.billing_portal.configurations.create({"features": {"invoice_history": {"enabled": True}}})
    url = await checkout.open_portal(stripe_world.database, stripe_world.gateway, buyer, START)
    async with httpx.AsyncClient() as browser:
        page = await browser.get(url)
    assert page.status_code == 200
    assert f"{BASE_URL}/billing" in page.text


async def test_without_our_configuration_stripes_portal_opens_as_the_account_has_it(
    database: Database, gateway: Gateway, simulator: Simulator
) -> None:
    simulator.v1.billing_portal.configurations.create({"features": {"invoice_history": {"enabled": True}}})
    buyer = Buyer(await make_org(database), None, BASE_URL)
    assert await checkout.open_portal(database, gateway, buyer, START)


async def test_what_needs_no_price_of_usage_gets_none(stripe_world: StripeWorld) -> None:
    _, customer = await stripe_world.customer()
    complete = stripe_world.subscribe(customer)
    price = stripe_world.v1.prices.create(
        {"currency": "usd", "unit_amount": 5, "recurring": {"interval": "month"}, "product_data": {"name": "Other"}}
    )
    foreign = stripe_world.v1.subscriptions.create({"customer": customer, "items": [{"price": price.id}]}).id
    ended = stripe_world.v1.subscriptions.create(
        {"customer": customer, "items": [{"price": stripe_world.price("growth", "flat")}]}
    ).id
    stripe_world.v1.subscriptions.cancel(ended)
    for id in (complete, foreign, ended):
        found = await stripe_world.gateway.retrieve_subscription(id)
        assert not await checkout.complete_items(stripe_world.database, stripe_world.gateway, found, START)
