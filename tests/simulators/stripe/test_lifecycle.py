"""What happens as time passes under a test clock."""

from decimal import Decimal

import pytest

from tests.simulators.stripe.shop import DAY, HOUR, Shop, at, item_of, lines
from tests.simulators.stripe.simulator import Simulator


def test_renewal_is_a_draft_for_an_hour_in_which_late_usage_counts(simulator: Simulator) -> None:
    shop = Shop(simulator)
    shop.subscribe()
    shop.use(100_000, "2026-01-15")
    shop.go("2026-02-15")
    draft = shop.invoices()[-1]
    assert (draft.status, draft.total, draft.auto_advance) == ("draft", 3_000, True)
    assert draft.automatically_finalizes_at == at("2026-02-15 01:00")
    assert (draft.period_start, draft.period_end) == (at("2026-01-15"), at("2026-02-15"))
    shop.go("2026-02-15 00:59")
    shop.use(50_000, "2026-02-14 23:59")
    assert shop.v1.invoices.retrieve(draft.id).total == 3_500
    # Nobody looks at the draft between this one and its end.
    shop.use(10_000, "2026-02-14 23:59")
    shop.go("2026-02-15 01:00")
    shop.use(70_000, "2026-02-14 23:59")
    final = shop.v1.invoices.retrieve(draft.id)
    assert (final.status, final.total, final.amount_paid) == ("paid", 3_600, 3_600)
    assert [line.id for line in final.lines.data] == [line.id for line in draft.lines.data]


def test_usage_at_the_boundary_belongs_to_the_period_that_begins(simulator: Simulator) -> None:
    shop = Shop(simulator)
    shop.subscribe()
    shop.go("2026-02-15")
    shop.use(1_000, at("2026-02-15") - 1)
    shop.use(2_000, at("2026-02-15"))
    shop.go("2026-03-15")
    _, first, second = shop.invoices()
    assert [quantity for quantity, _, _ in lines(first)] == [1_000, 1]
    assert [quantity for quantity, _, _ in lines(second)] == [2_000, 1]


def test_renewal_has_a_line_for_no_usage(simulator: Simulator) -> None:
    shop = Shop(simulator)
    shop.subscribe()
    shop.go("2026-02-15")
    assert [(quantity, amount) for quantity, amount, _ in lines(shop.invoices()[-1])] == [(0, 0), (1, 2_000)]


def test_tiers_have_lines_of_their_own_that_add_up(simulator: Simulator) -> None:
    shop = Shop(simulator)
    price = shop.graduated({"up_to": 1_000_000, "unit_amount": 0}, {"up_to": "inf", "unit_amount_decimal": "0.00015"})
    shop.subscribe(shop.month, price)
    shop.use(1_500_000, "2026-01-15")
    shop.go("2026-02-15")
    invoice = shop.invoices()[-1]
    assert [(quantity, amount) for quantity, amount, _ in lines(invoice)] == [
        (1_000_000, 0),
        (500_000, 75),
        (1, 2_000),
    ]
    assert invoice.lines.data[1].description == "500000 × Tokens (Tier 2 at $0.0000015 / month)"  # noqa: RUF001
    assert invoice.lines.data[1].pricing.unit_amount_decimal == Decimal("0.00015")


def test_month_end_anchor_is_kept(simulator: Simulator) -> None:
    shop = Shop(simulator, "2026-01-31")
    made = shop.subscribe(shop.month)
    ends = []
    for when in ("2026-02-01", "2026-03-01", "2026-04-01"):
        shop.go(when)
        ends.append(item_of(shop.subscription(made.id), shop.month).current_period_end)
    assert ends == [at("2026-02-28"), at("2026-03-31"), at("2026-04-30")]


def test_year_and_month_bill_apart_and_together_on_the_anniversary(simulator: Simulator) -> None:
    shop = Shop(simulator)
    made = shop.subscribe(shop.year, shop.metered)
    shop.go("2026-02-15")
    shop.use(10_000, "2026-02-15")
    shop.go("2027-01-15")
    found = shop.invoices()
    assert len(found) == 13
    assert [amount for _, amount, _ in lines(found[1])] == [0]
    assert [amount for _, amount, _ in lines(found[2])] == [100]
    assert [amount for _, amount, _ in lines(found[12])] == [0, 20_000]
    assert item_of(shop.subscription(made.id), shop.year).current_period_end == at("2028-01-15")


def test_reminders_come_three_days_ahead_once(simulator: Simulator) -> None:
    shop = Shop(simulator)
    shop.subscribe()
    shop.use(100_000, "2026-01-15")
    shop.go(at("2026-02-12") - 1)
    assert shop.events("invoice.upcoming") == []
    shop.go("2026-02-14")
    assert shop.events("invoice.upcoming") == ["invoice.upcoming"]
    upcoming = shop.event("invoice.upcoming")
    assert upcoming.created == at("2026-02-12")
    assert upcoming.data.object.total == 3_000
    assert "id" not in upcoming.data.object.to_dict()
    shop.go("2026-03-14")
    assert len(shop.events("invoice.upcoming")) == 2


def test_trial_costs_nothing_and_its_usage_is_never_billed(simulator: Simulator) -> None:
    shop = Shop(simulator, card=None)
    made = shop.subscribe(trial_period_days=14)
    assert (made.status, made.trial_end) == ("trialing", at("2026-01-29"))
    assert item_of(made, shop.metered).current_period_end == at("2026-01-29")
    [first] = shop.invoices()
    assert (first.status, first.total) == ("paid", 0)
    assert lines(first) == [(1, 0, "Free trial for 1 × Pro")]  # noqa: RUF001
    shop.use(100_000, "2026-01-15")
    shop.go("2026-01-26")
    assert shop.events("customer.subscription.trial_will_end") == ["customer.subscription.trial_will_end"]
    method = shop.v1.payment_methods.attach("pm_card_visa", {"customer": shop.customer}).id
    shop.v1.customers.update(shop.customer, {"invoice_settings": {"default_payment_method": method}})
    shop.go("2026-01-29 01:00")
    renewal = shop.invoices()[-1]
    assert (renewal.status, renewal.total) == ("paid", 2_000)
    assert (0, 100_000) in [(amount, quantity) for quantity, amount, _ in lines(renewal)]
    after = shop.subscription(made.id)
    assert (after.status, after.billing_cycle_anchor) == ("active", at("2026-01-29"))
    assert item_of(after, shop.month).current_period_end == at("2026-02-28")


@pytest.mark.parametrize(
    ("behavior", "status"), [("cancel", "canceled"), ("pause", "paused"), ("create_invoice", "active")]
)
def test_trial_without_a_card_ends_as_it_was_told_to(simulator: Simulator, behavior: str, status: str) -> None:
    shop = Shop(simulator, card=None)
    settings = {"end_behavior": {"missing_payment_method": behavior}}
    made = shop.subscribe(trial_period_days=7, trial_settings=settings)
    shop.go("2026-01-22")
    assert shop.subscription(made.id).status == status


def test_paused_subscription_is_resumed_in_a_new_cycle(simulator: Simulator) -> None:
    shop = Shop(simulator, card=None)
    settings = {"end_behavior": {"missing_payment_method": "pause"}}
    made = shop.subscribe(trial_period_days=7, trial_settings=settings)
    shop.go("2026-02-01")
    method = shop.v1.payment_methods.attach("pm_card_visa", {"customer": shop.customer}).id
    shop.v1.customers.update(shop.customer, {"invoice_settings": {"default_payment_method": method}})
    resumed = shop.v1.subscriptions.resume(made.id, {"billing_cycle_anchor": {"type": "now"}})
    assert resumed.status == "active"
    assert item_of(resumed, shop.month).current_period_end == at("2026-03-01")
    assert shop.invoices()[-1].total == 2_000
    assert shop.events("customer.subscription.paused", "customer.subscription.resumed") == [
        "customer.subscription.paused",
        "customer.subscription.resumed",
    ]


def test_trial_can_be_ended_now(simulator: Simulator) -> None:
    shop = Shop(simulator)
    made = shop.subscribe(trial_period_days=14)
    shop.go("2026-01-20")
    ended = shop.v1.subscriptions.update(made.id, {"trial_end": "now"})
    assert (ended.status, ended.billing_cycle_anchor) == ("active", at("2026-01-20"))
    assert shop.invoices()[-1].total == 2_000
    assert item_of(ended, shop.month).current_period_end == at("2026-02-20")


def test_cancel_at_period_end_bills_the_last_usage(simulator: Simulator) -> None:
    shop = Shop(simulator)
    made = shop.subscribe(cancel_at_period_end=True)
    shop.use(100_000, "2026-01-15")
    shop.go("2026-02-15")
    ended = shop.subscription(made.id)
    assert (ended.status, ended.ended_at) == ("canceled", at("2026-02-15"))
    last = shop.invoices()[-1]
    assert (last.status, last.total) == ("draft", 1_000)
    assert shop.events("customer.subscription.deleted") == ["customer.subscription.deleted"]
    shop.use(100_000, "2026-02-14")
    shop.go("2026-02-15 01:00")
    assert (shop.invoices()[-1].status, shop.invoices()[-1].total) == ("paid", 2_000)
    shop.go("2026-06-01")
    assert len(shop.invoices()) == 2


def test_cancel_in_mid_period_credits_the_rest_if_it_was_to_be_prorated(simulator: Simulator) -> None:
    shop = Shop(simulator, "2026-01-01")
    made = shop.subscribe(shop.month)
    shop.v1.subscriptions.update(made.id, {"cancel_at": at("2026-01-16 12:00")})
    shop.go("2026-01-16 14:00")
    assert shop.subscription(made.id).status == "canceled"
    assert (shop.invoices()[-1].status, shop.invoices()[-1].total) == ("paid", -1_000)


def test_renewal_before_a_set_end_bills_only_until_then(simulator: Simulator) -> None:
    shop = Shop(simulator, "2026-01-01")
    made = shop.subscribe(shop.month)
    shop.v1.subscriptions.update(made.id, {"cancel_at": at("2026-02-15"), "proration_behavior": "none"})
    shop.go("2026-02-01")
    assert shop.invoices()[-1].total == 1_000
    assert item_of(shop.subscription(made.id), shop.month).current_period_end == at("2026-02-15")
    shop.go("2026-03-01")
    assert shop.subscription(made.id).ended_at == at("2026-02-15")
    assert len(shop.invoices()) == 2


def test_failed_renewal_is_tried_after_3_5_and_7_days_and_then_cancelled(simulator: Simulator) -> None:
    shop = Shop(simulator)
    made = shop.subscribe()
    refuse(shop)
    failed_at = at("2026-02-15 01:00")
    attempts = []
    for days in (0, 3, 5, 7):
        failed_at += days * DAY
        shop.go(failed_at)
        invoice = shop.invoices()[-1]
        attempts.append((invoice.status, invoice.attempt_count, invoice.next_payment_attempt))
    assert attempts == [
        ("open", 1, at("2026-02-18 01:00")),
        ("open", 2, at("2026-02-23 01:00")),
        ("open", 3, at("2026-03-02 01:00")),
        ("open", 4, None),
    ]
    ended = shop.subscription(made.id)
    assert (ended.status, ended.cancellation_details.reason) == ("canceled", "payment_failed")
    assert shop.events("invoice.payment_failed") == ["invoice.payment_failed"] * 4


def refuse(shop: Shop) -> None:
    """From now on the customer's card declines."""
    method = shop.v1.payment_methods.attach("pm_card_chargeCustomerFail", {"customer": shop.customer}).id
    shop.v1.customers.update(shop.customer, {"invoice_settings": {"default_payment_method": method}})


def test_failed_renewal_is_past_due_until_it_is_paid(simulator: Simulator) -> None:
    shop = Shop(simulator)
    made = shop.subscribe()
    good = shop.v1.customers.retrieve(shop.customer).invoice_settings.default_payment_method
    refuse(shop)
    shop.go("2026-02-15 01:00")
    assert shop.subscription(made.id).status == "past_due"
    previous = shop.event("customer.subscription.updated").data.previous_attributes.to_dict()
    assert previous == {"status": "active"}
    shop.v1.customers.update(shop.customer, {"invoice_settings": {"default_payment_method": good}})
    shop.go("2026-02-18 01:00")
    assert shop.subscription(made.id).status == "active"
    assert shop.invoices()[-1].status == "paid"


def test_latest_invoice_decides_and_not_an_older_one(simulator: Simulator) -> None:
    shop = Shop(simulator)
    made = shop.subscribe()
    simulator.control("POST", "/dunning", retry_days=[1], end="past_due")
    refuse(shop)
    shop.go("2026-03-20")
    _, older, latest = shop.invoices()
    assert (older.status, latest.status, shop.subscription(made.id).status) == ("open", "open", "past_due")
    good = shop.v1.payment_methods.attach("pm_card_visa", {"customer": shop.customer}).id
    shop.v1.invoices.pay(older.id, {"payment_method": good})
    assert shop.subscription(made.id).status == "past_due"
    shop.v1.invoices.pay(latest.id, {"payment_method": good})
    assert shop.subscription(made.id).status == "active"


def test_manual_attempts_do_not_move_the_schedule(simulator: Simulator) -> None:
    shop = Shop(simulator)
    shop.subscribe()
    refuse(shop)
    shop.go("2026-02-15 01:00")
    invoice = shop.invoices()[-1]
    with pytest.raises(Exception, match="declined"):
        shop.v1.invoices.pay(invoice.id)
    again = shop.v1.invoices.retrieve(invoice.id)
    assert (again.attempt_count, again.next_payment_attempt) == (1, at("2026-02-18 01:00"))


def test_unpaid_subscription_drafts_invoices_that_stay_drafts(simulator: Simulator) -> None:
    shop = Shop(simulator)
    made = shop.subscribe()
    simulator.control("POST", "/dunning", retry_days=[1], end="unpaid")
    refuse(shop)
    shop.go("2026-02-16 01:00")
    assert shop.subscription(made.id).status == "unpaid"
    shop.go("2026-03-16")
    kept = shop.invoices()[-1]
    assert (kept.status, kept.auto_advance) == ("draft", False)


def test_renewal_that_wants_the_cardholder_says_so(simulator: Simulator) -> None:
    shop = Shop(simulator)
    made = shop.subscribe()
    card = shop.v1.payment_methods.attach("pm_card_authenticationRequired", {"customer": shop.customer}).id
    shop.v1.customers.update(shop.customer, {"invoice_settings": {"default_payment_method": card}})
    shop.go("2026-02-15 01:00")
    assert shop.subscription(made.id).status == "past_due"
    told = ["invoice.payment_failed", "invoice.payment_action_required"]
    assert shop.events(*told) == told


def test_collection_that_is_paused_until_a_moment_goes_on_then(simulator: Simulator) -> None:
    shop = Shop(simulator)
    made = shop.subscribe()
    until = at("2026-02-20")
    shop.v1.subscriptions.update(made.id, {"pause_collection": {"behavior": "void", "resumes_at": until}})
    shop.go("2026-02-19")
    assert shop.subscription(made.id).pause_collection.resumes_at == until
    shop.go("2026-03-16")
    assert shop.subscription(made.id).pause_collection is None
    assert [invoice.status for invoice in shop.invoices()] == ["paid", "void", "paid"]


@pytest.mark.parametrize(
    ("behavior", "status"), [("keep_as_draft", "draft"), ("void", "void"), ("mark_uncollectible", "uncollectible")]
)
def test_paused_collection_does_with_invoices_what_it_says(simulator: Simulator, behavior: str, status: str) -> None:
    shop = Shop(simulator)
    made = shop.subscribe(shop.month)
    shop.v1.subscriptions.update(made.id, {"pause_collection": {"behavior": behavior}})
    shop.go("2026-02-15 02:00")
    assert shop.invoices()[-1].status == status
    assert shop.subscription(made.id).status == "active"


def test_time_of_the_account_moves_what_is_under_no_clock(simulator: Simulator) -> None:
    shop = Shop(simulator)
    customer = shop.v1.customers.create(
        {"payment_method": "pm_card_visa", "invoice_settings": {"default_payment_method": "pm_card_visa"}}
    ).id
    made = shop.v1.subscriptions.create({"customer": customer, "items": [{"price": shop.month}]})
    shop.subscribe(shop.month)
    simulator.forward(31 * DAY + 2 * HOUR)
    assert [invoice.status for invoice in shop.invoices(customer)] == ["paid", "paid"]
    start = item_of(shop.subscription(made.id), shop.month).current_period_start
    assert shop.invoices(customer)[-1].created == start
    assert len(shop.invoices()) == 1
