"""Previews: the invoice that a change, or the next renewal, would make.

Nothing is computed twice: the change is carried out on a copy of what is the customer's, in an account whose events
nobody sees, and the copy is thrown away.
"""

import copy
from collections.abc import Mapping
from typing import Any

from simulators.stripe import (
    invoice_items,
    invoices,
    items,
    meters,
    renewals,
    standing,
    subscription_changes,
    subscriptions,
)
from simulators.stripe.errors import StripeError, invalid
from simulators.stripe.ids import new_id
from simulators.stripe.operations import Params, operation
from simulators.stripe.world import Object, World

# Redeeming changes these, whoever's they are.
_COUNTED = ("coupon", "promotion_code")
_CHANGES = (
    "billing_cycle_anchor",
    "cancel_at",
    "cancel_at_period_end",
    "default_tax_rates",
    "discounts",
    "items",
    "proration_behavior",
    "proration_date",
    "trial_end",
)


def upcoming(world: World, subscription: Object) -> Object | None:
    """The invoice of a subscription's next renewal, with what is pending; None if there will be none."""
    scratch = _scratch(world, subscription["customer"])
    copied = scratch.get(standing.KIND, subscription["id"])
    return _next(scratch, copied)


@operation("POST", "/v1/invoices/create_preview")
def create_preview(world: World, params: Params) -> Object:
    """The invoice that a new subscription, a change or the next renewal would make.

    Raises:
        StripeError: 404 invoice_upcoming_none if there would be none; what the change itself would be refused for.
    """
    customer = _customer(world, params)
    scratch = _scratch(world, customer)
    details = dict(params.get("subscription_details") or {})
    with scratch.standing_at(None, world.now()):
        _add_items(scratch, customer, params)
        if "subscription" in params:
            if "discounts" in params:
                details["discounts"] = params["discounts"]
            found = _changed(scratch, scratch.get(standing.KIND, params["subscription"], "subscription"), details)
        else:
            found = _started(scratch, customer, params, details)
    if found is None:
        raise StripeError(
            f"No upcoming invoices for customer: {customer}", status=404, code="invoice_upcoming_none", param="customer"
        )
    return found


def _customer(world: World, params: Params) -> str:
    if "subscription" in params:
        return str(world.get(standing.KIND, params["subscription"], "subscription")["customer"])
    if "customer" not in params:
        raise invalid("customer", "You must specify a customer or a subscription.", "parameter_missing")
    return str(world.get("customer", params["customer"], "customer")["id"])


def _add_items(scratch: World, customer: str, params: Params) -> None:
    for entry in params.get("invoice_items") or ():
        if "amount" not in entry:
            raise invalid("invoice_items[0][amount]", "The simulator previews invoice items by their amount only.")
        fields = {"description": entry.get("description")}
        currency = entry.get("currency") or params.get("currency") or "usd"
        invoice_items.make(scratch, customer, currency, entry["amount"], fields)


def _changed(scratch: World, subscription: Object, details: Mapping[str, Any]) -> Object | None:
    before = subscription["latest_invoice"]
    change = {name: details[name] for name in _CHANGES if name in details}
    if (details.get("billing_cycle_anchor") or {}).get("type") == "timestamp":
        raise invalid(
            "subscription_details[billing_cycle_anchor]", "The anchor of a subscription that runs can only become now."
        )
    if details.get("cancel_now"):
        subscriptions.cancel(scratch, {"invoice_now": True, "prorate": True}, subscription["id"])
    elif change:
        subscription_changes.change(scratch, subscription, change)
    if subscription["latest_invoice"] != before:
        return _shown(scratch, scratch.get(invoices.KIND, subscription["latest_invoice"]))
    return _next(scratch, subscription)


def _started(scratch: World, customer: str, params: Params, details: Mapping[str, Any]) -> Object | None:
    kept = (
        "billing_mode",
        "cancel_at",
        "cancel_at_period_end",
        "default_tax_rates",
        "items",
        "metadata",
        "proration_behavior",
        "trial_end",
    )
    wanted = {name: details[name] for name in kept if name in details}
    anchor = details.get("billing_cycle_anchor") or {}
    if anchor.get("timestamp"):
        wanted["billing_cycle_anchor"] = anchor["timestamp"]
    wanted |= {"customer": customer, "payment_behavior": "default_incomplete", "discounts": params.get("discounts")}
    subscription = subscriptions.start(scratch, wanted)
    latest = scratch.find(invoices.KIND, subscription["latest_invoice"])
    return _shown(scratch, latest) if latest is not None else _next(scratch, subscription)


def _next(scratch: World, subscription: Object) -> Object | None:
    if subscription["status"] in (*standing.ENDED, "paused", "incomplete"):
        return None
    before = subscription["latest_invoice"]
    end = items.period_of_subscription(subscription).end
    stop = subscription["cancel_at"]
    is_ending = stop is not None and stop <= end
    with scratch.standing_at(scratch.clock_of(subscription), min(stop, end) if is_ending else end):
        (renewals.end if is_ending else renewals.renew)(scratch, subscription)
    if subscription["latest_invoice"] == before:
        return None
    return _shown(scratch, scratch.get(invoices.KIND, subscription["latest_invoice"]))


def _shown(scratch: World, invoice: Object) -> Object:
    """An invoice as a preview shows it: a draft under an id that leads nowhere."""
    shown = scratch.snapshot(invoice)
    id = new_id("upcoming_in")
    shown.update(
        id=id,
        amount_paid=0,
        amount_remaining=shown["amount_due"],
        attempt_count=0,
        attempted=False,
        effective_at=None,
        hosted_invoice_url=None,
        invoice_pdf=None,
        number=None,
        status="draft",
    )
    shown["status_transitions"] = dict.fromkeys(shown["status_transitions"])
    shown["lines"]["url"] = f"/v1/invoices/{id}/lines"
    for line in shown["lines"]["data"]:
        line["invoice"] = id
    return shown


def _scratch(world: World, customer: str) -> World:
    scratch = World(world.real_time)
    scratch.offset_s = world.offset_s
    scratch.base_url = world.base_url
    clock = world.get("customer", customer).get("test_clock")
    for kind, rows in world.objects.items():
        # Rows may be added to a table of the copy; those that may be changed are copied, which all of them would
        # take too long for.
        table = scratch.objects[kind] = dict(rows)
        for id, row in rows.items():
            is_theirs = id in (customer, clock) or row.get("customer") == customer
            if kind in _COUNTED or (is_theirs and kind != meters.USAGE):
                table[id] = copy.deepcopy(row)
    return scratch
