"""Previews of invoices."""

from typing import Any

import pytest
import stripe

from tests.simulators.stripe.shop import Shop, at, item_of, lines
from tests.simulators.stripe.simulator import Simulator


def everything(shop: Shop) -> list[Any]:
    """What a preview must not change; events are told apart by their ids, because deliveries change them."""
    world = shop.simulator.world
    kinds = ("invoice", "invoiceitem", "subscription", "customer", "payment_intent", "charge", "discount")
    events = [event["id"] for event in world.all("event")]
    return [events, *(world.snapshot(found) for kind in kinds for found in world.all(kind))]


def test_next_renewal_shows_usage_so_far_and_what_is_pending(simulator: Simulator) -> None:
    shop = Shop(simulator)
    made = shop.subscribe()
    shop.use(100_000, "2026-01-15")
    shop.v1.invoice_items.create({"customer": shop.customer, "amount": 700, "currency": "usd"})
    before = everything(shop)
    preview = shop.v1.invoices.create_preview({"subscription": made.id})
    assert sorted(amount for _, amount, _ in lines(preview)) == [700, 1_000, 2_000]
    assert (preview.status, preview.total, preview.billing_reason) == ("draft", 3_700, "subscription_cycle")
    assert preview.id.startswith("upcoming_in_")
    assert (preview.period_end, preview.created) == (at("2026-02-15"), at("2026-02-15"))
    assert everything(shop) == before


def test_change_that_is_invoiced_at_once_shows_that_invoice(simulator: Simulator) -> None:
    shop = Shop(simulator, "2026-01-01")
    made = shop.subscribe()
    shop.go("2026-01-16 12:00")
    higher = shop.flat(6_000, "month")
    before = everything(shop)
    details = {
        "items": [{"id": item_of(made, shop.month).id, "price": higher}],
        "proration_behavior": "always_invoice",
        "proration_date": at("2026-01-16 12:00"),
    }
    preview = shop.v1.invoices.create_preview({"subscription": made.id, "subscription_details": details})
    assert [amount for _, amount, _ in lines(preview)] == [-1_000, 3_000]
    assert (preview.status, preview.amount_due, preview.amount_paid, preview.number) == ("draft", 2_000, 0, None)
    assert everything(shop) == before
    shop.v1.subscriptions.update(made.id, details)
    assert shop.invoices()[-1].total == preview.total


def test_change_that_waits_shows_the_renewal_with_it(simulator: Simulator) -> None:
    shop = Shop(simulator, "2026-01-01")
    made = shop.subscribe()
    shop.go("2026-01-16 12:00")
    details = {"items": [{"id": item_of(made, shop.month).id, "price": shop.flat(6_000, "month")}]}
    preview = shop.v1.invoices.create_preview({"subscription": made.id, "subscription_details": details})
    assert sorted(amount for _, amount, _ in lines(preview)) == [-1_000, 0, 3_000, 6_000]


def test_cancelling_now_shows_the_last_invoice(simulator: Simulator) -> None:
    shop = Shop(simulator, "2026-01-01")
    made = shop.subscribe()
    shop.use(100_000, "2026-01-01")
    shop.go("2026-01-16 12:00")
    preview = shop.v1.invoices.create_preview({"subscription": made.id, "subscription_details": {"cancel_now": True}})
    assert sorted(amount for _, amount, _ in lines(preview)) == [-1_000, 1_000]
    assert shop.subscription(made.id).status == "active"


def test_new_subscription_can_be_previewed_without_a_card(simulator: Simulator) -> None:
    shop = Shop(simulator, card=None)
    coupon = shop.v1.coupons.create({"percent_off": 50, "duration": "once"}).id
    details = {"items": [{"price": shop.month}, {"price": shop.metered}]}
    params = {"customer": shop.customer, "subscription_details": details, "discounts": [{"coupon": coupon}]}
    assert shop.v1.invoices.create_preview(params).total == 1_000
    usage = {"customer": shop.customer, "subscription_details": {"items": [{"price": shop.metered}]}}
    assert shop.v1.invoices.create_preview(usage).total == 0
    assert shop.v1.subscriptions.list({"status": "all"}).data == []


def test_subscription_that_ends_has_a_last_invoice_or_none(simulator: Simulator) -> None:
    shop = Shop(simulator)
    made = shop.subscribe(cancel_at_period_end=True)
    with pytest.raises(stripe.InvalidRequestError) as caught:
        shop.v1.invoices.create_preview({"subscription": made.id})
    assert (caught.value.http_status, caught.value.code) == (404, "invoice_upcoming_none")
    shop.use(100_000, "2026-01-15")
    assert shop.v1.invoices.create_preview({"subscription": made.id}).total == 1_000
    shop.v1.subscriptions.cancel(made.id)
    with pytest.raises(stripe.InvalidRequestError, match="No upcoming invoices"):
        shop.v1.invoices.create_preview({"subscription": made.id})


def test_items_of_the_caller_are_on_it(simulator: Simulator) -> None:
    shop = Shop(simulator)
    made = shop.subscribe(shop.month)
    extra = [{"amount": 250, "currency": "usd", "description": "Setup"}]
    preview = shop.v1.invoices.create_preview({"subscription": made.id, "invoice_items": extra})
    assert preview.total == 2_250
    with pytest.raises(stripe.InvalidRequestError, match="customer or a subscription"):
        shop.v1.invoices.create_preview({})
    with pytest.raises(stripe.InvalidRequestError, match="by their amount"):
        shop.v1.invoices.create_preview({"subscription": made.id, "invoice_items": [{"price": shop.month}]})


def test_anchor_of_a_new_subscription_is_previewed_and_of_a_running_one_refused(simulator: Simulator) -> None:
    shop = Shop(simulator, "2026-02-15")
    anchor = {"type": "timestamp", "timestamp": at("2026-03-01")}
    details = {"items": [{"price": shop.month}], "billing_cycle_anchor": anchor}
    assert shop.v1.invoices.create_preview({"customer": shop.customer, "subscription_details": details}).total == 1_000
    running = {"subscription": shop.subscribe().id, "subscription_details": {"billing_cycle_anchor": anchor}}
    with pytest.raises(stripe.InvalidRequestError, match="can only become now"):
        shop.v1.invoices.create_preview(running)
