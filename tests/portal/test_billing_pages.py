"""The pages of plan and billing, with a simulated Stripe behind them."""

import csv
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import httpx
import pytest
from pydantic import SecretStr
from sqlalchemy import insert

from app.billing import account, claims, outbox
from app.config import Settings
from app.db import Database
from app.errors import StripeRefused
from app.partitions import ensure_partitions
from app.portal.i18n import LANGUAGE_COOKIE
from app.tables import MeterOutbox, new_id
from tests.api.world import World, serving, write_model
from tests.billing.conftest import gateway, simulator, stripe_world
from tests.billing.metered import use
from tests.billing.stripe_world import START, StripeWorld
from tests.factories import make_key, make_org
from tests.portal.visiting import Browser, visiting
from tests.simulators.stripe.simulator import API_KEY

__all__ = ["gateway", "simulator", "stripe_world"]

CARD = "4242 4242 4242 4242"
MONTH_END = datetime(2027, 2, 28, 12, tzinfo=UTC)
TOKEN_PRICE = 150_000
"""Of a token of input, in 10^-12 USD."""


@pytest.fixture
async def world(settings: Settings, database: Database, stripe_world: StripeWorld) -> AsyncIterator[World]:
    """An installation with a key of Stripe."""
    write_model(settings.models_dir)
    key, base = SecretStr(API_KEY), stripe_world.simulator.url
    async with serving(settings, database, stripe_api_key=key, stripe_api_base=base) as running:
        yield running


@pytest.fixture
async def acme(world: World) -> UUID:
    """A customer on the free plan."""
    return await make_org(world.database, plan="free")


async def pay(page: httpx.Response) -> None:
    """Goes on to Stripe and pays there."""
    found = re.search(r'<a class="button" href="([^"]+)"', page.text)
    assert found is not None, page.text
    assert f"0;url={found[1]}" in page.text
    async with httpx.AsyncClient() as browser:
        assert (await browser.post(found[1], data={"number": CARD})).status_code == 303


async def subscribe(owner: Browser, stripe_world: StripeWorld, plan: str = "growth", interval: str = "month") -> None:
    await pay(await owner.send_form("/billing/subscribe", "/billing", plan=plan, interval=interval))
    await stripe_world.settle()


async def actions(stripe_world: StripeWorld, org_id: UUID) -> list[tuple[str, Any]]:
    """What people did, by the audit log."""
    statement = "SELECT action, after FROM audit_log WHERE org_id = :id AND actor LIKE 'user:%' ORDER BY id"
    return [tuple(row) for row in await stripe_world.rows(statement, id=org_id)]


async def test_what_stripe_says_is_told_as_its_own_words(
    world: World, acme: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: object) -> None:
        raise StripeRefused("Your card was declined at 100%.", stripe_status=402)

    monkeypatch.setattr("app.portal.billing.changes.preview", refuse)
    async with visiting(world, acme, **{LANGUAGE_COOKIE: "zh"}) as browser:
        answer = await browser.get("/billing/change?plan=growth&interval=month")
    assert answer.status_code == 402
    assert "Stripe 返回" in answer.text
    assert "Your card was declined at 100%." in answer.text


async def test_a_plan_that_was_paid_for_is_looked_for_a_while(owner: Browser) -> None:
    assert "refresh" not in await owner.page("/billing")
    address, looks = "/billing?bought=subscription", 0
    while found := re.search(r'content="3;url=([^"]+)"', await owner.page(address)):
        address, looks = found[1].replace("&amp;", "&"), looks + 1
        assert looks < 50
    assert looks == 19
    assert "longer than usual" in await owner.page(address)
    for look in ("0", "-1", "x", "9" * 9, "²"):
        await owner.page(f"/billing?bought=subscription&look={look}")


async def test_the_plans_are_offered_to_who_has_none(owner: Browser) -> None:
    page = await owner.page("/billing")
    for price in ("$19.00", "$99.00", "$499.00", "$4,990.00"):
        assert price in page
    assert "14 days free" in page
    assert "0 of 1,000,000 tokens" in page
    assert "$25.00" in page
    assert "None yet." in page


async def test_a_plan_is_bought_at_stripe(owner: Browser, acme: UUID, stripe_world: StripeWorld) -> None:
    await pay(await owner.send_form("/billing/subscribe", "/billing", plan="growth", interval="month"))
    # The browser is back before the webhook is.
    page = await owner.page("/billing?bought=subscription")
    assert '<meta http-equiv="refresh" content="3;url=/billing?bought=subscription&amp;look=2">' in page
    await stripe_world.settle()
    page = await owner.page("/billing?bought=subscription")
    assert "http-equiv" not in page
    assert "Your plan: Growth" in page
    assert "It renews on" in page
    assert "600,000,000 included tokens" in page
    assert "$99.00" in page
    assert await actions(stripe_world, acme) == [("checkout.open", {"plan": "growth", "interval": "month"})]


async def test_another_plan_is_previewed_and_chosen(owner: Browser, acme: UUID, stripe_world: StripeWorld) -> None:
    await subscribe(owner, stripe_world)
    path = "/billing/change?plan=scale&interval=month"
    page = await owner.page(path)
    assert "It begins at once." in page
    assert "Charged now" in page
    answer = await owner.send_form("/billing/change", path, plan="scale", interval="month")
    assert (answer.status_code, answer.headers["location"]) == (303, "/billing?done=change")
    page = await owner.page("/billing?done=change")
    assert "Your plan is changed." in page
    assert "Your plan: Scale" in page
    path = "/billing/change?plan=starter&interval=month"
    assert "Nothing is charged now." in await owner.page(path)
    answer = await owner.send_form("/billing/change", path, plan="starter", interval="month")
    assert "It becomes Starter on" in await owner.page(answer.headers["location"])
    found = await actions(stripe_world, acme)
    assert [action for action, _ in found] == ["checkout.open", "subscription.change", "subscription.change"]
    assert found[1][1] == {"plan": "scale", "interval": "month", "at": "now"}


async def test_an_end_is_planned_and_withdrawn(owner: Browser, acme: UUID, stripe_world: StripeWorld) -> None:
    await subscribe(owner, stripe_world)
    answer = await owner.send_form("/billing/cancel", "/billing")
    page = await owner.page(answer.headers["location"])
    assert "It ends on" in page
    assert "Cancel the subscription" not in page
    answer = await owner.send_form("/billing/resume", "/billing")
    page = await owner.page(answer.headers["location"])
    assert "goes on as it is" in page
    assert "It renews on" in page
    found = [action for action, _ in await actions(stripe_world, acme)]
    assert found == ["checkout.open", "subscription.cancel", "subscription.resume"]


async def test_a_trial_is_promised_to_whom_it_is_given(owner: Browser, stripe_world: StripeWorld) -> None:
    assert "14 days free" in await owner.page("/billing")
    await subscribe(owner, stripe_world)
    (subscription,) = stripe_world.v1.subscriptions.list().data
    stripe_world.v1.subscriptions.cancel(subscription.id)
    await stripe_world.settle()
    page = await owner.page("/billing")
    assert "$19.00" in page
    assert "days free" not in page


async def test_cards_are_changed_at_stripe(owner: Browser, stripe_world: StripeWorld) -> None:
    await subscribe(owner, stripe_world)
    answer = await owner.send_form("/billing/portal", "/billing")
    assert f"{stripe_world.simulator.url}/" in answer.text


async def test_credit_is_bought_at_stripe(owner: Browser, stripe_world: StripeWorld) -> None:
    await pay(await owner.send_form("/billing/credit", "/billing", cents="2500"))
    assert "as soon as Stripe confirms" in await owner.page("/billing?bought=credit")
    await stripe_world.settle()
    page = await owner.page("/billing")
    assert "$25.00 left." in page
    assert "paid from prepaid credit" in page


@pytest.mark.parametrize("cents", ["", "1", "-2500", "25.00", "²500", "9" * 10])
async def test_what_is_no_amount_is_refused(owner: Browser, cents: str) -> None:
    assert (await owner.send_form("/billing/credit", "/billing", cents=cents)).status_code == 400


@pytest.mark.parametrize("role", ["developer", "viewer"])
async def test_others_see_and_change_nothing(world: World, acme: UUID, role: str) -> None:
    async with visiting(world, acme, role) as browser:
        for path in ("/billing", "/billing/change?plan=growth&interval=month", "/billing/invoices/in_1"):
            assert (await browser.get(path)).status_code == 403
        assert (await browser.send_form("/billing/cancel", "/overview")).status_code == 403


async def test_the_billing_role_may_buy(world: World, acme: UUID) -> None:
    async with visiting(world, acme, "billing") as browser:
        answer = await browser.send_form("/billing/subscribe", "/billing", plan="starter", interval="year")
        assert "On to Stripe" in answer.text


@pytest.mark.parametrize("action", ["subscribe", "credit", "portal", "change", "cancel", "resume"])
async def test_a_form_of_another_site_changes_nothing(owner: Browser, action: str, stripe_world: StripeWorld) -> None:
    fields = {"plan": "growth", "interval": "month", "cents": "2500", "token": "0" * 64}
    assert (await owner.post(f"/billing/{action}", data=fields)).status_code == 403
    assert not stripe_world.v1.customers.list().data


async def test_a_stranger_is_asked_to_sign_in(world: World) -> None:
    async with httpx.AsyncClient(base_url=world.url) as browser:
        assert (await browser.get("/billing")).headers["location"] == "/login?next=%2Fbilling"


async def test_while_stripe_is_away_the_page_says_so(
    owner: Browser, world: World, acme: UUID, stripe_world: StripeWorld
) -> None:
    await subscribe(owner, stripe_world)
    stripe_world.simulator.hazard("outage")
    waiting = datetime.now(UTC) - account.REPORT_DELAY - timedelta(minutes=1)
    async with world.database.begin() as connection:
        await connection.execute(insert(MeterOutbox).values(_event(acme, waiting)))
    page = await owner.page("/billing")
    assert "Stripe has not been reachable since" in page
    assert "Your plan: Growth" in page
    for action, fields in (("cancel", {}), ("change", {"plan": "scale", "interval": "month"}), ("portal", {})):
        answer = await owner.send_form(f"/billing/{action}", "/billing", **fields)
        assert answer.status_code == 503
        assert "Stripe is not reachable" in answer.text
    key = await make_key(world.database, world.settings, acme)
    assert (await world.post("/v1/completions", {"model": "bytes", "prompt": "abc"}, key)).status_code == 200
    assert (await world.get("/v1/usage", key)).status_code == 200


async def test_a_payment_that_failed_is_told(owner: Browser, acme: UUID, stripe_world: StripeWorld) -> None:
    await subscribe(owner, stripe_world)
    await stripe_world.run("UPDATE subscriptions SET status = 'past_due', past_due_since = now()")
    page = await owner.page("/billing")
    assert "A payment failed on" in page
    assert "for 7 days" in page
    for restriction, words in (("past_due", "last invoice is not paid"), ("disputed", "disputed with your bank")):
        await stripe_world.run(
            "UPDATE org_budgets SET status = 'restricted', restriction = :why WHERE org_id = :id",
            why=restriction,
            id=acme,
        )
        assert words in await owner.page("/billing")


async def test_a_trial_is_shown(owner: Browser, stripe_world: StripeWorld) -> None:
    await subscribe(owner, stripe_world, "starter")
    page = await owner.page("/billing")
    assert "Free until" in page
    assert "0 of 100,000,000 tokens" in page
    assert "Usage costs nothing during the trial." in page


async def test_without_a_key_nothing_is_sold(settings: Settings, database: Database) -> None:
    async with serving(settings, database) as world:
        org_id = await make_org(database, plan="free")
        async with visiting(world, org_id) as browser:
            assert "$99.00" not in await browser.page("/billing")
            answer = await browser.send_form("/billing/subscribe", "/overview", plan="growth", interval="month")
            assert answer.status_code == 503


async def test_an_invoice_of_others_is_not_there(
    owner: Browser, world: World, acme: UUID, stripe_world: StripeWorld
) -> None:
    await subscribe(owner, stripe_world)
    (row,) = await stripe_world.rows("SELECT id, number FROM invoices")
    assert row.number in await owner.page("/billing")
    assert "$99.00" in await owner.page(f"/billing/invoices/{row.id}")
    async with visiting(world, await make_org(world.database, "Globex")) as other:
        assert row.number not in await other.page("/billing")
        assert (await other.get(f"/billing/invoices/{row.id}")).status_code == 404
    assert (await owner.get("/billing/invoices/%00")).status_code == 404
    await stripe_world.run("UPDATE invoices SET status = 'draft'")
    assert (await owner.get(f"/billing/invoices/{row.id}")).status_code == 404
    assert row.number not in await owner.page("/billing")


async def test_page_usage_interface_rows_and_invoice_say_the_same(world: World, stripe_world: StripeWorld) -> None:
    """Invariant 7: what was used is the same number wherever it is read, and is rounded once, at the line."""
    database = world.database
    async with database.begin() as connection:
        await ensure_partitions(connection, START.date())
    org_id, customer = await stripe_world.customer()
    stripe_world.subscribe(customer, "starter")
    await stripe_world.settle()
    tokens = [33_333_340, 44_444_460, 55_555_580]
    for number, count in enumerate(tokens):
        await use(database, org_id, START + timedelta(days=3 * number, seconds=1), tokens=count, model="bytes")
    async with database.begin() as connection:
        seen = await account.read_account(connection, org_id, START + timedelta(days=10))
    assert seen.running is not None
    stripe_world.go(MONTH_END + timedelta(minutes=5))
    await stripe_world.settle()
    await claims.claim_due(database, stripe_world.now)
    await outbox.drain(database, stripe_world.gateway, now=stripe_world.now)
    stripe_world.go(MONTH_END + timedelta(hours=2))
    await stripe_world.settle()
    cost = sum(tokens) * TOKEN_PRICE
    (invoice,) = await stripe_world.rows("SELECT * FROM invoices WHERE metered_value IS NOT NULL")
    key = await make_key(database, world.settings, org_id)
    span = {"start": START.isoformat(), "end": MONTH_END.isoformat(), "bucket": "month"}
    lines = (await world.get("/v1/usage", key, **span)).json()["data"]
    async with visiting(world, org_id) as browser:
        page = await browser.page(f"/billing/invoices/{invoice.id}")
        file = (await browser.get(f"/usage/rows.csv?invoice={invoice.id}")).text
    # Rows, page before and after, file, interface, invoice.
    assert sum(Decimal(row["cost"]) for row in csv.DictReader(file.splitlines())) == Decimal(cost) / 10**12
    assert seen.running.value * 1_000 == cost
    assert sum(Decimal(line["cost"]["value"]) for line in lines) == Decimal(cost) / 10**12
    assert f"${Decimal(cost) / 10**12:.6f}" in page
    assert invoice.metered_value * 1_000 == cost
    above = Decimal(sum(tokens) - 100_000_000) * TOKEN_PRICE / 10**10
    charged = sum(line["amount"] for line in invoice.lines if line["is_metered"])
    assert (seen.running.cents, charged) == (above, round(above))


async def test_an_invoice_leads_to_the_very_rows_that_it_bills(world: World, stripe_world: StripeWorld) -> None:
    """Late ones too; not what was prepaid, nor what was used in the same time and is on the next."""
    database = world.database
    async with database.begin() as connection:
        await ensure_partitions(connection, START.date())
    org_id, customer = await stripe_world.customer()
    stripe_world.subscribe(customer, "starter")
    await stripe_world.settle()
    await use(database, org_id, START + timedelta(days=3), tokens=7, model="bytes")
    stripe_world.go(MONTH_END + timedelta(minutes=5))
    await stripe_world.settle()
    await claims.claim_due(database, stripe_world.now)
    await use(database, org_id, START + timedelta(days=4), tokens=11, model="bytes")
    for days, tokens in ((35, 13), (36, 17)):
        await use(database, org_id, START + timedelta(days=days), tokens=tokens, model="bytes")
    await stripe_world.run("UPDATE usage_events SET is_prepaid = true WHERE input_tokens = 17")
    await outbox.drain(database, stripe_world.gateway, now=stripe_world.now)
    stripe_world.go(MONTH_END + timedelta(days=31, minutes=5))
    await stripe_world.settle()
    await claims.claim_due(database, stripe_world.now)
    await outbox.drain(database, stripe_world.gateway, now=stripe_world.now)
    stripe_world.go(MONTH_END + timedelta(days=31, hours=2))
    await stripe_world.settle()
    invoices = await stripe_world.rows("SELECT id FROM invoices WHERE metered_value > 0 ORDER BY created")
    (unmetered, *_) = await stripe_world.rows("SELECT id FROM invoices WHERE metered_value IS NULL")
    async with visiting(world, org_id) as browser:
        found = []
        for invoice in invoices:
            assert f'href="/usage/rows?invoice={invoice.id}"' in await browser.page(f"/billing/invoices/{invoice.id}")
            page = await browser.page(f"/usage/rows?invoice={invoice.id}")
            assert f'href="/usage/rows.csv?span=days30&amp;bucket=day&amp;group=model&amp;invoice={invoice.id}"' in page
            file = (await browser.get(f"/usage/rows.csv?invoice={invoice.id}")).text
            found.append([int(row["input_tokens"]) for row in csv.DictReader(file.splitlines())])
        assert found == [[7], [13, 11]]
        assert (await browser.get(f"/usage/rows?invoice={unmetered.id}")).status_code == 404
    async with visiting(world, org_id, "developer") as browser:
        assert (await browser.get(f"/usage/rows?invoice={invoices[0].id}")).status_code == 403
    async with visiting(world, await make_org(database)) as browser:
        for path in ("/usage/rows", "/usage/rows.csv"):
            assert (await browser.get(f"{path}?invoice={invoices[0].id}")).status_code == 404


def _event(org_id: UUID, created_at: datetime) -> dict[str, Any]:
    return {
        "org_id": org_id,
        "subscription_id": new_id(),
        "stripe_customer_id": "cus_1",
        "meter": "tollgate_usage",
        "window_start": created_at,
        "window_end": created_at,
        "value": 1,
        "event_ts": created_at,
        "identifier": new_id(),
        "created_at": created_at,
    }
