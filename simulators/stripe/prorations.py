"""What a change in mid-period costs, as invoice items that wait for the next invoice.

Time paid for and not used is credited from what was debited for it; time to come is debited to the second. Usage that
was reported by the moment of the change is billed at the price that was in force until then.
"""

from datetime import UTC, datetime
from decimal import Decimal

from simulators.stripe import debits, discounts, invoice_items, items, usage
from simulators.stripe.lines import TIMES, of_usage, pricing, product_name
from simulators.stripe.periods import Period
from simulators.stripe.proration import share, unused
from simulators.stripe.rating import plain, total
from simulators.stripe.world import Object, World


def credit_unused(world: World, subscription: Object, item: Object, moment: int) -> None:
    """Give back what was paid for an item's time after a moment, one invoice item for each debit."""
    for debit in debits.outstanding(world, subscription, item, moment):
        amount = unused(debit, moment)
        start = max(moment, debit.period.start)
        if amount == 0:
            continue
        fields = {
            **_common(subscription, item),
            "description": f"Unused time on {_what(world, item)} after {_day(moment)}",
            "period": {"start": start, "end": debit.period.end},
            "pricing": pricing(item["price"], Decimal(-amount)),
            "proration_details": {"credited_items": debit.credited_items, "discount_amounts": []},
        }
        invoice_items.make(world, subscription["customer"], subscription["currency"], -amount, fields)


def debit_remaining(world: World, subscription: Object, item: Object, moment: int) -> None:
    """Bill an item's time from a moment to the end of its period."""
    whole = items.cycle_of(subscription, item, moment)
    part = Period(moment, item["current_period_end"])
    price = world.get("price", item["price"]["id"])
    gross = share(total(price, item["quantity"]), whole, part)
    if gross == 0:
        return
    amount = gross - _discount(world, subscription, item, gross)
    fields = {
        **_common(subscription, item),
        "description": f"Remaining time on {_what(world, item)} after {_day(moment)}",
        "period": {"start": part.start, "end": part.end},
        "pricing": pricing(price, Decimal(price["unit_amount_decimal"] or 0)),
        "quantity": item["quantity"],
        "quantity_decimal": plain(Decimal(item["quantity"])),
    }
    invoice_items.make(world, subscription["customer"], subscription["currency"], amount, fields)


def bill_usage(world: World, subscription: Object, item: Object, moment: int, *, is_billed: bool = True) -> None:
    """Bill an item's usage up to a moment, and remember it as billed.

    Args:
        world: The account.
        subscription: The item's.
        item: With a metered price.
        moment: Of the change.
        is_billed: Without it the usage is remembered and not billed.
    """
    # What was reported by now, even if it is stamped a little later: the rest of the period is billed without it.
    owed = usage.outstanding(item, Period(item["current_period_start"], item["current_period_end"]))
    for line in of_usage(world, subscription, item, owed) if is_billed else ():
        if line["quantity"] == 0 and line["amount"] == 0:
            continue
        fields = {
            **_common(subscription, item),
            "description": line["description"],
            "discountable": True,
            "period": {"start": line["period"]["start"], "end": moment},
            "pricing": line["pricing"],
            "proration": False,
            "quantity": line["quantity"],
            "quantity_decimal": line["quantity_decimal"],
            "_is_usage": True,
        }
        invoice_items.make(world, subscription["customer"], subscription["currency"], line["amount"], fields)
    item["_usage_billed"] = owed["billed"] + usage.quantity_of(world, subscription["customer"], owed)


def _common(subscription: Object, item: Object) -> Object:
    return {
        "discountable": False,
        "metadata": dict(subscription["metadata"]),
        "parent": invoice_items.of_subscription(subscription, item),
        "proration": True,
        "proration_details": {"credited_items": None, "discount_amounts": []},
        "tax_rates": list(item["tax_rates"] or subscription["default_tax_rates"]),
    }


def _discount(world: World, subscription: Object, item: Object, gross: int) -> int:
    """What percentages take off a debit; a discount of a fixed amount is taken from whole periods only."""
    line = {"amount": gross, "discountable": True, "discount_amounts": [], "discounts": [], "pricing": None}
    line["pricing"] = pricing(item["price"], Decimal(gross))
    given = discounts.running(world, [*item["discounts"], *subscription["discounts"]], world.now(subscription))
    relative = [found for found in given if discounts.coupon_of(world, found)["percent_off"] is not None]
    discounts.apply(world, [line], relative)
    return gross - discounts.net(line)


def _what(world: World, item: Object) -> str:
    name = product_name(world, item["price"])
    return name if item["quantity"] in (None, 1) else f"{item['quantity']} {TIMES} {name}"


def _day(moment: int) -> str:
    return f"{datetime.fromtimestamp(moment, UTC):%d %b %Y}"
