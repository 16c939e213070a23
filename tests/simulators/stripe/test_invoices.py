"""Invoices: their sums, and how they are settled."""

from typing import Any

import pytest
import stripe

from tests.simulators.stripe.shop import DAY, Shop, at, item_of, lines
from tests.simulators.stripe.simulator import Simulator


def draft(shop: Shop, cents: int = 5_000, **more: Any) -> Any:
    shop.v1.invoice_items.create(
        {"customer": shop.customer, "amount": cents, "currency": "usd", "description": "Setup"}
    )
    return shop.v1.invoices.create({"customer": shop.customer, "pending_invoice_items_behavior": "include", **more})


def opened(shop: Shop, cents: int = 5_000) -> Any:
    return shop.v1.invoices.finalize_invoice(draft(shop, cents).id, {"auto_advance": False})


def test_draft_is_finalised_numbered_and_paid(simulator: Simulator) -> None:
    shop = Shop(simulator)
    made = draft(shop)
    assert (made.status, made.total, made.number, made.auto_advance) == ("draft", 5_000, None, False)
    final = shop.v1.invoices.finalize_invoice(made.id)
    assert (final.status, final.amount_due, final.amount_remaining) == ("open", 5_000, 5_000)
    assert final.number.endswith("-0001")
    assert final.hosted_invoice_url.startswith(simulator.url)
    paid = shop.v1.invoices.pay(made.id)
    assert (paid.status, paid.amount_paid, paid.amount_remaining) == ("paid", 5_000, 0)
    assert paid.status_transitions.paid_at == at("2026-01-15")
    assert opened(shop).number.endswith("-0002")
    with pytest.raises(stripe.InvalidRequestError, match="already finalized"):
        shop.v1.invoices.finalize_invoice(made.id)
    with pytest.raises(stripe.InvalidRequestError, match="already paid"):
        shop.v1.invoices.pay(made.id)


def test_draft_with_auto_advance_is_collected_after_an_hour(simulator: Simulator) -> None:
    shop = Shop(simulator)
    made = draft(shop, auto_advance=True)
    shop.go("2026-01-15 01:00")
    assert shop.v1.invoices.retrieve(made.id).status == "paid"


def test_card_that_declines_is_a_402_and_the_invoice_stays_open(simulator: Simulator) -> None:
    shop = Shop(simulator, card="pm_card_chargeCustomerFail")
    made = opened(shop)
    with pytest.raises(stripe.CardError) as caught:
        shop.v1.invoices.pay(made.id)
    assert (caught.value.http_status, caught.value.code) == (402, "card_declined")
    assert caught.value.error is not None
    assert caught.value.error.decline_code == "generic_decline"
    after = shop.v1.invoices.retrieve(made.id, {"expand": ["payments.data.payment.payment_intent"]})
    assert (after.status, after.attempted, after.attempt_count) == ("open", True, 1)
    intent = after.payments.data[0].payment.payment_intent
    assert intent.last_payment_error.decline_code == "generic_decline"
    good = shop.v1.payment_methods.attach("pm_card_visa", {"customer": shop.customer}).id
    assert shop.v1.invoices.pay(made.id, {"payment_method": good}).status == "paid"


def test_invoice_can_be_paid_elsewhere(simulator: Simulator) -> None:
    shop = Shop(simulator, card=None)
    paid = shop.v1.invoices.pay(opened(shop).id, {"paid_out_of_band": True})
    assert paid.status == "paid"
    assert shop.v1.charges.list().data == []


def test_void_gives_credits_and_balance_back(simulator: Simulator) -> None:
    shop = Shop(simulator, "2026-01-01", card="pm_card_chargeCustomerFail")
    grant(shop, 300)
    shop.v1.customers.update(shop.customer, {"balance": -100})
    shop.subscribe(shop.metered)
    shop.use(100_000, "2026-01-01")
    shop.go("2026-02-01 02:00")
    invoice = shop.invoices()[-1]
    assert (invoice.status, invoice.total, invoice.amount_due) == ("open", 700, 600)
    assert available(shop) == 0
    voided = shop.v1.invoices.void_invoice(invoice.id)
    assert (voided.status, voided.next_payment_attempt) == ("void", None)
    assert available(shop) == 300
    assert shop.v1.customers.retrieve(shop.customer).balance == -100
    intent = shop.v1.payment_intents.list({"customer": shop.customer}).data[0]
    assert (intent.status, intent.cancellation_reason) == ("canceled", "void_invoice")
    with pytest.raises(stripe.InvalidRequestError, match="only void"):
        shop.v1.invoices.void_invoice(invoice.id)


def grant(shop: Shop, cents: int, **more: Any) -> str:
    params = {
        "customer": shop.customer,
        "amount": {"type": "monetary", "monetary": {"currency": "usd", "value": cents}},
        "applicability_config": {"scope": {"price_type": "metered"}},
        "category": "paid",
        **more,
    }
    return str(shop.v1.billing.credit_grants.create(params).id)


def available(shop: Shop) -> int:
    scope = {"type": "applicability_scope", "applicability_scope": {"price_type": "metered"}}
    summary = shop.v1.billing.credit_balance_summary.retrieve({"customer": shop.customer, "filter": scope})
    return sum(balance.available_balance.monetary.value for balance in summary.balances)


def test_credits_pay_for_usage_only_when_the_invoice_is_finalised(simulator: Simulator) -> None:
    shop = Shop(simulator, "2026-01-01")
    grant(shop, 5_000)
    shop.subscribe()
    shop.use(100_000, "2026-01-01")
    shop.go("2026-02-01")
    assert (shop.invoices()[-1].total, available(shop)) == (3_000, 5_000)
    shop.go("2026-02-01 01:00")
    invoice = shop.invoices()[-1]
    assert (invoice.subtotal, invoice.total, invoice.amount_paid) == (3_000, 2_000, 2_000)
    [credit] = invoice.total_pretax_credit_amounts
    assert (credit.type, credit.amount) == ("credit_balance_transaction", 1_000)
    assert available(shop) == 4_000


def test_credits_come_off_after_discounts_and_before_tax(simulator: Simulator) -> None:
    shop = Shop(simulator, "2026-01-01")
    grant(shop, 200)
    coupon = shop.v1.coupons.create({"percent_off": 25, "duration": "forever"}).id
    rate = shop.v1.tax_rates.create({"display_name": "VAT", "percentage": 10, "inclusive": False}).id
    shop.subscribe(shop.metered, discounts=[{"coupon": coupon}], default_tax_rates=[rate])
    shop.use(100_000, "2026-01-01")
    shop.go("2026-02-01 01:00")
    invoice = shop.invoices()[-1]
    # 10.00 less 2.50 less 2.00 is 5.50, and 0.55 tax on it.
    assert (invoice.subtotal, invoice.total_excluding_tax, invoice.total) == (1_000, 550, 605)
    assert [part.amount for part in invoice.total_discount_amounts] == [250]
    [tax] = invoice.total_taxes
    assert (tax.amount, tax.taxable_amount, tax.tax_behavior) == (55, 550, "exclusive")
    assert sorted(part.type for part in invoice.total_pretax_credit_amounts) == [
        "credit_balance_transaction",
        "discount",
    ]


def test_inclusive_tax_is_part_of_the_price(simulator: Simulator) -> None:
    shop = Shop(simulator)
    rate = shop.v1.tax_rates.create({"display_name": "VAT", "percentage": 25, "inclusive": True}).id
    shop.subscribe(shop.month, default_tax_rates=[rate])
    [invoice] = shop.invoices()
    assert (invoice.total, invoice.total_excluding_tax, invoice.total_taxes[0].amount) == (2_000, 1_600, 400)
    assert invoice.subtotal_excluding_tax == 1_600


def test_discount_lasts_as_long_as_its_coupon_says(simulator: Simulator) -> None:
    shop = Shop(simulator, "2026-01-01")
    coupons = [
        shop.v1.coupons.create(params).id
        for params in (
            {"percent_off": 50, "duration": "once"},
            {"amount_off": 300, "currency": "usd", "duration": "repeating", "duration_in_months": 2},
            {"amount_off": 100, "currency": "usd", "duration": "forever"},
        )
    ]
    shop.subscribe(shop.month, discounts=[{"coupon": coupon} for coupon in coupons])
    for month in ("02", "03"):
        shop.go(f"2026-{month}-01 02:00")
    assert [invoice.total for invoice in shop.invoices()] == [600, 1_600, 1_900]


def test_coupon_for_one_product_leaves_the_other_lines_alone(simulator: Simulator) -> None:
    shop = Shop(simulator, "2026-01-01")
    applies = {"products": [shop.tokens]}
    coupon = shop.v1.coupons.create({"percent_off": 10, "duration": "forever", "applies_to": applies}).id
    shop.subscribe(discounts=[{"coupon": coupon}])
    shop.use(100_000, "2026-01-01")
    shop.go("2026-02-01")
    assert [invoice.total for invoice in shop.invoices()] == [2_000, 2_900]


def test_amount_off_is_shared_out_without_losing_a_cent(simulator: Simulator) -> None:
    shop = Shop(simulator)
    coupon = shop.v1.coupons.create({"amount_off": 100, "currency": "usd", "duration": "once"}).id
    prices = [shop.flat(333, "month"), shop.flat(333, "month"), shop.flat(334, "month")]
    shop.subscribe(*prices, discounts=[{"coupon": coupon}])
    [invoice] = shop.invoices()
    assert invoice.total == 900
    assert sum(part.amount for line in invoice.lines.data for part in line.discount_amounts) == 100


def test_promotion_code_is_counted_and_used_up(simulator: Simulator) -> None:
    shop = Shop(simulator)
    coupon = shop.v1.coupons.create({"percent_off": 50, "duration": "forever"}).id
    promotion = {"type": "coupon", "coupon": coupon}
    code = shop.v1.promotion_codes.create({"promotion": promotion, "code": "HALF", "max_redemptions": 1}).id
    made = shop.subscribe(shop.month, discounts=[{"promotion_code": code}], expand=["discounts"])
    assert made.discounts[0].promotion_code == code
    assert shop.invoices()[0].total == 1_000
    after = shop.v1.promotion_codes.retrieve(code)
    assert (after.times_redeemed, after.active) == (1, False)
    with pytest.raises(stripe.InvalidRequestError, match="not active"):
        shop.subscribe(shop.year, discounts=[{"promotion_code": code}])


def test_amount_too_small_to_charge_goes_to_the_next_invoice(simulator: Simulator) -> None:
    shop = Shop(simulator, "2026-01-01")
    shop.subscribe(shop.metered)
    shop.use(3_000, "2026-01-01")
    shop.go("2026-02-01 02:00")
    first = shop.invoices()[-1]
    assert (first.status, first.total, first.amount_due, first.ending_balance) == ("paid", 30, 0, 30)
    shop.use(3_000, "2026-02-01")
    shop.go("2026-03-01 02:00")
    second = shop.invoices()[-1]
    assert (second.total, second.starting_balance, second.amount_due, second.amount_paid) == (30, 30, 60, 60)


def test_pending_item_goes_onto_the_next_invoice_once(simulator: Simulator) -> None:
    shop = Shop(simulator, "2026-01-01")
    made = shop.subscribe(shop.month)
    shop.v1.invoice_items.create({"customer": shop.customer, "amount": 700, "currency": "usd", "subscription": made.id})
    shop.go("2026-02-01")
    assert sorted(amount for _, amount, _ in lines(shop.invoices()[-1])) == [700, 2_000]
    shop.go("2026-03-01")
    assert [amount for _, amount, _ in lines(shop.invoices()[-1])] == [2_000]


def test_pending_item_can_be_changed_and_deleted(simulator: Simulator) -> None:
    shop = Shop(simulator)
    items = shop.v1.invoice_items
    item = items.create({"customer": shop.customer, "amount": 700, "currency": "usd"})
    assert items.update(item.id, {"amount": 800}).amount == 800
    assert items.retrieve(item.id).amount == 800
    items.delete(item.id)
    assert items.list({"customer": shop.customer}).data == []
    used = items.create({"customer": shop.customer, "amount": 700, "currency": "usd"})
    shop.v1.invoices.create({"customer": shop.customer, "pending_invoice_items_behavior": "include"})
    with pytest.raises(stripe.InvalidRequestError, match="already on an invoice"):
        items.delete(used.id)


def test_item_of_a_price_costs_quantity_times_price(simulator: Simulator) -> None:
    shop = Shop(simulator)
    price = shop.v1.prices.create({"product": shop.plan, "currency": "usd", "unit_amount": 1_500}).id
    made = shop.v1.invoice_items.create({"customer": shop.customer, "pricing": {"price": price}, "quantity": 3})
    assert (made.amount, made.quantity, made.description) == (4_500, 3, "Pro")
    with pytest.raises(stripe.InvalidRequestError, match="one_time"):
        shop.v1.invoice_items.create({"customer": shop.customer, "pricing": {"price": shop.month}})
    with pytest.raises(stripe.InvalidRequestError, match="amount"):
        shop.v1.invoice_items.create({"customer": shop.customer, "currency": "usd"})
    with pytest.raises(stripe.InvalidRequestError, match="currency"):
        shop.v1.invoice_items.create({"customer": shop.customer, "amount": 5})


def test_draft_can_be_deleted_and_changed_but_a_final_one_cannot(simulator: Simulator) -> None:
    shop = Shop(simulator)
    made = draft(shop)
    changed = shop.v1.invoices.update(made.id, {"description": "January", "metadata": {"a": "b"}})
    assert (changed.description, changed.metadata.to_dict()) == ("January", {"a": "b"})
    shop.v1.invoices.delete(made.id)
    assert len(shop.v1.invoice_items.list({"customer": shop.customer, "pending": True}).data) == 1
    final = opened(shop)
    with pytest.raises(stripe.InvalidRequestError, match="can't be updated"):
        shop.v1.invoices.update(final.id, {"description": "February"})
    with pytest.raises(stripe.InvalidRequestError, match="only delete draft"):
        shop.v1.invoices.delete(final.id)


def test_invoice_that_is_written_off_can_still_be_paid(simulator: Simulator) -> None:
    shop = Shop(simulator)
    made = opened(shop)
    assert shop.v1.invoices.mark_uncollectible(made.id).status == "uncollectible"
    assert shop.events("invoice.marked_uncollectible") == ["invoice.marked_uncollectible"]
    assert shop.v1.invoices.pay(made.id).status == "paid"


def test_voiding_the_failed_invoice_makes_the_subscription_active_again(simulator: Simulator) -> None:
    shop = Shop(simulator)
    made = shop.subscribe(shop.month)
    simulator.control("POST", f"/customers/{shop.customer}/decline")
    shop.go("2026-02-15 01:00")
    assert shop.subscription(made.id).status == "past_due"
    shop.v1.invoices.void_invoice(shop.invoices()[-1].id)
    assert shop.subscription(made.id).status == "active"
    shop.go(at("2026-02-15 01:00") + 20 * DAY)
    assert shop.subscription(made.id).status == "active"


def test_open_invoices_of_a_cancelled_subscription_are_not_collected(simulator: Simulator) -> None:
    shop = Shop(simulator)
    made = shop.subscribe(shop.month)
    simulator.control("POST", f"/customers/{shop.customer}/decline")
    shop.go("2026-02-15 01:00")
    shop.v1.subscriptions.cancel(made.id)
    simulator.control("POST", f"/customers/{shop.customer}/decline", on=False)
    shop.go("2026-03-15")
    invoice = shop.invoices()[-1]
    assert (invoice.status, invoice.auto_advance, invoice.attempt_count) == ("open", False, 1)


def test_lines_and_lists_are_found_by_what_they_belong_to(simulator: Simulator) -> None:
    shop = Shop(simulator)
    first, second = shop.subscribe(shop.month), shop.subscribe(shop.year)
    found = shop.v1.invoices.list({"subscription": second.id}).data
    assert [invoice.id for invoice in found] == [second.latest_invoice]
    assert len(shop.v1.invoices.list({"status": "paid"}).data) == 2
    assert shop.v1.invoices.list({"status": "open"}).data == []
    line = shop.v1.invoices.line_items.list(first.latest_invoice).data[0]
    assert line.parent.subscription_item_details.subscription_item == item_of(first, shop.month).id
    payment = shop.v1.invoice_payments.list({"invoice": first.latest_invoice}).data[0]
    assert (payment.status, payment.amount_paid, payment.is_default) == ("paid", 2_000, True)
    assert shop.v1.invoice_payments.retrieve(payment.id).invoice == first.latest_invoice


def test_credits_pay_for_usage_that_a_change_of_price_bills(simulator: Simulator) -> None:
    shop = Shop(simulator, "2026-01-01")
    grant(shop, 400)
    made = shop.subscribe()
    shop.use(100_000, "2026-01-01")
    item = item_of(made, shop.metered).id
    shop.v1.subscription_items.update(item, {"price": shop.per_unit("1"), "proration_behavior": "always_invoice"})
    invoice = shop.invoices()[-1]
    assert (invoice.subtotal, invoice.total, available(shop)) == (1_000, 600, 0)


def test_invoice_by_mail_is_sent_and_waits(simulator: Simulator) -> None:
    shop = Shop(simulator, card=None)
    made = draft(shop, collection_method="send_invoice", days_until_due=30, auto_advance=True)
    assert made.due_date == at("2026-02-14")
    shop.go("2026-01-15 01:00")
    assert shop.v1.invoices.retrieve(made.id).status == "open"
    assert shop.events("invoice.sent") == ["invoice.sent"]
    other = draft(shop)
    assert shop.v1.invoices.send_invoice(other.id).status == "open"


def test_first_invoice_that_is_voided_ends_the_wait(simulator: Simulator) -> None:
    shop = Shop(simulator, card="pm_card_chargeCustomerFail")
    made = shop.subscribe()
    shop.v1.invoices.void_invoice(made.latest_invoice)
    assert shop.subscription(made.id).status == "incomplete_expired"


def test_customer_without_a_card_cannot_pay_by_itself(simulator: Simulator) -> None:
    shop = Shop(simulator, card=None)
    made = opened(shop)
    with pytest.raises(stripe.InvalidRequestError, match="no `default_payment_method`"):
        shop.v1.invoices.pay(made.id)
    foreign = shop.v1.payment_methods.attach("pm_card_visa", {"customer": shop.new_customer(None)}).id
    with pytest.raises(stripe.InvalidRequestError, match="attached to the invoice's customer"):
        shop.v1.invoices.pay(made.id, {"payment_method": foreign})


def test_draft_takes_discounts_and_taxes_of_its_own(simulator: Simulator) -> None:
    shop = Shop(simulator)
    coupon = shop.v1.coupons.create({"percent_off": 10, "duration": "once"}).id
    rate = shop.v1.tax_rates.create({"display_name": "VAT", "percentage": 20, "inclusive": False}).id
    made = draft(shop)
    changes = {"discounts": [{"coupon": coupon}], "default_tax_rates": [rate], "auto_advance": True}
    changed = shop.v1.invoices.update(made.id, changes)
    assert (changed.subtotal, changed.total) == (5_000, 5_400)
    assert changed.automatically_finalizes_at == at("2026-01-15 01:00")
    same = shop.v1.invoices.update(made.id, {"discounts": [{"discount": changed.discounts[0]}]})
    assert same.total == 5_400
    expired = shop.v1.coupons.create({"percent_off": 5, "duration": "once", "max_redemptions": 1}).id
    shop.v1.invoices.update(draft(shop).id, {"discounts": [{"coupon": expired}]})
    with pytest.raises(stripe.InvalidRequestError, match="expired"):
        shop.v1.invoices.update(made.id, {"discounts": [{"coupon": expired}]})


def test_items_can_be_put_onto_a_draft_that_is_there(simulator: Simulator) -> None:
    shop = Shop(simulator)
    made = shop.v1.invoices.create({"customer": shop.customer})
    assert made.total == 0
    item = {"customer": shop.customer, "amount": 700, "currency": "usd", "invoice": made.id}
    shop.v1.invoice_items.create(item)
    assert shop.v1.invoices.retrieve(made.id).total == 700
    shop.v1.invoices.finalize_invoice(made.id)
    with pytest.raises(stripe.InvalidRequestError, match="only be added to draft"):
        shop.v1.invoice_items.create(item)


def test_finalised_invoice_that_advances_is_collected_when_time_moves_on(simulator: Simulator) -> None:
    shop = Shop(simulator)
    made = shop.v1.invoices.finalize_invoice(draft(shop).id, {"auto_advance": True})
    assert made.status == "open"
    shop.go("2026-01-15 00:01")
    assert shop.v1.invoices.retrieve(made.id).status == "paid"
