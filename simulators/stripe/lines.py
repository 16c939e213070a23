"""The lines of an invoice: what each kind of debt looks like on it.

A line is made from a subscription item and a period (in advance, or during a trial for nothing), from the usage that a
meter counted (afterwards), or from an invoice item. A tiered price gives one line for each tier it reaches. Lines carry
notes: `_usage` where the line is still counted anew while its invoice is a draft, `_tax_rates` where it has its own.
"""

import copy
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from simulators.stripe.ids import new_id
from simulators.stripe.periods import Period
from simulators.stripe.proration import share
from simulators.stripe.rating import Part, cents, plain, rate
from simulators.stripe.usage import quantity_of
from simulators.stripe.world import Object, World

TIMES = "\u00d7"


def of_item(world: World, subscription: Object, item: Object, period: Period, whole: Period) -> list[Object]:
    """An item's price and quantity in advance, for a period that may be cut short.

    Args:
        world: The account.
        subscription: The item's.
        item: With a licensed price.
        period: What is paid for.
        whole: What the price is for.
    """
    price = world.get("price", item["price"]["id"])
    made = []
    for part in rate(price, item["quantity"]):
        line = _line(world, subscription, item, period, part, describe(world, price, part))
        line["amount"] = line["subtotal"] = share(part.amount, whole, period)
        made.append(line)
    return made


def of_trial(world: World, subscription: Object, item: Object, period: Period) -> Object:
    """An item's line for a period that costs nothing."""
    return _free(world, subscription, item, period, item["quantity"])


def of_usage(world: World, subscription: Object, item: Object, usage: Mapping[str, Any]) -> list[Object]:
    """What a meter counted for an item, as far as it has been reported.

    Args:
        world: The account.
        subscription: The item's.
        item: With a metered price, or a former one that had it.
        usage: See `usage.outstanding`; kept with each line as its note `_usage`.
    """
    period = Period(usage["start"], usage["end"])
    quantity = quantity_of(world, subscription["customer"], usage)
    if usage["is_free"]:
        lines = [_free(world, subscription, item, period, quantity)]
    else:
        price = world.get("price", usage["price"])
        lines = [
            _line(world, subscription, item, period, part, describe(world, price, part), price)
            for part in rate(price, quantity)
        ]
    for line in lines:
        line["_usage"] = dict(usage)
    return lines


def of_invoice_item(world: World, item: Object) -> Object:
    """An invoice item, as the line of the invoice that takes it up."""
    parent = (item.get("parent") or {}).get("subscription_details") or {}
    return {
        **_frame(item["amount"], item["currency"], item["description"], Period(**item["period"])),
        "discountable": item["discountable"],
        "discounts": list(item["discounts"]),
        "metadata": dict(item["metadata"]),
        "parent": _parent_of_invoice_item(item, parent),
        "pricing": copy.deepcopy(item["pricing"]),
        "quantity": item["quantity"],
        "quantity_decimal": str(item["quantity"]),
        "subscription": parent.get("subscription"),
        "_tax_rates": [rate["id"] for rate in item["tax_rates"]],
    }


def describe(world: World, price: Object, part: Part) -> str:
    """Such as `3 x Tokens (Tier 2 at $0.02 / month)`."""
    recurring = price.get("recurring")
    every = f" / {_interval(recurring)}" if recurring else ""
    tier = f"Tier {part.tier} at " if part.tier is not None else "at "
    fee = " flat fee" if part.is_flat_fee else ""
    # As Stripe does, without thousands separators; an exact unit price may be a small fraction of a cent.
    return f"{part.quantity} {TIMES} {product_name(world, price)} ({tier}{_money(part.unit_amount)}{fee}{every})"


def product_name(world: World, price: Mapping[str, Any]) -> str:
    """The name of a price's product."""
    return str(world.get("product", price["product"])["name"])


def pricing(price: Mapping[str, Any], unit_amount: Decimal) -> Object:
    """How a line names its price."""
    details = {"price": price["id"], "product": price["product"]}
    return {"price_details": details, "type": "price_details", "unit_amount_decimal": plain(unit_amount)}


def _free(world: World, subscription: Object, item: Object, period: Period, quantity: int) -> Object:
    text = f"Free trial for {quantity} {TIMES} {product_name(world, item['price'])}"
    return _line(world, subscription, item, period, Part(quantity, Decimal(0), Decimal(0)), text)


def _line(
    world: World,
    subscription: Object,
    item: Object,
    period: Period,
    part: Part,
    description: str,
    price: Object | None = None,
) -> Object:
    price = price or item["price"]
    details = {
        "invoice_item": None,
        "proration": False,
        "proration_details": {"credited_items": None},
        "subscription": subscription["id"],
        "subscription_item": item["id"],
    }
    running = [discount for discount in item["discounts"] if world.find("discount", discount)]
    return {
        **_frame(cents(part.amount), price["currency"], description, period),
        "discounts": running,
        "metadata": {**subscription["metadata"], **item["metadata"]},
        "parent": {"subscription_item_details": details, "type": "subscription_item_details"},
        "pricing": pricing(price, part.unit_amount),
        "quantity": part.quantity,
        "quantity_decimal": str(part.quantity),
        "subscription": subscription["id"],
        "_tax_rates": [rate["id"] for rate in item["tax_rates"] or ()],
    }


def _frame(amount: int, currency: str, description: str | None, period: Period) -> Object:
    return {
        "id": new_id("il"),
        "object": "line_item",
        "amount": amount,
        "currency": currency,
        "description": description,
        "discount_amounts": [],
        "discountable": True,
        "discounts": [],
        "invoice": None,
        "livemode": False,
        "period": {"start": period.start, "end": period.end},
        "pretax_credit_amounts": [],
        "subtotal": amount,
        "taxes": [],
    }


def _parent_of_invoice_item(item: Object, parent: Mapping[str, Any]) -> Object:
    credited = ((item.get("proration_details") or {}).get("credited_items") or {}).get("invoice_line_item_details")
    details = {
        "invoice_item": item["id"],
        "proration": item["proration"],
        "proration_details": {"credited_items": credited},
        "subscription": parent.get("subscription"),
    }
    if parent.get("subscription_item"):
        details["subscription_item"] = parent["subscription_item"]
        return {"subscription_item_details": details, "type": "subscription_item_details"}
    return {"invoice_item_details": details, "type": "invoice_item_details"}


def _interval(recurring: Mapping[str, Any]) -> str:
    count = recurring["interval_count"]
    return str(recurring["interval"]) if count == 1 else f"{count} {recurring['interval']}s"


def _money(unit_amount: Decimal) -> str:
    dollars = unit_amount / 100
    text = plain(dollars)
    return f"${dollars:.2f}" if len(text.partition(".")[2]) <= 2 else f"${text}"
