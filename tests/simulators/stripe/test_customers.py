"""Customers, and what happens to what is theirs."""

import pytest
import stripe

from tests.simulators.stripe.shop import Shop, at
from tests.simulators.stripe.simulator import Simulator


def test_customer_is_made_found_changed_and_listed(simulator: Simulator) -> None:
    made = simulator.v1.customers.create({"email": "a@acme.example", "metadata": {"org": "o1", "x": "1"}})
    assert made.id.startswith("cus_")
    changed = simulator.v1.customers.update(made.id, {"name": "Acme", "metadata": {"x": "", "y": "2"}})
    assert changed.name == "Acme"
    assert changed.metadata.to_dict() == {"org": "o1", "y": "2"}
    assert simulator.v1.customers.retrieve(made.id).name == "Acme"
    assert [found.id for found in simulator.v1.customers.list({"email": "a@acme.example"}).data] == [made.id]
    assert simulator.v1.customers.list({"email": "b@acme.example"}).data == []


def test_nothing_comes_due_for_a_deleted_customer(simulator: Simulator) -> None:
    shop = Shop(simulator)
    shop.subscribe()
    later = {"customer": shop.customer, "start_date": at("2026-02-20")}
    phase = {"items": [{"price": shop.month}], "duration": {"interval": "month"}}
    schedule = shop.v1.subscription_schedules.create({**later, "phases": [phase]}).id
    shop.go("2026-02-15")
    draft = shop.invoices()[-1]
    shop.v1.customers.delete(shop.customer)
    shop.go("2026-03-15")
    assert shop.v1.invoices.retrieve(draft.id).status == "draft"
    assert shop.v1.subscription_schedules.retrieve(schedule).status == "canceled"


def test_deleted_customer_is_only_a_mark(simulator: Simulator) -> None:
    made = simulator.v1.customers.create({"email": "a@acme.example"})
    assert simulator.v1.customers.delete(made.id).deleted
    assert simulator.v1.customers.retrieve(made.id).deleted
    assert simulator.v1.customers.list().data == []
    with pytest.raises(stripe.InvalidRequestError, match="No such customer") as caught:
        simulator.v1.customers.update(made.id, {"name": "Acme"})
    assert caught.value.code == "resource_missing"
    assert caught.value.http_status == 404


@pytest.mark.parametrize("name", ["source", "tax_id_data[0][type]"])
def test_what_the_simulator_does_not_know_is_refused(simulator: Simulator, name: str) -> None:
    value = "eu_vat&tax_id_data[0][value]=DE1" if "tax" in name else "tok_visa"
    answer = simulator.raw("POST", "/v1/customers", f"{name}={value}")
    assert answer.status_code == 400
    assert "does not know" in answer.json()["error"]["message"]


def test_empty_values_unset_fields(simulator: Simulator) -> None:
    made = simulator.v1.customers.create({"name": "Acme", "address": {"country": "DE"}, "tax_exempt": "exempt"})
    assert (made.address.country, made.tax_exempt) == ("DE", "exempt")
    changed = simulator.v1.customers.update(made.id, {"address": "", "tax_exempt": "", "metadata": ""})
    assert (changed.address, changed.tax_exempt) == (None, "none")
    footer = {"invoice_settings": {"footer": "Thanks"}}
    assert simulator.v1.customers.update(made.id, footer).invoice_settings.footer == "Thanks"


def test_deleted_customer_has_no_subscription_and_no_card_left(simulator: Simulator) -> None:
    made = simulator.v1.customers.create({"payment_method": "pm_card_visa"}).id
    card = simulator.v1.payment_methods.list({"customer": made}).data[0].id
    price = simulator.v1.prices.create(
        {"product_data": {"name": "Pro"}, "currency": "usd", "unit_amount": 1, "recurring": {"interval": "month"}}
    )
    subscription = simulator.v1.subscriptions.create(
        {"customer": made, "items": [{"price": price.id}], "default_payment_method": card}
    )
    shown = simulator.v1.customers.retrieve(made, {"expand": ["subscriptions", "sources", "tax_ids"]})
    assert [found.id for found in shown.subscriptions.data] == [subscription.id]
    assert (shown.sources.data, shown.tax_ids.data) == ([], [])
    simulator.v1.customers.delete(made)
    assert simulator.v1.subscriptions.retrieve(subscription.id).status == "canceled"
    assert simulator.v1.payment_methods.retrieve(card).customer is None
