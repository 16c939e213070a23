"""Subscriptions as they are made, read and cancelled at once."""

import pytest
import stripe

from tests.simulators.stripe.shop import HOUR, Shop, at, item_of, lines
from tests.simulators.stripe.simulator import Simulator


def test_first_invoice_is_paid_at_once_and_has_no_line_for_usage(simulator: Simulator) -> None:
    shop = Shop(simulator)
    made = shop.subscribe()
    assert made.status == "active"
    assert made.billing_mode.type == "flexible"
    [invoice] = shop.invoices()
    assert made.latest_invoice == invoice.id
    assert (invoice.status, invoice.billing_reason, invoice.total) == ("paid", "subscription_create", 2_000)
    assert (invoice.period_start, invoice.period_end) == (at("2026-01-15"), at("2026-01-15"))
    assert lines(invoice) == [(1, 2_000, "1 × Pro (at $20.00 / month)")]  # noqa: RUF001
    assert invoice.parent.subscription_details.subscription == made.id


def test_periods_lie_with_the_items_and_follow_their_intervals(simulator: Simulator) -> None:
    shop = Shop(simulator, "2026-01-31")
    made = shop.subscribe(shop.year, shop.metered)
    flat, metered = item_of(made, shop.year), item_of(made, shop.metered)
    assert (flat.current_period_start, flat.current_period_end) == (at("2026-01-31"), at("2027-01-31"))
    assert (metered.current_period_start, metered.current_period_end) == (at("2026-01-31"), at("2026-02-28"))
    assert metered.quantity is None
    assert metered.plan.usage_type == "metered"


def test_subscription_of_usage_alone_has_no_first_invoice(simulator: Simulator) -> None:
    shop = Shop(simulator, card=None)
    made = shop.subscribe(shop.metered)
    assert made.status == "active"
    assert made.latest_invoice is None
    assert shop.invoices() == []


def test_events_tell_of_incomplete_and_then_active(simulator: Simulator) -> None:
    shop = Shop(simulator)
    shop.subscribe()
    assert shop.event("customer.subscription.created").data.object.status == "incomplete"
    updated = shop.event("customer.subscription.updated")
    assert updated.data.object.status == "active"
    assert updated.data.previous_attributes.to_dict() == {"status": "incomplete"}
    assert shop.events("invoice.created", "invoice.finalized", "charge.succeeded", "invoice.paid") == [
        "invoice.created",
        "invoice.finalized",
        "charge.succeeded",
        "invoice.paid",
    ]
    assert shop.event("invoice.created").data.object.status == "draft"
    assert shop.event("invoice.finalized").data.object.status == "open"


def test_without_a_card_nothing_is_made(simulator: Simulator) -> None:
    shop = Shop(simulator, card=None)
    with pytest.raises(stripe.InvalidRequestError, match="no attached payment source"):
        shop.subscribe()
    assert shop.v1.subscriptions.list({"status": "all"}).data == []


def test_default_incomplete_waits_for_the_payment(simulator: Simulator) -> None:
    shop = Shop(simulator, card=None)
    made = shop.subscribe(
        payment_behavior="default_incomplete",
        payment_settings={"save_default_payment_method": "on_subscription"},
        expand=["latest_invoice.confirmation_secret", "latest_invoice.payments"],
    )
    assert made.status == "incomplete"
    secret = made.latest_invoice.confirmation_secret.client_secret
    intent = made.latest_invoice.payments.data[0].payment.payment_intent
    assert secret.startswith(intent)
    shop.v1.payment_intents.confirm(intent, {"payment_method": "pm_card_visa"})
    after = shop.subscription(made.id)
    assert after.status == "active"
    assert after.default_payment_method is not None
    assert shop.invoices()[0].status == "paid"


def test_first_payment_that_declines_leaves_it_incomplete_and_expires_after_23_hours(simulator: Simulator) -> None:
    shop = Shop(simulator, card="pm_card_chargeCustomerFail")
    made = shop.subscribe()
    assert made.status == "incomplete"
    [invoice] = shop.invoices()
    assert (invoice.status, invoice.attempt_count, invoice.next_payment_attempt) == ("open", 1, None)
    shop.go(at("2026-01-15") + 23 * HOUR - 1)
    assert shop.subscription(made.id).status == "incomplete"
    shop.go(at("2026-01-15") + 23 * HOUR)
    assert shop.subscription(made.id).status == "incomplete_expired"
    assert shop.invoices()[0].status == "void"


def test_error_if_incomplete_makes_nothing(simulator: Simulator) -> None:
    shop = Shop(simulator, card="pm_card_chargeCustomerFail")
    with pytest.raises(stripe.CardError) as caught:
        shop.subscribe(payment_behavior="error_if_incomplete")
    assert caught.value.code == "card_declined"
    assert shop.v1.subscriptions.list({"status": "all"}).data == []
    assert shop.invoices() == []


def test_invoice_by_mail_activates_at_once_and_is_overdue_later(simulator: Simulator) -> None:
    shop = Shop(simulator, card=None)
    made = shop.subscribe(collection_method="send_invoice", days_until_due=14)
    assert made.status == "active"
    [invoice] = shop.invoices()
    assert (invoice.status, invoice.due_date) == ("open", at("2026-01-29"))
    shop.go("2026-01-29")
    assert shop.subscription(made.id).status == "past_due"
    assert "invoice.overdue" in shop.events()


def test_anchor_ahead_bills_the_time_until_then(simulator: Simulator) -> None:
    shop = Shop(simulator)
    made = shop.subscribe(shop.month, billing_cycle_anchor=at("2026-02-01"))
    item = item_of(made, shop.month)
    assert (item.current_period_start, item.current_period_end) == (at("2026-01-15"), at("2026-02-01"))
    # 17 of January's 31 days.
    assert shop.invoices()[0].total == 1_097


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "at least one"),
        ([{"price": "month"}, {"price": "month"}], "same plan"),
        ([{"price": "metered", "quantity": 2}], "quantity for metered"),
        ([{"price": "once"}], "only accepts recurring"),
        ([{"price": "euro"}, {"price": "month"}], "same currency"),
        ([{"price": "week"}, {"price": "month"}], "multiples of the shortest"),
        ([{"price": "retired"}], "inactive"),
        ([{"quantity": 2}], "Missing required param"),
        ([{"price": "month", "quantity": -1}], "non-negative"),
    ],
)
def test_items_that_cannot_stand_together_are_refused(
    simulator: Simulator, items: list[dict[str, object]], message: str
) -> None:
    shop = Shop(simulator)
    retired = shop.flat(1_000, "month")
    shop.v1.prices.update(retired, {"active": False})
    ids = {
        "month": shop.month,
        "metered": shop.metered,
        "week": shop.flat(500, "week"),
        "euro": shop.flat(500, "month", currency="eur"),
        "once": shop.v1.prices.create({"product": shop.plan, "currency": "usd", "unit_amount": 500}).id,
        "retired": retired,
    }
    entries = [{**entry, "price": ids[str(entry["price"])]} if "price" in entry else entry for entry in items]
    with pytest.raises(stripe.InvalidRequestError, match=message):
        shop.v1.subscriptions.create({"customer": shop.customer, "items": entries})


def test_classic_billing_does_not_mix_intervals(simulator: Simulator) -> None:
    shop = Shop(simulator)
    with pytest.raises(stripe.InvalidRequestError, match="flexible billing mode"):
        shop.subscribe(shop.year, shop.metered, billing_mode={"type": "classic"})
    classic = shop.subscribe(shop.month, billing_mode={"type": "classic"})
    migrated = shop.v1.subscriptions.migrate(classic.id, {"billing_mode": {"type": "flexible"}})
    assert migrated.billing_mode.type == "flexible"
    shop.v1.subscription_items.create({"subscription": classic.id, "price": shop.year})


def test_lists_leave_out_what_has_ended(simulator: Simulator) -> None:
    shop = Shop(simulator)
    first, second = shop.subscribe(), shop.subscribe(shop.year)
    shop.v1.subscriptions.cancel(first.id)
    found = {
        status: [made.id for made in shop.v1.subscriptions.list({"customer": shop.customer, **query}).data]
        for status, query in {
            "live": {},
            "all": {"status": "all"},
            "ended": {"status": "ended"},
            "canceled": {"status": "canceled"},
            "trialing": {"status": "trialing"},
            "price": {"price": shop.year},
        }.items()
    }
    assert found == {
        "live": [second.id],
        "all": [second.id, first.id],
        "ended": [first.id],
        "canceled": [first.id],
        "trialing": [],
        "price": [second.id],
    }


def test_cancelling_at_once_bills_nothing_by_itself(simulator: Simulator) -> None:
    shop = Shop(simulator)
    made = shop.subscribe()
    shop.use(5_000, "2026-01-15")
    ended = shop.v1.subscriptions.cancel(made.id, {"cancellation_details": {"feedback": "unused"}})
    assert ended.status == "canceled"
    assert (ended.ended_at, ended.canceled_at) == (at("2026-01-15"), at("2026-01-15"))
    assert ended.cancellation_details.reason == "cancellation_requested"
    assert ended.cancellation_details.feedback == "unused"
    assert len(shop.invoices()) == 1
    assert shop.events("customer.subscription.deleted") == ["customer.subscription.deleted"]
    shop.go("2026-03-01")
    assert len(shop.invoices()) == 1
    with pytest.raises(stripe.InvalidRequestError, match="No such subscription"):
        shop.v1.subscriptions.cancel(made.id)


def test_cancelling_with_invoice_now_bills_usage_and_credits_unused_time(simulator: Simulator) -> None:
    shop = Shop(simulator, "2026-01-01")
    made = shop.subscribe()
    shop.go("2026-01-16 12:00")
    shop.use(100_000, "2026-01-10")
    ended = shop.v1.subscriptions.cancel(made.id, {"invoice_now": True, "prorate": True})
    final = shop.invoices()[-1]
    # Half of the month was paid for and not used.
    assert [(amount, quantity) for quantity, amount, _ in lines(final)] == [(-1_000, 1), (1_000, 100_000)]
    assert (final.status, final.amount_due) == ("paid", 0)
    assert ended.latest_invoice == final.id
    credit = final.lines.data[0].parent.subscription_item_details
    assert credit.proration
    assert credit.proration_details.credited_items.invoice == shop.invoices()[0].id


@pytest.mark.parametrize(("behavior", "total"), [("create_prorations", 1_000), ("none", None)])
def test_time_before_the_anchor_is_billed_in_part_or_free(
    simulator: Simulator, behavior: str, total: int | None
) -> None:
    shop = Shop(simulator, "2026-02-15")
    made = shop.subscribe(shop.month, billing_cycle_anchor=at("2026-03-01"), proration_behavior=behavior)
    assert made.status == "active"
    assert [invoice.total for invoice in shop.invoices()] == ([] if total is None else [total])
    assert item_of(made, shop.month).current_period_end == at("2026-03-01")
    shop.go("2026-03-02")
    assert shop.invoices()[-1].total == 2_000


def test_end_is_ahead(simulator: Simulator) -> None:
    shop = Shop(simulator)
    with pytest.raises(stripe.InvalidRequestError, match="in the future"):
        shop.subscribe(cancel_at=at("2026-01-15"))


@pytest.mark.parametrize("anchor", ["2026-01-14", "2026-02-15 00:01"])
def test_anchor_is_ahead_and_within_a_period(simulator: Simulator, anchor: str) -> None:
    shop = Shop(simulator)
    with pytest.raises(stripe.InvalidRequestError, match="natural billing date"):
        shop.subscribe(billing_cycle_anchor=at(anchor))


def test_subscription_that_there_is_not_is_a_404(simulator: Simulator) -> None:
    with pytest.raises(stripe.InvalidRequestError) as caught:
        simulator.v1.subscriptions.retrieve("sub_none")
    assert (caught.value.http_status, caught.value.code) == (404, "resource_missing")
