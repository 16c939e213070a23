"""Checkout sessions and their page."""

from typing import Any

import httpx
import pytest
import stripe

from tests.simulators.stripe.shop import HOUR, Shop, at, lines
from tests.simulators.stripe.simulator import Simulator

SUCCESS = "https://shop.example/done?session={CHECKOUT_SESSION_ID}"
GOOD, BAD = "4242 4242 4242 4242", "4000 0000 0000 0002"


def open_session(shop: Shop, **more: Any) -> Any:
    items = [{"price": shop.month, "quantity": 1}, {"price": shop.metered}]
    params = {"mode": "subscription", "line_items": items, "success_url": SUCCESS, **more}
    return shop.v1.checkout.sessions.create(params)


def submit(session: Any, number: str = GOOD, **fields: str) -> httpx.Response:
    return httpx.post(session.url, data={"number": number, **fields})


def once(shop: Shop, cents: int = 2_500) -> dict[str, Any]:
    data = {"currency": "usd", "unit_amount": cents, "product_data": {"name": "Credit"}}
    return {"mode": "payment", "line_items": [{"price_data": data, "quantity": 1}]}


def test_subscription_is_bought_on_the_page(simulator: Simulator) -> None:
    shop = Shop(simulator, card=None)
    data = {"metadata": {"org": "o1"}, "billing_mode": {"type": "flexible"}}
    session = open_session(shop, customer=shop.customer, client_reference_id="o1", subscription_data=data)
    assert (session.status, session.payment_status, session.amount_total) == ("open", "unpaid", 2_000)
    page = httpx.get(session.url)
    assert page.status_code == 200
    assert "never against the real service" in page.text
    assert "20.00 USD" in page.text
    done = submit(session)
    assert (done.status_code, done.headers["location"]) == (303, SUCCESS.format(CHECKOUT_SESSION_ID=session.id))
    after = shop.v1.checkout.sessions.retrieve(session.id, {"expand": ["subscription", "invoice"]})
    assert (after.status, after.payment_status, after.url) == ("complete", "paid", None)
    assert (after.subscription.status, after.subscription.metadata.to_dict()) == ("active", {"org": "o1"})
    assert after.subscription.default_payment_method is not None
    assert (after.invoice.status, after.invoice.total) == ("paid", 2_000)
    assert (after.client_reference_id, after.customer_details.email) == ("o1", "a@acme.example")
    completed = shop.event("checkout.session.completed").data.object
    assert (completed.status, completed.subscription) == ("complete", after.subscription.id)


def test_declined_card_shows_the_page_again_and_makes_nothing(simulator: Simulator) -> None:
    shop = Shop(simulator, card=None)
    session = open_session(shop)
    refused = submit(session, BAD, email="b@acme.example")
    assert refused.status_code == 402
    assert "Your card was declined." in refused.text
    assert 'value="b@acme.example"' in refused.text
    assert shop.v1.checkout.sessions.retrieve(session.id).status == "open"
    assert shop.v1.subscriptions.list({"status": "all"}).data == []
    assert submit(session, "4000 0000 0000 0341").status_code == 402
    assert submit(session, "letters").status_code == 402
    assert submit(session).status_code == 303


def test_customer_who_is_not_known_is_made(simulator: Simulator) -> None:
    shop = Shop(simulator, card=None)
    session = open_session(shop)
    submit(session, email="new@acme.example", name="New")
    after = shop.v1.checkout.sessions.retrieve(session.id)
    customer = shop.v1.customers.retrieve(after.customer)
    assert (customer.email, customer.name) == ("new@acme.example", "New")


def test_trial_asks_for_a_card_and_costs_nothing_today(simulator: Simulator) -> None:
    shop = Shop(simulator, card=None)
    session = open_session(shop, customer=shop.customer, subscription_data={"trial_period_days": 14})
    assert session.amount_total == 0
    submit(session)
    after = shop.v1.checkout.sessions.retrieve(session.id, {"expand": ["subscription"]})
    assert (after.payment_status, after.subscription.status) == ("no_payment_required", "trialing")
    shop.go("2026-01-29 02:00")
    assert shop.subscription(after.subscription.id).status == "active"
    assert shop.invoices()[-1].status == "paid"


def test_mixed_intervals_are_not_sold(simulator: Simulator) -> None:
    shop = Shop(simulator)
    items = [{"price": shop.year, "quantity": 1}, {"price": shop.metered}]
    with pytest.raises(stripe.InvalidRequestError, match="different billing intervals"):
        open_session(shop, line_items=items)


def test_yearly_plan_is_bought_flat_and_gets_its_meter_afterwards(simulator: Simulator) -> None:
    shop = Shop(simulator, card=None)
    session = open_session(shop, customer=shop.customer, line_items=[{"price": shop.year, "quantity": 1}])
    submit(session)
    subscription = shop.v1.checkout.sessions.retrieve(session.id).subscription
    shop.v1.subscription_items.create({"subscription": subscription, "price": shop.metered})
    shop.use(100_000, "2026-01-15")
    shop.go("2026-02-15")
    assert [(quantity, amount) for quantity, amount, _ in lines(shop.invoices()[-1])] == [(100_000, 1_000)]


def test_single_payment_with_and_without_an_invoice(simulator: Simulator) -> None:
    shop = Shop(simulator, card=None)
    bare = open_session(shop, **once(shop), payment_intent_data={"metadata": {"org": "o1"}})
    submit(bare, email="b@acme.example")
    after = shop.v1.checkout.sessions.retrieve(bare.id, {"expand": ["payment_intent"]})
    assert (after.payment_status, after.invoice, after.payment_intent.status) == ("paid", None, "succeeded")
    assert after.payment_intent.metadata.to_dict() == {"org": "o1"}
    invoiced = open_session(shop, **once(shop), customer=shop.customer, invoice_creation={"enabled": True})
    submit(invoiced)
    after = shop.v1.checkout.sessions.retrieve(invoiced.id, {"expand": ["invoice"]})
    assert (after.invoice.status, after.invoice.total, after.payment_status) == ("paid", 2_500, "paid")
    assert after.payment_intent is not None


def test_card_is_saved_in_setup_mode(simulator: Simulator) -> None:
    shop = Shop(simulator, card=None)
    session = shop.v1.checkout.sessions.create(
        {"mode": "setup", "currency": "usd", "customer": shop.customer, "success_url": SUCCESS}
    )
    assert "Save the card" in httpx.get(session.url).text
    assert submit(session, BAD).status_code == 402
    submit(session)
    after = shop.v1.checkout.sessions.retrieve(session.id, {"expand": ["setup_intent"]})
    assert (after.payment_status, after.setup_intent.status) == ("no_payment_required", "succeeded")
    assert len(shop.v1.payment_methods.list({"customer": shop.customer}).data) == 1


def test_codes_and_coupons_take_off_what_they_say(simulator: Simulator) -> None:
    shop = Shop(simulator, card=None)
    coupon = shop.v1.coupons.create({"percent_off": 25, "duration": "once"}).id
    shop.v1.promotion_codes.create({"promotion": {"type": "coupon", "coupon": coupon}, "code": "QUARTER"})
    fixed = open_session(shop, customer=shop.customer, discounts=[{"coupon": coupon}])
    assert (fixed.amount_subtotal, fixed.amount_total, fixed.total_details.amount_discount) == (2_000, 1_500, 500)
    typed = open_session(shop, customer=shop.customer, allow_promotion_codes=True)
    assert submit(typed, promotion_code="NOTHING").status_code == 400
    assert submit(typed, promotion_code="quarter").status_code == 303
    assert shop.v1.checkout.sessions.retrieve(typed.id).amount_total == 1_500
    paid = open_session(shop, **once(shop), customer=shop.customer, discounts=[{"coupon": coupon}])
    submit(paid)
    assert shop.v1.charges.list({"customer": shop.customer}).data[0].amount == 1_875


def test_session_expires_by_itself_or_when_it_is_told_to(simulator: Simulator) -> None:
    shop = Shop(simulator)
    first, second = open_session(shop, customer=shop.customer), open_session(shop, customer=shop.customer)
    ended = shop.v1.checkout.sessions.expire(first.id)
    assert (ended.status, ended.url) == ("expired", None)
    with pytest.raises(stripe.InvalidRequestError, match="already expired"):
        shop.v1.checkout.sessions.expire(first.id)
    shop.go(at("2026-01-15") + 24 * HOUR)
    assert shop.v1.checkout.sessions.retrieve(second.id).status == "expired"
    assert len(shop.events("checkout.session.expired")) == 2
    assert submit(second).status_code == 200
    assert shop.v1.subscriptions.list({"status": "all"}).data == []


@pytest.mark.parametrize("number", ["", "letters", "1", "4242 4242 4242 4241"])
def test_number_that_is_no_card_is_told(simulator: Simulator, number: str) -> None:
    shop = Shop(simulator)
    session = open_session(shop, customer=shop.customer)
    refused = submit(session, number)
    assert refused.status_code == 402
    assert "Your card number is incorrect." in refused.text
    assert shop.v1.checkout.sessions.retrieve(session.id).status == "open"


@pytest.mark.parametrize(
    "restrictions",
    [
        {"restrictions": {"first_time_transaction": True}},
        {"restrictions": {"minimum_amount": 2_001, "minimum_amount_currency": "usd"}},
        {"customer": "another"},
    ],
)
def test_code_that_is_not_for_this_purchase_is_refused_before_anything_is_made(
    simulator: Simulator, restrictions: dict[str, Any]
) -> None:
    shop = Shop(simulator)
    shop.subscribe(shop.year)
    if "customer" in restrictions:
        restrictions = {"customer": shop.new_customer()}
    promotion = {"type": "coupon", "coupon": shop.v1.coupons.create({"percent_off": 10}).id}
    code = shop.v1.promotion_codes.create({"promotion": promotion, "code": "SPRING", **restrictions})
    session = open_session(shop, customer=shop.customer, allow_promotion_codes=True)
    refused = submit(session, promotion_code="spring")
    assert refused.status_code == 400
    assert "This promotion code" in refused.text
    assert len(shop.v1.subscriptions.list().data) == 1
    with pytest.raises(stripe.InvalidRequestError, match="This promotion code"):
        open_session(shop, customer=shop.customer, discounts=[{"promotion_code": code.id}])


def test_session_under_a_clock_ends_by_it(simulator: Simulator) -> None:
    shop = Shop(simulator)
    session = open_session(shop, customer=shop.customer, expires_at=at("2026-01-15") + HOUR)
    assert session.expires_at == at("2026-01-15") + HOUR


def test_session_is_paid_once(simulator: Simulator) -> None:
    shop = Shop(simulator)
    session = open_session(shop, customer=shop.customer)
    first, again = submit(session), submit(session)
    # A browser in which the button was pressed twice waits for the second answer only.
    assert again.headers["location"] == first.headers["location"]
    assert "This session is complete." in httpx.get(session.url).text
    assert len(shop.v1.subscriptions.list().data) == 1


def test_line_items_are_shown_when_they_are_asked_for(simulator: Simulator) -> None:
    shop = Shop(simulator)
    session = open_session(shop)
    assert "line_items" not in session.to_dict()
    found = shop.v1.checkout.sessions.line_items.list(session.id).data
    assert [(line.description, line.quantity, line.amount_total) for line in found] == [
        ("Pro", 1, 2_000),
        ("Tokens", None, 0),
    ]
    shown = shop.v1.checkout.sessions.retrieve(session.id, {"expand": ["line_items"]})
    assert [line.price.id for line in shown.line_items.data] == [shop.month, shop.metered]
    assert [made.id for made in shop.v1.checkout.sessions.list({"status": "open"}).data] == [session.id]
    assert shop.v1.checkout.sessions.update(session.id, {"metadata": {"a": "b"}}).metadata.to_dict() == {"a": "b"}


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"mode": None}, "mode"),
        ({"success_url": None}, "success_url"),
        ({"line_items": None}, "line_items"),
        ({"line_items": [{"price": "month"}]}, "Quantity is required"),
        ({"line_items": [{"price": "metered", "quantity": 1}]}, "should not be specified"),
        ({"line_items": [{"quantity": 1}]}, "either `price` or `price_data`"),
        ({"mode": "payment"}, "recurring price"),
        ({"mode": "payment", "line_items": "once", "subscription_data": {"trial_period_days": 3}}, "in this mode"),
        ({"payment_intent_data": {"description": "x"}}, "in this mode"),
        ({"line_items": "once"}, "at least one recurring"),
        ({"customer": "cus_none"}, "No such customer"),
        ({"customer": "own", "customer_email": "a@b.example"}, "only specify one"),
        ({"expires_at": 1}, "between 30 minutes and 24 hours"),
        ({"discounts": [{"coupon": "none"}]}, "No such coupon"),
        ({"discounts": [{"coupon": "none"}], "allow_promotion_codes": True}, "only specify one"),
    ],
)
def test_what_does_not_go_together_is_refused(simulator: Simulator, params: dict[str, Any], message: str) -> None:
    shop = Shop(simulator)
    given = {
        "mode": "subscription",
        "success_url": SUCCESS,
        "line_items": [{"price": shop.month, "quantity": 1}],
        **params,
    }
    if given["line_items"] == "once":
        given["line_items"] = once(shop)["line_items"]
    if given.get("customer") == "own":
        given["customer"] = shop.customer
    for line in given["line_items"] or ():
        if line.get("price") in ("month", "metered"):
            line["price"] = getattr(shop, line["price"])
    with pytest.raises(stripe.InvalidRequestError, match=message):
        shop.v1.checkout.sessions.create({name: value for name, value in given.items() if value is not None})
