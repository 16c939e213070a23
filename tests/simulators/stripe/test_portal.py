"""The billing portal and the page of an invoice."""

from typing import Any

import httpx
import pytest
import stripe

from tests.simulators.stripe.shop import Shop, at
from tests.simulators.stripe.simulator import Simulator

GOOD, BAD = "4242 4242 4242 4242", "4000 0000 0000 0002"


def visit(shop: Shop, **more: Any) -> str:
    params = {"customer": shop.customer, "return_url": "https://shop.example/account", **more}
    return str(shop.v1.billing_portal.sessions.create(params).url)


def press(url: str, action: str, **fields: str) -> httpx.Response:
    return httpx.post(url, data={"action": action, **fields})


def test_page_shows_subscriptions_card_and_invoices(simulator: Simulator) -> None:
    shop = Shop(simulator)
    shop.subscribe()
    page = httpx.get(visit(shop))
    assert page.status_code == 200
    for text in ("Pro", "Tokens", "by usage", "4242", "20.00 USD", "https://shop.example/account"):
        assert text in page.text
    assert "never against the real service" in page.text


def test_cancellation_is_at_the_latest_end_and_can_be_taken_back(simulator: Simulator) -> None:
    shop = Shop(simulator)
    made = shop.subscribe(shop.year, shop.metered)
    url = visit(shop)
    assert press(url, "cancel", subscription=made.id).status_code == 303
    ending = shop.subscription(made.id)
    assert (ending.cancel_at, ending.cancel_at_period_end) == (at("2027-01-15"), False)
    assert "ends on 15 Jan 2027" in httpx.get(url).text
    press(url, "resume", subscription=made.id)
    assert shop.subscription(made.id).cancel_at is None


def test_classic_subscription_is_cancelled_at_its_period_end(simulator: Simulator) -> None:
    shop = Shop(simulator)
    made = shop.subscribe(shop.month, billing_mode={"type": "classic"})
    press(visit(shop), "cancel", subscription=made.id)
    assert shop.subscription(made.id).cancel_at_period_end


def test_configuration_decides_what_may_be_done(simulator: Simulator) -> None:
    shop = Shop(simulator)
    made = shop.subscribe()
    features = {
        "invoice_history": {"enabled": True},
        "subscription_cancel": {"enabled": True, "mode": "immediately", "proration_behavior": "create_prorations"},
    }
    configurations = shop.v1.billing_portal.configurations
    configuration = configurations.create({"features": features, "business_profile": {"headline": "Acme bills"}})
    assert not configuration.is_default
    url = visit(shop, configuration=configuration.id)
    page = httpx.get(url).text
    assert "Acme bills" in page
    assert "Change the card" not in page
    assert press(url, "card", number=GOOD).status_code == 403
    shop.use(100_000, "2026-01-15")
    press(url, "cancel", subscription=made.id)
    assert shop.subscription(made.id).status == "canceled"
    assert shop.invoices()[-1].total == -1_000
    changed = configurations.update(configuration.id, {"name": "Small", "metadata": {"a": "b"}})
    assert (changed.name, changed.metadata.to_dict()) == ("Small", {"a": "b"})
    assert configurations.retrieve(configuration.id).name == "Small"
    visit(shop)
    assert [found.is_default for found in configurations.list({"is_default": True}).data] == [True]


def test_new_card_pays_from_then_on(simulator: Simulator) -> None:
    shop = Shop(simulator)
    first = shop.v1.customers.retrieve(shop.customer).invoice_settings.default_payment_method
    made = shop.subscribe(default_payment_method=first)
    simulator.control("POST", f"/customers/{shop.customer}/decline")
    url = visit(shop)
    assert press(url, "card", number=BAD).status_code == 402
    assert press(url, "card", number="letters").status_code == 402
    assert press(url, "card", number="5555 5555 5555 4444").status_code == 303
    default = shop.v1.customers.retrieve(shop.customer).invoice_settings.default_payment_method
    assert default != first
    assert shop.subscription(made.id).default_payment_method == default
    assert "4444" in httpx.get(url).text
    shop.go("2026-02-15 02:00")
    assert shop.invoices()[-1].status == "paid"


def test_nobody_else_has_the_page_or_the_subscription(simulator: Simulator) -> None:
    shop = Shop(simulator)
    other = shop.new_customer()
    theirs = shop.v1.subscriptions.create({"customer": other, "items": [{"price": shop.month}]})
    url = visit(shop)
    assert press(url, "cancel", subscription=theirs.id).status_code == 404
    assert press(url, "cancel", subscription="sub_none").status_code == 404
    assert shop.subscription(theirs.id).cancel_at is None
    assert httpx.get(f"{simulator.url}/portal/guess").status_code == 404
    assert press(url, "explode").status_code == 400


def test_flow_opens_its_part_and_leads_where_it_should(simulator: Simulator) -> None:
    shop = Shop(simulator)
    made = shop.subscribe()
    after = {"type": "redirect", "redirect": {"return_url": "https://shop.example/gone"}}
    flow = {"type": "subscription_cancel", "subscription_cancel": {"subscription": made.id}, "after_completion": after}
    session = shop.v1.billing_portal.sessions.create({"customer": shop.customer, "flow_data": flow})
    assert session.flow.type == "subscription_cancel"
    done = press(session.url, "cancel", subscription=made.id)
    assert done.headers["location"] == "https://shop.example/gone"
    assert "<details open>" in httpx.get(visit(shop, flow_data={"type": "payment_method_update"})).text
    foreign = shop.v1.customers.create({}).id
    with pytest.raises(stripe.InvalidRequestError, match="another customer"):
        shop.v1.billing_portal.sessions.create({"customer": foreign, "flow_data": flow})
    with pytest.raises(stripe.InvalidRequestError, match="customer"):
        shop.v1.billing_portal.sessions.create({})


def test_open_invoice_is_paid_on_its_page(simulator: Simulator) -> None:
    shop = Shop(simulator)
    made = shop.subscribe()
    simulator.control("POST", f"/customers/{shop.customer}/decline")
    shop.go("2026-02-15 02:00")
    invoice = shop.invoices()[-1]
    assert shop.subscription(made.id).status == "past_due"
    page = httpx.get(invoice.hosted_invoice_url)
    assert "Pay 20.00 USD" in page.text
    assert httpx.get(invoice.invoice_pdf).status_code == 200
    assert httpx.post(invoice.hosted_invoice_url, data={"number": BAD}).status_code == 402
    assert httpx.post(invoice.hosted_invoice_url, data={"number": "4000000000000341"}).status_code == 402
    assert httpx.post(invoice.hosted_invoice_url, data={"number": "letters"}).status_code == 402
    assert httpx.post(invoice.hosted_invoice_url, data={"number": GOOD}).status_code == 303
    assert shop.subscription(made.id).status == "active"
    again = httpx.post(invoice.hosted_invoice_url, data={"number": GOOD})
    assert again.status_code == 400
    assert len([charge for charge in shop.v1.charges.list({"customer": shop.customer}).data if charge.paid]) == 2


def test_cardholder_on_the_invoice_page_agrees_to_what_the_bank_asks(simulator: Simulator) -> None:
    shop = Shop(simulator)
    shop.subscribe()
    simulator.control("POST", f"/customers/{shop.customer}/decline")
    shop.go("2026-02-15 02:00")
    invoice = shop.invoices()[-1]
    assert httpx.post(invoice.hosted_invoice_url, data={"number": "4000 0027 6000 3184"}).status_code == 303
    assert shop.v1.invoices.retrieve(invoice.id).status == "paid"


def test_draft_has_no_page(simulator: Simulator) -> None:
    shop = Shop(simulator)
    shop.subscribe()
    shop.go("2026-02-15")
    draft = shop.invoices()[-1]
    assert draft.hosted_invoice_url is None
    assert httpx.get(f"{simulator.url}/invoices/{draft.id}").status_code == 404
