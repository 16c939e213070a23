"""Usage that is still to be billed: which of a meter's events belong to which item and period.

Under flexible billing usage is billed at the price that was in force when it was reported. So a change of price bills
what has been reported by then at the old price, and the rest of the period is billed as the whole period less that.
The timestamps of the events decide the period, half open; the moment of their arrival decides the price.
"""

from collections.abc import Mapping
from typing import Any

from simulators.stripe.meters import usage as counted
from simulators.stripe.periods import Period
from simulators.stripe.world import Object, World


def is_metered(price: Mapping[str, Any]) -> bool:
    """Whether a price is billed by usage."""
    return bool(price["recurring"]) and price["recurring"]["usage_type"] == "metered"


def outstanding(item: Object, period: Period, *, is_free: bool = False) -> dict[str, Any]:
    """What an item has to be billed for a period, to be counted when it is asked for.

    Args:
        item: With a metered price.
        period: Of the item, or what has gone by of it.
        is_free: The period is a trial: usage in it costs nothing.
    """
    return {
        "meter": item["price"]["recurring"]["meter"],
        "price": item.get("_ended_price", item["price"]["id"]),
        "start": max(period.start, item.get("_usage_from", period.start)),
        "end": period.end,
        "billed": item.get("_usage_billed", 0),
        "is_free": is_free,
    }


def begin(world: World, customer: str, item: Object, moment: int) -> None:
    """Let an item count its meter from a moment on, without what was reported of that time already."""
    item.pop("_usage_billed", None)
    item["_usage_from"] = moment
    if is_metered(item["price"]):
        owed = outstanding(item, Period(item["current_period_start"], item["current_period_end"]))
        item["_usage_billed"] = quantity_of(world, customer, owed)


def keep_price(item: Object) -> None:
    """Let the period that ends at this moment be billed at the price it had, whatever the item's becomes."""
    item["_ended_price"] = item["price"]["id"]


def quantity_of(world: World, customer: str, usage: Mapping[str, Any]) -> int:
    """Units reported for it so far and not billed before; never negative, even if events were cancelled."""
    total = counted(world, usage["meter"], customer, usage["start"], usage["end"])
    return max(int(total) - int(usage["billed"]), 0)
