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
    shop.use(10_000, "2026-02-01")
    shop.go("2026-03-01")
    assert [quantity for quantity, _, _ in lines(shop.invoices()[-1])] == [10_000]


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


def test_trial_that_is_given_later_bills_the_usage_before_it(simulator: Simulator) -> None:
    shop = Shop(simulator, "2026-01-01")
    made = shop.subscribe()
    shop.use(100_000, "2026-01-01")
    shop.go("2026-01-16 12:00")
    trial = shop.v1.subscriptions.update(made.id, {"trial_end": at("2026-01-30")})
    assert (trial.status, trial.trial_start, trial.trial_end) == (
        "trialing",
        at("2026-01-16 12:00"),
        at("2026-01-30"),
    )
    assert item_of(trial, shop.metered).current_period_end == at("2026-01-30")
    shop.go("2026-01-20")
    shop.use(70_000, "2026-01-20")
    shop.v1.subscriptions.update(made.id, {"trial_end": at("2026-01-25")})
    shop.go("2026-01-25")
    assert sorted(amounts(shop.invoices()[-1])) == [-1_000, 0, 1_000, 2_000]
    with pytest.raises(stripe.InvalidRequestError, match="in the future"):
        shop.v1.subscriptions.update(made.id, {"trial_end": at("2026-01-02")})


def test_items_that_are_added_in_a_trial_cost_nothing_until_it_ends(simulator: Simulator) -> None:
    shop = Shop(simulator, "2026-01-01")
    made = shop.subscribe(shop.month, trial_period_days=10)
    shop.v1.subscription_items.create({"subscription": made.id, "price": shop.flat(500, "month")})
    assert {item.current_period_end for item in shop.subscription(made.id)["items"].data} == {at("2026-01-11")}
    shop.go("2026-01-11")
    assert sorted(amounts(shop.invoices()[-1])) == [500, 2_000]


def test_licensed_item_that_is_added_pays_for_the_rest_of_the_period(simulator: Simulator) -> None:
    shop = Shop(simulator, "2026-01-01")
    made = shop.subscribe(shop.month)
    shop.go("2026-01-16 12:00")
    extra = {"subscription": made.id, "price": shop.flat(1_000, "month"), "quantity": 2}
    shop.v1.subscription_items.create({**extra, "proration_behavior": "always_invoice"})
    assert amounts(shop.invoices()[-1]) == [1_000]
    assert shop.invoices()[-1].lines.data[0].description == "Remaining time on 2 × Pro after 16 Jan 2026"  # noqa: RUF001
    assert len(shop.v1.subscription_items.list({"subscription": made.id}).data) == 2


def test_discounts_and_taxes_of_an_item_are_its_own(simulator: Simulator) -> None:
    shop = Shop(simulator, "2026-01-01")
    half = shop.v1.coupons.create({"percent_off": 50, "duration": "forever"}).id
    rate = shop.v1.tax_rates.create({"display_name": "VAT", "percentage": 10, "inclusive": False}).id
    items = [
        {"price": shop.month, "discounts": [{"coupon": half}]},
        {"price": shop.year, "tax_rates": [rate], "metadata": {"kind": "base"}},
    ]
    shop.v1.subscriptions.create({"customer": shop.customer, "items": items})
    [invoice] = shop.invoices()
    assert (invoice.subtotal, invoice.total) == (22_000, 1_000 + 20_000 + 2_000)
    assert invoice.lines.data[1].metadata.to_dict() == {"kind": "base"}


def test_percentage_is_taken_off_a_proration_too(simulator: Simulator) -> None:
    shop = Shop(simulator, "2026-01-01")
    half = shop.v1.coupons.create({"percent_off": 50, "duration": "forever"}).id
    made = shop.subscribe(shop.month, discounts=[{"coupon": half}])
    shop.go("2026-01-16 12:00")
    change(shop, made, shop.month, shop.flat(6_000, "month"), proration_behavior="always_invoice")
    assert (amounts(shop.invoices()[-1]), shop.invoices()[-1].total) == ([-500, 1_500], 1_000)


def test_settings_are_changed_for_the_next_invoice(simulator: Simulator) -> None:
    shop = Shop(simulator, "2026-01-01")
    made = shop.subscribe(shop.month)
    coupon = shop.v1.coupons.create({"percent_off": 10, "duration": "once"}).id
    rate = shop.v1.tax_rates.create({"display_name": "VAT", "percentage": 10, "inclusive": False}).id
    changed = shop.v1.subscriptions.update(
        made.id,
        {
            "discounts": [{"coupon": coupon}],
            "default_tax_rates": [rate],
            "payment_settings": {"save_default_payment_method": "on_subscription"},
            "cancellation_details": {"comment": "too dear"},
            "description": "Acme",
        },
    )
    assert changed.cancellation_details.comment == "too dear"
    shop.go("2026-02-01 02:00")
    invoice = shop.invoices()[-1]
    assert (invoice.subtotal, invoice.total, invoice.description) == (2_000, 1_980, "Acme")
    after = shop.subscription(made.id)
    assert after.default_payment_method is not None
    assert after.discounts == []
    again = shop.v1.subscriptions.update(made.id, {"discounts": "", "default_tax_rates": "", "description": ""})
    assert (again.default_tax_rates, again.description) == ([], None)


def test_subscription_that_waits_for_its_first_payment_cannot_be_changed(simulator: Simulator) -> None:
    shop = Shop(simulator, card="pm_card_chargeCustomerFail")
    made = shop.subscribe()
    with pytest.raises(stripe.InvalidRequestError, match="first invoice is paid"):
        shop.v1.subscriptions.update(made.id, {"cancel_at_period_end": True})
    assert shop.v1.subscriptions.update(made.id, {"metadata": {"a": "b"}}).metadata.to_dict() == {"a": "b"}


def test_pending_updates_are_refused(simulator: Simulator) -> None:
    shop = Shop(simulator)
    made = shop.subscribe()
    with pytest.raises(stripe.InvalidRequestError, match="pending_if_incomplete"):
        shop.v1.subscriptions.update(made.id, {"payment_behavior": "pending_if_incomplete"})
    with pytest.raises(stripe.InvalidRequestError, match="pending_if_incomplete"):
        shop.subscribe(shop.year, payment_behavior="pending_if_incomplete")


@pytest.mark.parametrize("moment", ["2026-01-14 23:59", "2026-02-15 00:01"])
def test_proration_date_outside_of_the_period_is_refused(simulator: Simulator, moment: str) -> None:
    shop = Shop(simulator)
    made = shop.subscribe(shop.month)
    item = item_of(made, shop.month).id
    change = {"items": [{"id": item, "quantity": 2}], "proration_date": at(moment)}
    with pytest.raises(stripe.InvalidRequestError, match="current period"):
        shop.v1.subscriptions.update(made.id, change)


@pytest.mark.parametrize(("terms", "kept"), [({}, 0), ({"prorate": True}, 3), ({"invoice_now": True}, 0)])
def test_prorations_that_wait_are_forgotten_by_a_plain_cancellation(
    simulator: Simulator, terms: dict[str, bool], kept: int
) -> None:
    shop = Shop(simulator)
    made = shop.subscribe(shop.month)
    shop.go("2026-01-20")
    shop.v1.subscriptions.update(made.id, {"items": [{"id": item_of(made, shop.month).id, "quantity": 2}]})
    shop.v1.subscriptions.cancel(made.id, terms)
    assert len(shop.v1.invoice_items.list({"customer": shop.customer, "pending": True}).data) == kept
    assert len(shop.invoices()) == (2 if terms.get("invoice_now") else 1)
