"""What was charged in advance for an item's time and not given back yet: the ground of every credit.

Nothing is kept for it: the invoices' lines and the pending invoice items say it, and a credit names the debit that it
gives back.
"""

from collections.abc import Iterator
from typing import Any

from simulators.stripe.discounts import net
from simulators.stripe.periods import Period
from simulators.stripe.proration import Debit
from simulators.stripe.world import Object, World


def outstanding(world: World, subscription: Object, item: Object, moment: int) -> list[Debit]:
    """An item's debits for time after a moment, without those that were credited already."""
    found = [*_invoiced(world, subscription), *_itemised(world, subscription)]
    credited = _credited(world, subscription)
    return [
        debit
        for debit in found
        if debit.item == item["id"] and debit.period.end > moment and _key(debit.credited_items) not in credited
    ]


def _invoiced(world: World, subscription: Object) -> Iterator[Debit]:
    for invoice in world.all("invoice"):
        if invoice["status"] == "void" or _subscription_of(invoice) != subscription["id"]:
            continue
        for line in invoice["lines"]["data"]:
            details = line["parent"].get("subscription_item_details")
            is_ahead = details is not None and details["invoice_item"] is None and "_usage" not in line
            if is_ahead and line["amount"] > 0:
                reference = {"invoice": invoice["id"], "invoice_line_items": [line["id"]]}
                yield Debit(
                    details["subscription_item"],
                    net(line),
                    Period(**line["period"]),
                    {"invoice_item": None, "invoice_line_item_details": reference, "type": "invoice_line_items"},
                )


def _itemised(world: World, subscription: Object) -> Iterator[Debit]:
    for item in _prorations(world, subscription):
        if item["amount"] > 0 and not item.get("_is_usage"):
            yield Debit(
                item["parent"]["subscription_details"]["subscription_item"],
                item["net_amount"],
                Period(**item["period"]),
                {"invoice_item": item["id"], "invoice_line_item_details": None, "type": "invoice_item"},
            )


def _credited(world: World, subscription: Object) -> set[str]:
    named = ((item["proration_details"] or {}).get("credited_items") for item in _prorations(world, subscription))
    return {_key(reference) for reference in named if reference}


def _prorations(world: World, subscription: Object) -> Iterator[Object]:
    for item in world.all("invoiceitem"):
        parent = (item["parent"] or {}).get("subscription_details") or {}
        if item["proration"] and parent.get("subscription") == subscription["id"]:
            yield item


def _key(reference: dict[str, Any]) -> str:
    details = reference["invoice_line_item_details"]
    return str(details["invoice_line_items"][0] if details else reference["invoice_item"])


def _subscription_of(invoice: Object) -> str | None:
    details = (invoice.get("parent") or {}).get("subscription_details") or {}
    return details.get("subscription")
