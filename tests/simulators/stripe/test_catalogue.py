"""Products and prices."""

from decimal import Decimal
from typing import Any

import pytest
import stripe

from tests.simulators.stripe.simulator import Simulator

TIERS = [
    {"up_to": 1000, "unit_amount": 0},
    {"up_to": 5000, "unit_amount_decimal": "0.000125", "flat_amount": 100},
    {"up_to": "inf", "unit_amount_decimal": "0.0001"},
]


@pytest.fixture
def product(simulator: Simulator) -> str:
    return str(simulator.v1.products.create({"name": "Tokens", "metadata": {"plan": "pro"}}).id)


@pytest.fixture
def meter(simulator: Simulator) -> str:
    params = {"display_name": "T", "event_name": "tokens", "default_aggregation": {"formula": "sum"}}
    return str(simulator.v1.billing.meters.create(params).id)


def monthly(product: str, /, **changes: Any) -> dict[str, Any]:
    return {"product": product, "currency": "usd", "recurring": {"interval": "month"}, "unit_amount": 2000, **changes}


def test_product_is_changed_listed_and_deleted(simulator: Simulator, product: str) -> None:
    products = simulator.v1.products
    changed = products.update(product, {"description": "text", "metadata": {"plan": ""}, "images": ["http://i"]})
    assert (changed.description, changed.metadata.to_dict(), changed.images) == ("text", {}, ["http://i"])
    assert products.update(product, {"description": "", "active": False}).description is None
    assert products.list({"active": True}).data == []
    assert [found.id for found in products.list({"ids": [product]}).data] == [product]
    assert products.delete(product).deleted
    with pytest.raises(stripe.InvalidRequestError):
        products.retrieve(product)


def test_product_may_choose_its_id_once(simulator: Simulator) -> None:
    assert simulator.v1.products.create({"name": "Tokens", "id": "tokens"}).id == "tokens"
    with pytest.raises(stripe.InvalidRequestError) as caught:
        simulator.v1.products.create({"name": "Tokens", "id": "tokens"})
    assert caught.value.code == "resource_already_exists"


def test_product_brings_its_default_price(simulator: Simulator) -> None:
    data = {"currency": "usd", "unit_amount": 500, "recurring": {"interval": "month"}}
    made = simulator.v1.products.create({"name": "Pro", "default_price_data": data, "expand": ["default_price"]})
    assert made.default_price.unit_amount == 500
    assert made.default_price.product == made.id
    with pytest.raises(stripe.InvalidRequestError, match="cannot be deleted"):
        simulator.v1.products.delete(made.id)


def test_default_price_is_one_of_its_own(simulator: Simulator, product: str) -> None:
    own = simulator.v1.prices.create(monthly(product))
    other = simulator.v1.prices.create({**monthly(product), "product": simulator.v1.products.create({"name": "x"}).id})
    assert simulator.v1.products.update(product, {"default_price": own.id}).default_price == own.id
    with pytest.raises(stripe.InvalidRequestError):
        simulator.v1.products.update(product, {"default_price": other.id})


def test_licensed_price_has_both_forms_of_its_amount(simulator: Simulator, product: str) -> None:
    price = simulator.v1.prices.create(monthly(product))
    assert (price.unit_amount, price.unit_amount_decimal) == (2000, Decimal(2000))
    assert (price.type, price.recurring.usage_type, price.recurring.interval_count) == ("recurring", "licensed", 1)
    fine = simulator.v1.prices.create({"product": product, "currency": "usd", "unit_amount_decimal": "0.0001250"})
    assert (fine.unit_amount, fine.unit_amount_decimal, fine.type) == (None, Decimal("0.000125"), "one_time")
    assert simulator.raw("GET", f"/v1/prices/{fine.id}").json()["unit_amount_decimal"] == "0.000125"


def test_metered_tiered_price_shows_its_tiers_on_request(simulator: Simulator, product: str, meter: str) -> None:
    price = simulator.v1.prices.create(
        {
            "product": product,
            "currency": "usd",
            "billing_scheme": "tiered",
            "tiers_mode": "graduated",
            "tiers": TIERS,
            "recurring": {"interval": "month", "usage_type": "metered", "meter": meter},
        }
    )
    assert price.recurring.meter == meter
    assert "tiers" not in simulator.raw("GET", f"/v1/prices/{price.id}").json()
    tiers = simulator.v1.prices.retrieve(price.id, {"expand": ["tiers"]}).tiers
    assert [(tier.up_to, tier.unit_amount_decimal, tier.flat_amount) for tier in tiers] == [
        (1000, Decimal(0), None),
        (5000, Decimal("0.000125"), 100),
        (None, Decimal("0.0001"), None),
    ]
    assert tiers[0].unit_amount == 0


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"unit_amount_decimal": "1"}, "unit_amount"),
        ({"unit_amount": -1}, "unit_amount"),
        ({"currency": "dollars"}, "currency"),
        ({"product": "prod_none"}, "product"),
        ({"tiers": TIERS}, "tiers"),
        ({"billing_scheme": "tiered"}, "tiers"),
        ({"billing_scheme": "tiered", "tiers": TIERS, "tiers_mode": "volume"}, "unit_amount"),
        ({"recurring": {"interval": "month", "usage_type": "metered"}}, "recurring[meter]"),
        ({"recurring": {"interval": "month", "meter": "mtr_none"}}, "recurring[meter]"),
        ({"recurring": {"interval": "month", "usage_type": "metered", "meter": "mtr_none"}}, "recurring[meter]"),
        ({"product_data": {"name": "x"}}, "product"),
        ({"lookup_key": "x" * 201}, "lookup_key"),
        ({"recurring": {"interval": "month", "interval_count": 0}}, "recurring[interval_count]"),
        ({"recurring": {"interval": "month", "interval_count": -1}}, "recurring[interval_count]"),
        ({"recurring": {"interval": "month", "interval_count": 37}}, "recurring[interval_count]"),
        ({"transform_quantity": {"divide_by": 0, "round": "up"}}, "transform_quantity[divide_by]"),
    ],
)
def test_what_does_not_go_together_is_refused(
    simulator: Simulator, product: str, changes: dict[str, Any], param: str
) -> None:
    with pytest.raises(stripe.InvalidRequestError) as caught:
        simulator.v1.prices.create(monthly(product, **changes))
    assert caught.value.param == param
    assert simulator.v1.prices.list().data == []


@pytest.mark.parametrize(
    "tiers",
    [
        [{"up_to": 10, "unit_amount": 1}],
        [{"up_to": "inf", "unit_amount": 1}, {"up_to": "inf", "unit_amount": 1}],
        [{"up_to": 10, "unit_amount": 1}, {"up_to": 10, "unit_amount": 1}, {"up_to": "inf", "unit_amount": 1}],
        [{"up_to": "inf"}],
        [{"up_to": "inf", "unit_amount_decimal": "0.0000000000001"}],
    ],
)
def test_tiers_must_rise_to_infinity(simulator: Simulator, product: str, tiers: list[dict[str, Any]]) -> None:
    params = {"product": product, "currency": "usd", "billing_scheme": "tiered", "tiers_mode": "graduated"}
    with pytest.raises(stripe.InvalidRequestError):
        simulator.v1.prices.create({**params, "tiers": tiers})


def test_lookup_key_names_one_price_and_moves(simulator: Simulator, product: str) -> None:
    old = simulator.v1.prices.create(monthly(product, lookup_key="pro"))
    with pytest.raises(stripe.InvalidRequestError) as caught:
        simulator.v1.prices.create(monthly(product, lookup_key="pro"))
    assert caught.value.param == "lookup_key"
    new = simulator.v1.prices.create(monthly(product, lookup_key="pro", transfer_lookup_key=True, unit_amount=2500))
    assert [found.id for found in simulator.v1.prices.list({"lookup_keys": ["pro"]}).data] == [new.id]
    assert simulator.v1.prices.retrieve(old.id).lookup_key is None
    moved = simulator.v1.prices.update(old.id, {"lookup_key": "pro", "transfer_lookup_key": True})
    assert moved.lookup_key == "pro"
    assert simulator.v1.prices.retrieve(new.id).lookup_key is None


def test_prices_are_retired_and_filtered(simulator: Simulator, product: str, meter: str) -> None:
    flat = simulator.v1.prices.create(monthly(product, nickname="flat"))
    metered = simulator.v1.prices.create(
        monthly(product, recurring={"interval": "month", "usage_type": "metered", "meter": meter})
    )
    simulator.v1.prices.update(flat.id, {"active": False, "metadata": {"old": "yes"}})
    prices = simulator.v1.prices
    assert [found.id for found in prices.list({"active": True}).data] == [metered.id]
    assert [found.id for found in prices.list({"recurring": {"meter": meter}}).data] == [metered.id]
    assert [found.id for found in prices.list({"product": product, "active": False}).data] == [flat.id]
    assert simulator.v1.events.list({"type": "price.updated"}).data[0].data.previous_attributes["active"] is True


def test_price_may_bring_its_product(simulator: Simulator) -> None:
    price = simulator.v1.prices.create(
        {"product_data": {"name": "Once"}, "currency": "usd", "unit_amount": 100, "expand": ["product"]}
    )
    assert price.product.name == "Once"
