"""Parameters that are refused because nothing would come of them."""

from typing import Any

import pytest
import stripe

from simulators.stripe import handlers, schema
from simulators.stripe.operations import OPERATIONS
from simulators.stripe.schema import Array, Record, Type, Union
from simulators.stripe.unsupported import UNSUPPORTED
from tests.simulators.stripe.shop import Shop
from tests.simulators.stripe.simulator import Simulator


def record_in(type: Type) -> Record:
    if isinstance(type, Array):
        return record_in(type.item)
    if isinstance(type, Union):
        return record_in(next(option for option in type.options if isinstance(option, Array | Record)))
    assert isinstance(type, Record)
    return type


def test_each_is_a_parameter_of_a_call_that_is_answered() -> None:
    handlers.load()
    for (verb, path), names in UNSUPPORTED.items():
        assert (verb, path) in OPERATIONS
        for name in names:
            found: Type = schema.call(verb, path).parameters
            for part in name.split("."):
                # An entry of `items` has more parts where a subscription is changed than where it is made.
                is_elsewhere = part == "clear_usage" and part not in record_in(found).fields
                found = record_in(found).fields["price" if is_elsewhere else part].type


@pytest.mark.parametrize(
    ("params", "place"),
    [
        ({"backdate_start_date": 1}, "backdate_start_date"),
        ({"items": [{"price": "month"}, {"price": "metered", "billing_thresholds": {"usage_gte": 5}}]}, "items[1]"),
        ({"add_invoice_items": [{"price_data": {"currency": "usd", "product": "p"}}]}, "add_invoice_items[0]"),
    ],
)
def test_it_is_named_and_nothing_is_made(simulator: Simulator, params: dict[str, Any], place: str) -> None:
    shop = Shop(simulator)
    for entry in params.get("items", ()):
        entry["price"] = getattr(shop, entry["price"])
    with pytest.raises(stripe.InvalidRequestError, match="The simulator does not know") as caught:
        shop.subscribe(**params)
    assert str(caught.value.param).startswith(place)
    assert shop.v1.subscriptions.list({"status": "all"}).data == []


def test_empty_value_asks_for_nothing(simulator: Simulator) -> None:
    shop = Shop(simulator)
    assert shop.subscribe(billing_thresholds="").status == "active"


def test_item_is_added_with_its_discount(simulator: Simulator) -> None:
    shop = Shop(simulator)
    made = shop.subscribe(shop.metered)
    coupon = shop.v1.coupons.create({"percent_off": 50, "duration": "forever"}).id
    params = {"subscription": made.id, "price": shop.month, "discounts": [{"coupon": coupon}]}
    shop.v1.subscription_items.create({**params, "proration_behavior": "always_invoice"})
    assert shop.invoices()[-1].total == 1_000


def test_preview_takes_a_discount_into_account(simulator: Simulator) -> None:
    shop = Shop(simulator)
    made = shop.subscribe(shop.month)
    coupon = shop.v1.coupons.create({"percent_off": 50, "duration": "forever"}).id
    preview = shop.v1.invoices.create_preview({"subscription": made.id, "discounts": [{"coupon": coupon}]})
    assert preview.total == 1_000
    assert shop.v1.invoices.create_preview({"subscription": made.id}).total == 2_000
