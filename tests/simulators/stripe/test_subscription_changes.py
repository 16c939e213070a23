"""Changes in mid-period, and what they cost."""

from typing import Any

import pytest
import stripe

from tests.simulators.stripe.shop import Shop, at, item_of, lines
from tests.simulators.stripe.simulator import Simulator


def change(shop: Shop, subscription: Any, old: str, new: str, **more: Any) -> Any:
    items = [{"id": item_of(subscription, old).id, "price": new}]
    return shop.v1.subscriptions.update(subscription.id, {"items": items, **more})


def amounts(invoice: Any) -> list[int]:
    return [line.amount for line in invoice.lines.data]


def test_upgrade_credits_the_unused_and_debits_the_remaining_time(simulator: Simulator) -> None:
    shop = Shop(simulator, "2026-01-01")
    made = shop.subscribe(shop.month)
    shop.go("2026-01-16 12:00")
    change(shop, made, shop.month, shop.flat(6_000, "month"), proration_behavior="always_invoice")
    _, invoice = shop.invoices()
    assert (invoice.status, invoice.billing_reason) == ("paid", "subscription_update")
    assert amounts(invoice) == [-1_000, 3_000]
    assert [line.period.start for line in invoice.lines.data] == [at("2026-01-16 12:00")] * 2
    assert all(line.parent.subscription_item_details.proration for line in invoice.lines.data)
    assert invoice.total == invoice.amount_paid == 2_000


def test_proration_waits_for_the_renewal_unless_it_is_invoiced_at_once(simulator: Simulator) -> None:
    shop = Shop(simulator, "2026-01-01")
    made = shop.subscribe(shop.month)
    shop.go("2026-01-16 12:00")
    change(shop, made, shop.month, shop.flat(6_000, "month"))
    assert len(shop.invoices()) == 1
    pending = shop.v1.invoice_items.list({"customer": shop.customer, "pending": True}).data
    assert sorted(item.amount for item in pending) == [-1_000, 3_000]
    shop.go("2026-02-01")
    assert sorted(amounts(shop.invoices()[-1])) == [-1_000, 3_000, 6_000]
    assert shop.v1.invoice_items.list({"customer": shop.customer, "pending": True}).data == []


def test_no_proration_is_made_where_none_is_wanted(simulator: Simulator) -> None:
    shop = Shop(simulator, "2026-01-01")
    made = shop.subscribe(shop.month)
    shop.go("2026-01-16 12:00")
    change(shop, made, shop.month, shop.flat(6_000, "month"), proration_behavior="none")
    shop.go("2026-02-01")
    assert amounts(shop.invoices()[-1]) == [6_000]


def test_credit_is_of_what_was_debited_and_given_once(simulator: Simulator) -> None:
    shop = Shop(simulator, "2026-01-01")
    coupon = shop.v1.coupons.create({"percent_off": 50, "duration": "once"}).id
    made = shop.subscribe(shop.month, discounts=[{"coupon": coupon}])
    assert shop.invoices()[0].total == 1_000
    shop.go("2026-01-16 12:00")
    higher = shop.flat(6_000, "month")
    change(shop, made, shop.month, higher, proration_behavior="always_invoice")
    # Half of the 10.00 that were paid, and not of the 20.00 that the price says.
    assert amounts(shop.invoices()[-1]) == [-500, 3_000]
    change(shop, shop.subscription(made.id), higher, shop.month, proration_behavior="always_invoice")
    assert amounts(shop.invoices()[-1]) == [-3_000, 1_000]


def test_downgrade_leaves_credit_on_the_customer_for_the_next_invoice(simulator: Simulator) -> None:
    shop = Shop(simulator, "2026-01-01")
    higher = shop.flat(6_000, "month")
    made = shop.subscribe(higher)
    shop.go("2026-01-16 12:00")
    change(shop, made, higher, shop.month, proration_behavior="always_invoice")
    invoice = shop.invoices()[-1]
    assert (invoice.status, invoice.total, invoice.amount_due, invoice.ending_balance) == ("paid", -2_000, 0, -2_000)
    assert shop.v1.customers.retrieve(shop.customer).balance == -2_000
    shop.go("2026-02-01 02:00")
    renewal = shop.invoices()[-1]
    assert (renewal.total, renewal.starting_balance, renewal.amount_due) == (2_000, -2_000, 0)
    assert shop.v1.customers.retrieve(shop.customer).balance == 0


def test_usage_is_billed_at_the_price_at_which_it_was_reported(simulator: Simulator) -> None:
    shop = Shop(simulator, "2026-01-01")
    made = shop.subscribe(shop.metered)
    dearer = shop.per_unit("0.02")
    shop.use(100_000, "2026-01-01")
    shop.go("2026-01-15")
    shop.use(100_000, "2026-01-10")
    change(shop, made, shop.metered, dearer)
    shop.use(50_000, "2026-01-12")
    shop.go("2026-01-20")
    shop.use(50_000, "2026-01-20")
    shop.go("2026-02-01")
    [invoice] = shop.invoices()
    assert sorted((quantity, amount) for quantity, amount, _ in lines(invoice)) == [(100_000, 2_000), (200_000, 2_000)]


def test_change_of_a_metered_price_without_proration_forgets_the_usage_before(simulator: Simulator) -> None:
    shop = Shop(simulator, "2026-01-01")
    made = shop.subscribe(shop.metered)
    shop.use(100_000, "2026-01-01")
    change(shop, made, shop.metered, shop.per_unit("0.02"), proration_behavior="none")
    shop.use(50_000, "2026-01-01")
    shop.go("2026-02-01")
    assert [(quantity, amount) for quantity, amount, _ in lines(shop.invoices()[0])] == [(50_000, 1_000)]


def test_usage_of_an_item_that_is_removed_is_billed(simulator: Simulator) -> None:
    shop = Shop(simulator, "2026-01-01")
    made = shop.subscribe()
    shop.use(100_000, "2026-01-01")
    shop.v1.subscription_items.delete(item_of(made, shop.metered).id, {"proration_behavior": "always_invoice"})
    assert [(quantity, amount) for quantity, amount, _ in lines(shop.invoices()[-1])] == [(100_000, 1_000)]
    assert [item.price.id for item in shop.subscription(made.id)["items"].data] == [shop.month]


def test_metered_item_that_is_added_counts_from_then_on(simulator: Simulator) -> None:
    shop = Shop(simulator, "2026-01-01")
    made = shop.subscribe(shop.month)
    shop.use(100_000, "2026-01-01")
    shop.go("2026-01-10")
    shop.v1.subscription_items.create(
        {"subscription": made.id, "price": shop.metered, "proration_behavior": "always_invoice"}
    )
    assert len(shop.invoices()) == 1
    shop.use(30_000, "2026-01-10")
    shop.go("2026-02-01")
    assert [(quantity, amount) for quantity, amount, _ in lines(shop.invoices()[-1])] == [(30_000, 300), (1, 2_000)]


def test_change_from_month_to_year_keeps_the_anchor(simulator: Simulator) -> None:
    shop = Shop(simulator, "2026-01-01")
    made = shop.subscribe()
    shop.go("2026-01-16 12:00")
    changed = change(shop, made, shop.month, shop.year, proration_behavior="always_invoice")
    flat, metered = item_of(changed, shop.year), item_of(changed, shop.metered)
    assert changed.billing_cycle_anchor == at("2026-01-01")
    assert flat.current_period_end == at("2027-01-01")
    assert metered.current_period_end == at("2026-02-01")
    # 349.5 of 365 days of the year remain.
    assert amounts(shop.invoices()[-1]) == [-1_000, 19_151]
    shop.go("2026-02-01")
    assert [quantity for quantity, _, _ in lines(shop.invoices()[-1])] == [0]


def test_classic_billing_begins_a_new_cycle_when_the_interval_changes(simulator: Simulator) -> None:
    shop = Shop(simulator, "2026-01-01")
    made = shop.subscribe(shop.month, billing_mode={"type": "classic"})
    shop.go("2026-01-16 12:00")
    changed = change(shop, made, shop.month, shop.year)
    assert changed.billing_cycle_anchor == at("2026-01-16 12:00")
    assert item_of(changed, shop.year).current_period_end == at("2027-01-16 12:00")
    assert sorted(amounts(shop.invoices()[-1])) == [-1_000, 20_000]


def test_anchor_can_be_moved_to_now(simulator: Simulator) -> None:
    shop = Shop(simulator, "2026-01-01")
    made = shop.subscribe()
    shop.use(100_000, "2026-01-01")
    shop.go("2026-01-16 12:00")
    moved = shop.v1.subscriptions.update(made.id, {"billing_cycle_anchor": {"type": "now"}})
    assert item_of(moved, shop.month).current_period_end == at("2026-02-16 12:00")
    assert sorted(amounts(shop.invoices()[-1])) == [-1_000, 1_000, 2_000]


def test_quantity_is_prorated(simulator: Simulator) -> None:
    shop = Shop(simulator, "2026-01-01")
    made = shop.subscribe(shop.month)
    shop.go("2026-01-16 12:00")
    item = item_of(made, shop.month).id
    changed = shop.v1.subscription_items.update(item, {"quantity": 3, "proration_behavior": "always_invoice"})
    assert changed.quantity == 3
    assert amounts(shop.invoices()[-1]) == [-1_000, 3_000]
    assert shop.v1.subscription_items.retrieve(item).quantity == 3


def test_proration_can_be_dated(simulator: Simulator) -> None:
    shop = Shop(simulator, "2026-01-01")
    made = shop.subscribe(shop.month)
    shop.go("2026-01-20")
    higher = shop.flat(6_000, "month")
    moment = at("2026-01-16 12:00")
    change(shop, made, shop.month, higher, proration_behavior="always_invoice", proration_date=moment)
    assert amounts(shop.invoices()[-1]) == [-1_000, 3_000]


def test_update_that_declines_leaves_it_past_due_or_changes_nothing(simulator: Simulator) -> None:
    shop = Shop(simulator, "2026-01-01")
    made = shop.subscribe(shop.month)
    method = shop.v1.payment_methods.attach("pm_card_chargeCustomerFail", {"customer": shop.customer}).id
    shop.v1.subscriptions.update(made.id, {"default_payment_method": method})
    higher = shop.flat(6_000, "month")
    behavior = {"proration_behavior": "always_invoice", "payment_behavior": "error_if_incomplete"}
    with pytest.raises(stripe.CardError):
        change(shop, made, shop.month, higher, **behavior)
    assert shop.subscription(made.id)["items"].data[0].price.id == shop.month
    changed = change(shop, made, shop.month, higher, proration_behavior="always_invoice")
    assert changed.status == "past_due"
    assert shop.invoices()[-1].status == "open"


def test_update_event_holds_the_former_values(simulator: Simulator) -> None:
    shop = Shop(simulator)
    made = shop.subscribe(metadata={"org": "o1", "note": "x"})
    shop.v1.subscriptions.update(made.id, {"metadata": {"note": "", "seats": "3"}, "description": "Acme"})
    updated = shop.event("customer.subscription.updated")
    assert updated.data.object.metadata.to_dict() == {"org": "o1", "seats": "3"}
    previous = updated.data.previous_attributes.to_dict()
    assert previous == {"description": None, "metadata": {"note": "x", "seats": None}}


def test_update_that_changes_nothing_has_no_event(simulator: Simulator) -> None:
    shop = Shop(simulator)
    made = shop.subscribe()
    before = len(shop.events())
    shop.v1.subscriptions.update(made.id, {"metadata": {}})
    assert len(shop.events()) == before


def test_subscription_that_has_ended_cannot_be_changed(simulator: Simulator) -> None:
    shop = Shop(simulator)
    made = shop.subscribe()
    shop.v1.subscriptions.cancel(made.id)
    with pytest.raises(stripe.InvalidRequestError, match="No such subscription"):
        shop.v1.subscriptions.update(made.id, {"metadata": {"a": "b"}})


def test_cancellation_is_set_and_taken_back(simulator: Simulator) -> None:
    shop = Shop(simulator)
    made = shop.subscribe()
    ending = shop.v1.subscriptions.update(made.id, {"cancel_at_period_end": True})
    assert (ending.cancel_at_period_end, ending.cancel_at) == (True, at("2026-02-15"))
    assert (ending.canceled_at, ending.status) == (at("2026-01-15"), "active")
    kept = shop.v1.subscriptions.update(made.id, {"cancel_at_period_end": False})
    assert (kept.cancel_at_period_end, kept.cancel_at, kept.canceled_at) == (False, None, None)
    assert kept.cancellation_details.reason is None


def test_cancellation_of_mixed_intervals_names_the_end_it_means(simulator: Simulator) -> None:
    shop = Shop(simulator)
    made = shop.subscribe(shop.year, shop.metered)
    update = shop.v1.subscriptions.update
    assert update(made.id, {"cancel_at_period_end": True}).cancel_at == at("2026-02-15")
    assert update(made.id, {"cancel_at": "max_period_end"}).cancel_at == at("2027-01-15")
    assert update(made.id, {"cancel_at": "min_period_end"}).cancel_at == at("2026-02-15")
    assert update(made.id, {"cancel_at": ""}).cancel_at is None
    with pytest.raises(stripe.InvalidRequestError, match="only specify one"):
        update(made.id, {"cancel_at": at("2026-05-01"), "cancel_at_period_end": True})
    with pytest.raises(stripe.InvalidRequestError, match="future"):
        update(made.id, {"cancel_at": at("2026-01-15")})


def test_item_of_another_subscription_is_not_found(simulator: Simulator) -> None:
    shop = Shop(simulator)
    first, second = shop.subscribe(), shop.subscribe(shop.year)
    with pytest.raises(stripe.InvalidRequestError, match="No such subscription item"):
        change(shop, first, shop.month, shop.year) and shop.v1.subscriptions.update(
            second.id, {"items": [{"id": first["items"].data[0].id, "quantity": 2}]}
        )
    with pytest.raises(stripe.InvalidRequestError, match="No such subscription item"):
        shop.v1.subscription_items.retrieve("si_none")
