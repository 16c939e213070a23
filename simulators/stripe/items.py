"""A subscription's items: their prices, quantities and billing periods.

Each item has a period of its own, counted from the subscription's anchor in the interval of its price. Intervals may
differ only under flexible billing, and only where each is a multiple of the shortest.
"""

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from simulators.stripe import discounts, prices
from simulators.stripe.changes import merge_metadata
from simulators.stripe.errors import StripeError, invalid
from simulators.stripe.ids import new_id
from simulators.stripe.periods import Period, period_at
from simulators.stripe.usage import is_metered
from simulators.stripe.world import Object, World

KIND = "subscription_item"

_MAX_ITEMS = 20
_IN_DAYS = {"day": 1, "week": 7}
_IN_MONTHS = {"month": 1, "year": 12}


def find(world: World, id: str, param: str = "id") -> tuple[Object, Object]:
    """An item and its subscription.

    Raises:
        StripeError: 404 resource_missing.
    """
    for subscription in world.all("subscription"):
        for item in subscription["items"]["data"]:
            if item["id"] == id:
                return item, subscription
    raise StripeError(f"No such subscription item: '{id}'", status=404, code="resource_missing", param=param)


def make(world: World, subscription: Object, entry: Mapping[str, Any], param: str) -> Object:
    """An item that is not part of its subscription yet, and has no period yet.

    Raises:
        StripeError: 400 for a price that cannot recur, is archived, or is metered and was given a quantity.
    """
    item: Object = {
        "id": new_id("si"),
        "object": KIND,
        "created": world.now(subscription),
        "discounts": [],
        "metadata": {},
        "subscription": subscription["id"],
        "tax_rates": [],
    }
    change(world, subscription, item, entry, param)
    return item


def change(world: World, subscription: Object, item: Object, entry: Mapping[str, Any], param: str) -> None:
    """Give an item the price, quantity, discounts, tax rates and metadata of a parameter, as far as it has them."""
    if "price_data" in entry:
        _set_price(world, item, prices.make(world, entry["price_data"], f"{param}[price_data]")["id"], param)
    elif "price" in entry:
        _set_price(world, item, entry["price"], f"{param}[price]")
    elif "price" not in item:
        raise invalid(f"{param}[price]", "Missing required param: price.", "parameter_missing")
    if is_metered(item["price"]):
        if "quantity" in entry:
            raise invalid(f"{param}[quantity]", "You cannot set the quantity for metered plans.")
        item["quantity"] = None
    else:
        item["quantity"] = entry.get("quantity", item.get("quantity") or 1)
        if item["quantity"] < 0:
            raise invalid(f"{param}[quantity]", "Invalid non-negative integer", "parameter_invalid_integer")
    if "discounts" in entry:
        owner = {"customer": subscription["customer"], "subscription_item": item["id"]}
        item["discounts"] = discounts.redeem(world, entry["discounts"], f"{param}[discounts]", **owner)
    if "tax_rates" in entry:
        item["tax_rates"] = [world.get("tax_rate", rate, f"{param}[tax_rates]") for rate in entry["tax_rates"] or ()]
    merge_metadata(item, entry)


def check(items: Iterable[Object], billing_mode: str) -> None:
    """Refuse a set of items that cannot stand on one subscription.

    Raises:
        StripeError: 400 for no items or too many, a price twice, two currencies, or intervals that do not mix.
    """
    prices = [item["price"] for item in items]
    if not prices:
        raise invalid("items", "A subscription must have at least one active plan.")
    if len(prices) > _MAX_ITEMS:
        raise invalid("items", f"A subscription can have up to {_MAX_ITEMS} items.")
    if len({price["id"] for price in prices}) < len(prices):
        raise invalid("items", "Cannot add multiple subscription items with the same plan.")
    if len({price["currency"] for price in prices}) > 1:
        raise invalid("items", "All prices on a subscription must have the same currency.")
    if not are_alike(prices):
        if billing_mode != "flexible":
            message = (
                "All prices on a subscription must have the same `recurring.interval` and `recurring.interval_count`."
            )
            raise invalid("items", f"{message} Use flexible billing mode to mix intervals.")
        _check_multiples([price["recurring"] for price in prices])


def are_alike(prices: Iterable[Object]) -> bool:
    """Whether all prices recur in the same interval."""
    return len({_unit(price["recurring"]) for price in prices}) <= 1


def set_period(item: Object, period: Period) -> None:
    """Let an item be in a period, nothing of which is billed yet."""
    item.update(current_period_start=period.start, current_period_end=period.end)
    item.pop("_usage_billed", None)
    item.pop("_usage_from", None)


def period_of(item: Object) -> Period:
    """The period that an item is in."""
    return Period(item["current_period_start"], item["current_period_end"])


def cycle_of(subscription: Object, item: Object, moment: int) -> Period:
    """The whole period of the item's cycle that holds a moment."""
    return period_at(subscription["billing_cycle_anchor"], item["price"]["recurring"], moment)


def period_of_subscription(subscription: Object) -> Period:
    """From the latest start of an item's period to the earliest end."""
    data = subscription["items"]["data"]
    return Period(max(item["current_period_start"] for item in data), min(item["current_period_end"] for item in data))


def _set_price(world: World, item: Object, id: str, param: str) -> None:
    price = world.get("price", id, param)
    if price["type"] != "recurring":
        raise invalid(
            param, "The price specified is set to `type=one_time` but this field only accepts recurring prices."
        )
    if not price["active"]:
        raise invalid(param, f"The price specified is inactive: {id}")
    item["price"] = copy.deepcopy(price)
    item["plan"] = _plan(price)


def _plan(price: Object) -> Object:
    """The plan that Stripe still shows beside each price."""
    recurring = price["recurring"]
    return {
        "id": price["id"],
        "object": "plan",
        "active": price["active"],
        "amount": price["unit_amount"],
        "amount_decimal": price["unit_amount_decimal"],
        "billing_scheme": price["billing_scheme"],
        "created": price["created"],
        "currency": price["currency"],
        "interval": recurring["interval"],
        "interval_count": recurring["interval_count"],
        "livemode": False,
        "metadata": dict(price["metadata"]),
        "meter": recurring.get("meter"),
        "nickname": price.get("nickname"),
        "product": price["product"],
        "tiers_mode": price.get("tiers_mode"),
        "transform_usage": price.get("transform_quantity"),
        "trial_period_days": None,
        "usage_type": recurring["usage_type"],
    }


def _unit(recurring: Mapping[str, Any]) -> tuple[str, int]:
    """An interval as whole days or whole months, between which nothing is a multiple."""
    interval, count = recurring["interval"], int(recurring["interval_count"])
    if interval in _IN_DAYS:
        return "day", count * _IN_DAYS[interval]
    return "month", count * _IN_MONTHS[interval]


def _check_multiples(recurrings: list[Mapping[str, Any]]) -> None:
    units = [_unit(recurring) for recurring in recurrings]
    # A day and a year do mix, as Stripe's examples say: days divide any interval of whole days or months.
    if ("day", 1) in units:
        return
    shortest = min(count for _, count in units)
    if len({unit for unit, _ in units}) > 1 or any(count % shortest for _, count in units):
        raise invalid("items", "The intervals of all prices must be multiples of the shortest interval.")
