"""Prices: an amount per unit or in tiers, once or recurring, for a quantity or for what a meter counts.

A price never changes but for its state, its names and its metadata: what was sold at it was sold at that. A lookup key
names one price at a time, and `transfer_lookup_key` moves it from the price that has it. Amounts in fractions of a cent
are decimal text, with at most 12 places. Prices are made in `catalogue`.
"""

import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from simulators.stripe.changes import merge_metadata, recorded
from simulators.stripe.errors import invalid
from simulators.stripe.operations import INCLUDED, Params, matching, operation
from simulators.stripe.rating import plain
from simulators.stripe.world import Object, World

PRICE = "price"

_CURRENCY = re.compile(r"[a-z]{3}")
_MAX_PLACES = 12
_MAX_LOOKUP_KEY = 200
_MAX_COUNTS = {"day": 3 * 365, "week": 3 * 52, "month": 3 * 12, "year": 3}

INCLUDED[PRICE, "tiers"] = None
INCLUDED[PRICE, "currency_options"] = None


def make(world: World, params: Mapping[str, Any], param: str = "") -> Object:
    """A price, as a call describes it.

    Args:
        world: The account.
        params: Of the call, with `product`.
        param: Where they lie in the call, for errors.

    Raises:
        StripeError: 400 for what does not go together, 404 for a product or a meter that there is not.
    """
    currency = params["currency"].lower()
    if not _CURRENCY.fullmatch(currency):
        raise invalid(_at(param, "currency"), f"Invalid currency: {currency}.")
    _check_scheme(params, param)
    _require_free_key(world, params)
    recurring = _recurring(world, params["recurring"], param) if "recurring" in params else None
    fields = {
        "active": params.get("active", True),
        "billing_scheme": params.get("billing_scheme", "per_unit"),
        "currency": currency,
        "custom_unit_amount": None,
        "lookup_key": None,
        "metadata": {},
        "nickname": params.get("nickname"),
        "product": world.get("product", params["product"], _at(param, "product"))["id"],
        "recurring": recurring,
        "tax_behavior": params.get("tax_behavior", "unspecified"),
        "tiers_mode": params.get("tiers_mode"),
        "transform_quantity": params.get("transform_quantity"),
        "type": "recurring" if recurring else "one_time",
        **_amounts(params, param),
    }
    if "tiers" in params:
        fields["tiers"] = _tiers(params["tiers"], _at(param, "tiers"))
    made = world.new(PRICE, "price", fields)
    merge_metadata(made, params)
    _name(world, made, params)
    world.emit("price.created", made)
    return made


@operation("GET", "/v1/prices")
def list_prices(world: World, params: Params) -> list[Object]:
    """Prices by product, state, currency, type, lookup key or recurrence."""
    found = matching(world.all(PRICE), params, "active", "currency", "product", "type")
    if "lookup_keys" in params:
        found = [price for price in found if price["lookup_key"] in params["lookup_keys"]]
    if "recurring" in params:
        wanted = params["recurring"]
        found = [price for price in found if price["recurring"] and matching([price["recurring"]], wanted, *wanted)]
    return found


@operation("GET", "/v1/prices/{price}")
def retrieve(world: World, params: Params, price: str) -> Object:
    """One price; its tiers only if `expand` asks for them."""
    return world.get(PRICE, price, "price")


@operation("POST", "/v1/prices/{price}")
def update(world: World, params: Params, price: str) -> Object:
    """Rename a price, retire it, or give it a lookup key."""
    found = retrieve(world, params, price)
    _require_free_key(world, params, found)
    with recorded(world, found, "price.updated"):
        for name in ("active", "nickname", "tax_behavior"):
            if name in params:
                found[name] = params[name]
        _name(world, found, params)
        merge_metadata(found, params)
    return found


def _check_scheme(params: Mapping[str, Any], param: str) -> None:
    is_tiered = params.get("billing_scheme") == "tiered"
    if is_tiered and not (params.get("tiers") and "tiers_mode" in params):
        raise invalid(_at(param, "tiers"), "A tiered price needs `tiers` and `tiers_mode`.", "parameter_missing")
    if not is_tiered and ("tiers" in params or "tiers_mode" in params):
        raise invalid(_at(param, "tiers"), "`tiers` and `tiers_mode` need `billing_scheme=tiered`.")
    amounts = [name for name in ("unit_amount", "unit_amount_decimal", "custom_unit_amount") if name in params]
    if is_tiered and amounts:
        raise invalid(_at(param, amounts[0]), f"A tiered price takes no `{amounts[0]}`.")
    if not is_tiered and len(amounts) != 1:
        raise invalid(
            _at(param, "unit_amount"),
            "You must specify one of `unit_amount`, `unit_amount_decimal` or `custom_unit_amount`.",
            "parameter_missing",
        )
    if "custom_unit_amount" in params or "currency_options" in params:
        raise invalid(_at(param, "custom_unit_amount"), "The simulator knows one amount in one currency only.")
    if params.get("transform_quantity", {}).get("divide_by", 1) < 1:
        raise invalid(_at(param, "transform_quantity[divide_by]"), "Invalid positive integer")
    if is_tiered and "transform_quantity" in params:
        raise invalid(_at(param, "transform_quantity"), "`transform_quantity` cannot be combined with `tiers`.")


def _recurring(world: World, given: Mapping[str, Any], param: str) -> Object:
    usage_type = given.get("usage_type", "licensed")
    meter = given.get("meter")
    place = _at(param, "recurring[meter]")
    if usage_type == "metered" and meter is None:
        raise invalid(place, "A price with `usage_type=metered` must name a meter.", "parameter_missing")
    if usage_type == "licensed" and meter is not None:
        raise invalid(place, "Only a price with `usage_type=metered` can name a meter.")
    if meter is not None and world.get("billing.meter", meter, place)["status"] != "active":
        raise invalid(place, f"The meter {meter} is inactive.")
    count = given.get("interval_count", 1)
    if not 1 <= count <= _MAX_COUNTS[given["interval"]]:
        message = f"Invalid interval_count: {count} {given['interval']}s; it is positive, and three years at most."
        raise invalid(_at(param, "recurring[interval_count]"), message)
    return {
        "interval": given["interval"],
        "interval_count": count,
        "meter": meter,
        "trial_period_days": given.get("trial_period_days"),
        "usage_type": usage_type,
    }


def _tiers(given: Sequence[Mapping[str, Any]], param: str) -> list[Object]:
    reached = 0
    tiers = []
    for index, tier in enumerate(given):
        place = f"{param}[{index}]"
        is_last = index == len(given) - 1
        if is_last != (tier["up_to"] == "inf"):
            raise invalid(f"{place}[up_to]", "The last tier, and no other, must have `up_to=inf`.")
        if not is_last and tier["up_to"] <= reached:
            raise invalid(f"{place}[up_to]", "Each tier must reach further than the one before it.")
        reached = 0 if is_last else tier["up_to"]
        flat, unit = _amounts(tier, place, "flat_amount"), _amounts(tier, place)
        if flat["flat_amount_decimal"] is None and unit["unit_amount_decimal"] is None:
            raise invalid(place, "A tier needs a `unit_amount` or a `flat_amount`.", "parameter_missing")
        tiers.append({**flat, **unit, "up_to": None if is_last else tier["up_to"]})
    return tiers


def _amounts(params: Mapping[str, Any], param: str, name: str = "unit_amount") -> Object:
    """An amount in both its forms: whole cents, which it has only if it is whole, and decimal text."""
    given = params.get(name, params.get(f"{name}_decimal"))
    if given is None:
        return {name: None, f"{name}_decimal": None}
    amount = Decimal(given)
    if amount < 0:
        raise invalid(_at(param, name), "Invalid non-negative integer")
    if amount != round(amount, _MAX_PLACES):
        raise invalid(_at(param, f"{name}_decimal"), f"Invalid decimal: at most {_MAX_PLACES} decimal places.")
    whole = int(amount) if amount == amount.to_integral_value() else None
    return {name: whole, f"{name}_decimal": plain(amount) if amount else "0"}


def _require_free_key(world: World, params: Mapping[str, Any], own: Object | None = None) -> None:
    key = params.get("lookup_key")
    if key is None:
        return
    if len(key) > _MAX_LOOKUP_KEY:
        raise invalid("lookup_key", f"Invalid lookup_key: must be at most {_MAX_LOOKUP_KEY} characters.")
    holder = _holder(world, key)
    if holder is not None and holder is not own and not params.get("transfer_lookup_key"):
        raise invalid(
            "lookup_key",
            f"A price (`{holder['id']}`) already uses that lookup key. Please use a different lookup key or set "
            "`transfer_lookup_key`.",
            "resource_already_exists",
        )


def _name(world: World, price: Object, params: Mapping[str, Any]) -> None:
    key = params.get("lookup_key")
    if key is None:
        return
    holder = _holder(world, key)
    if holder is not None and holder is not price:
        with recorded(world, holder, "price.updated"):
            holder["lookup_key"] = None
    price["lookup_key"] = key


def _holder(world: World, key: str) -> Object | None:
    return next((price for price in world.all(PRICE) if price["lookup_key"] == key), None)


def _at(param: str, name: str) -> str:
    if not param:
        return name
    first, bracket, rest = name.partition("[")
    return f"{param}[{first}]{bracket}{rest}"
