"""Coupons, promotion codes and tax rates."""

from typing import Any

import pytest
import stripe

from tests.simulators.stripe.shop import Shop
from tests.simulators.stripe.simulator import Simulator


def test_coupon_keeps_its_terms(simulator: Simulator) -> None:
    made = simulator.v1.coupons.create({"id": "LAUNCH", "percent_off": 12.5, "duration": "forever"})
    assert (made.id, made.percent_off, made.valid) == ("LAUNCH", 12.5, True)
    assert simulator.v1.coupons.update("LAUNCH", {"name": "Launch"}).name == "Launch"
    assert [found.id for found in simulator.v1.coupons.list().data] == ["LAUNCH"]
    with pytest.raises(stripe.InvalidRequestError):
        simulator.v1.coupons.create({"id": "LAUNCH", "percent_off": 1})


@pytest.mark.parametrize(
    "terms",
    [
        {},
        {"percent_off": 10, "amount_off": 5, "currency": "usd"},
        {"percent_off": 0},
        {"percent_off": 101},
        {"amount_off": 5},
        {"percent_off": 10, "duration": "repeating"},
        {"percent_off": 10, "duration": "once", "duration_in_months": 3},
        {"percent_off": 10, "duration": "repeating", "duration_in_months": 0},
    ],
)
def test_terms_that_do_not_go_together_are_refused(simulator: Simulator, terms: dict[str, Any]) -> None:
    with pytest.raises(stripe.InvalidRequestError):
        simulator.v1.coupons.create(terms)


def test_coupon_shows_its_products_on_request(simulator: Simulator) -> None:
    product = simulator.v1.products.create({"name": "Pro"}).id
    made = simulator.v1.coupons.create({"percent_off": 10, "applies_to": {"products": [product]}})
    assert "applies_to" not in simulator.raw("GET", f"/v1/coupons/{made.id}").json()
    shown = simulator.v1.coupons.retrieve(made.id, {"expand": ["applies_to"]})
    assert shown.applies_to.products == [product]


def test_deleted_coupon_is_gone(simulator: Simulator) -> None:
    made = simulator.v1.coupons.create({"percent_off": 10})
    assert simulator.v1.coupons.delete(made.id).deleted
    with pytest.raises(stripe.InvalidRequestError):
        simulator.v1.coupons.retrieve(made.id)
    assert simulator.v1.coupons.list().data == []


def test_promotion_code_is_found_in_any_case_and_unique(simulator: Simulator) -> None:
    coupon = simulator.v1.coupons.create({"percent_off": 10}).id
    promotion = {"type": "coupon", "coupon": coupon}
    made = simulator.v1.promotion_codes.create({"promotion": promotion, "code": "Spring"})
    assert [found.id for found in simulator.v1.promotion_codes.list({"code": "SPRING"}).data] == [made.id]
    assert [found.id for found in simulator.v1.promotion_codes.list({"coupon": coupon}).data] == [made.id]
    for code in ("sPRING", "no spaces"):
        with pytest.raises(stripe.InvalidRequestError):
            simulator.v1.promotion_codes.create({"promotion": promotion, "code": code})
    with pytest.raises(stripe.InvalidRequestError):
        simulator.v1.promotion_codes.create({"promotion": {"type": "coupon"}})


def test_promotion_code_is_closed_and_opened(simulator: Simulator) -> None:
    coupon = simulator.v1.coupons.create({"percent_off": 10}).id
    codes = simulator.v1.promotion_codes
    made = codes.create({"promotion": {"type": "coupon", "coupon": coupon}})
    assert not codes.update(made.id, {"active": False, "metadata": {"a": "b"}}).active
    other = codes.create({"promotion": {"type": "coupon", "coupon": coupon}, "code": made.code})
    with pytest.raises(stripe.InvalidRequestError):
        codes.update(made.id, {"active": True})
    codes.update(other.id, {"active": False})
    assert codes.update(made.id, {"active": True}).active
    codes.update(made.id, {"active": False})
    simulator.v1.coupons.delete(coupon)
    with pytest.raises(stripe.InvalidRequestError):
        codes.update(made.id, {"active": True})


def test_coupon_and_code_end_at_their_time(simulator: Simulator) -> None:
    v1 = simulator.v1
    now = simulator.control("GET")["now"]
    coupon = v1.coupons.create({"percent_off": 10, "redeem_by": now + 7200}).id
    code = v1.promotion_codes.create({"promotion": {"type": "coupon", "coupon": coupon}, "expires_at": now + 3600}).id
    simulator.forward(3600)
    assert (v1.coupons.retrieve(coupon).valid, v1.promotion_codes.retrieve(code).active) == (True, False)
    simulator.forward(3600)
    assert not v1.coupons.retrieve(coupon).valid
    customer = v1.customers.create({}).id
    item = {"customer": customer, "amount": 500, "currency": "usd"}
    with pytest.raises(stripe.InvalidRequestError, match="Coupon expired"):
        v1.invoice_items.create({**item, "discounts": [{"coupon": coupon}]})
    for make, params in (
        (v1.coupons, {"percent_off": 10, "redeem_by": now}),
        (v1.promotion_codes, {"promotion": {"type": "coupon", "coupon": coupon}, "expires_at": now}),
    ):
        with pytest.raises(stripe.InvalidRequestError, match="in the future"):
            make.create(params)


def test_amount_is_taken_off_its_own_currency_only(simulator: Simulator) -> None:
    shop = Shop(simulator)
    coupon = shop.v1.coupons.create({"amount_off": 500, "currency": "eur"}).id
    with pytest.raises(stripe.InvalidRequestError, match="is in eur, not in usd"):
        shop.subscribe(discounts=[{"coupon": coupon}])
    assert shop.v1.subscriptions.list({"status": "all"}).data == []
    assert shop.v1.coupons.retrieve(coupon).times_redeemed == 0


def test_tax_rate_keeps_its_percentage(simulator: Simulator) -> None:
    rates = simulator.v1.tax_rates
    made = rates.create({"display_name": "VAT", "percentage": 8.25, "inclusive": False, "country": "DE"})
    assert (made.percentage, made.country) == (8.25, "DE")
    assert rates.update(made.id, {"active": False, "display_name": "Old"}).display_name == "Old"
    assert rates.list({"active": True}).data == []
    assert rates.retrieve(made.id).percentage == 8.25
    for params, problem in (({"percentage": 9}, "unknown"), ({"inclusive": True}, "unknown")):
        with pytest.raises(stripe.InvalidRequestError, match=problem):
            rates.update(made.id, params)
    with pytest.raises(stripe.InvalidRequestError):
        rates.create({"display_name": "VAT", "percentage": 101, "inclusive": False})
