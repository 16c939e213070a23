"""Subscriptions: made, read, listed, cancelled and resumed. Changing one is `subscription_changes.py`.

Unlike the versions before it, this API version makes subscriptions under flexible billing unless told otherwise, and
keeps billing periods with the items.
"""

import copy
from collections.abc import Mapping
from typing import Any

from simulators.stripe import (
    cards,
    collection,
    discounts,
    invoice_items,
    invoices,
    items,
    prorations,
    renewals,
    standing,
    usage,
)
from simulators.stripe.changes import recorded
from simulators.stripe.errors import StripeError, declined, invalid
from simulators.stripe.ids import new_id
from simulators.stripe.operations import Params, listing, matching, operation
from simulators.stripe.periods import SECONDS_PER_DAY, Period, boundary
from simulators.stripe.standing import KIND
from simulators.stripe.world import Object, World

_BLANK: Object = {
    "billing_schedules": [],
    "cancel_at": None,
    "canceled_at": None,
    "cancellation_details": {"comment": None, "feedback": None, "reason": None},
    "discounts": [],
    "ended_at": None,
    "invoice_settings": {"issuer": {"type": "self"}},
    "latest_invoice": None,
    "livemode": False,
    "pause_collection": None,
    "pending_setup_intent": None,
    "pending_update": None,
    "schedule": None,
}
_TRIAL_ENDS = {"missing_payment_method": "create_invoice"}


def start(world: World, params: Mapping[str, Any]) -> Object:
    """Make a subscription and bill its first period.

    Args:
        world: The account.
        params: Of `POST /v1/subscriptions`.

    Raises:
        StripeError: 400 for parameters; 402 under `error_if_incomplete`, with nothing made.
    """
    customer = world.get("customer", _given(params, "customer"), "customer")
    subscription = _made(world, customer, params)
    _require_payable(world, customer, subscription, params)
    owner = {"customer": customer["id"], "subscription": subscription["id"]}
    subscription["discounts"] = discounts.redeem(
        world, params.get("discounts"), "discounts", currency=subscription["currency"], **owner
    )
    world.put(subscription)
    first = _first_lines(world, subscription, params)
    is_waiting = any(line["amount"] for line in first) and subscription["collection_method"] == "charge_automatically"
    if subscription["trial_end"] is None and is_waiting:
        subscription["status"] = "incomplete"
    invoice = renewals.bill(world, subscription, "subscription_create", first)
    world.emit("customer.subscription.created", subscription)
    if invoice is not None:
        _collect_first(world, subscription, invoice, params.get("payment_behavior", "allow_incomplete"))
    return subscription


@operation("POST", "/v1/subscriptions")
def create(world: World, params: Params) -> Object:
    """See `start`."""
    return start(world, params)


@operation("GET", "/v1/subscriptions/{subscription_exposed_id}")
def retrieve(world: World, params: Params, subscription_exposed_id: str) -> Object:
    """One subscription, ended ones too."""
    return world.get(KIND, subscription_exposed_id, "id")


@operation("GET", "/v1/subscriptions")
def list_all(world: World, params: Params) -> list[Object]:
    """Subscriptions that have not ended, or those of a status (`all`, `ended`)."""
    found = matching(world.all(KIND), params, "customer", "collection_method", "test_clock")
    status = params.get("status")
    if status is None:
        found = [subscription for subscription in found if subscription["status"] not in standing.ENDED]
    elif status == "ended":
        found = [subscription for subscription in found if subscription["status"] in standing.ENDED]
    elif status != "all":
        found = [subscription for subscription in found if subscription["status"] == status]
    if "price" in params:
        found = [
            subscription
            for subscription in found
            if any(item["price"]["id"] == params["price"] for item in subscription["items"]["data"])
        ]
    return found


@operation("DELETE", "/v1/subscriptions/{subscription_exposed_id}")
def cancel(world: World, params: Params, subscription_exposed_id: str) -> Object:
    """Cancel now.

    With `prorate`, unused time is credited; with `invoice_now`, usage so far and all that is pending is billed at once.
    Without `invoice_now` usage that was not billed never is; without either, pending prorations are forgotten.
    """
    subscription = world.get(KIND, subscription_exposed_id, "id")
    require_live(subscription)
    now = world.now(subscription)
    _explain(subscription, params)
    made: list[Object] = []
    for item in subscription["items"]["data"]:
        if usage.is_metered(item["price"]):
            if params.get("invoice_now") and subscription["status"] != "trialing":
                prorations.bill_usage(world, subscription, item, now)
        elif params.get("prorate"):
            prorations.credit_unused(world, subscription, item, now)
    if params.get("invoice_now"):
        renewals.bill_now(world, subscription, "subscription_update", made)
    elif not params.get("prorate"):
        invoice_items.forget_prorations(world, subscription)
    if subscription["status"] not in standing.ENDED:
        standing.finish(world, subscription, "cancellation_requested")
    return subscription


@operation("POST", "/v1/subscriptions/{subscription}/resume")
def resume(world: World, params: Params, subscription: str) -> Object:
    """Let a paused subscription run again, in a new cycle or in its old one."""
    found = world.get(KIND, subscription, "subscription")
    if found["status"] != "paused":
        raise StripeError(f"Only paused subscriptions can be resumed; this one is {found['status']}.")
    now = world.now(found)
    is_anew = (params.get("billing_cycle_anchor") or {}).get("type", "now") == "now"
    with recorded(world, found, renewals.UPDATED):
        found["status"] = "active"
        if is_anew:
            found["billing_cycle_anchor"] = now
        for item in found["items"]["data"]:
            whole = items.cycle_of(found, item, now)
            items.set_period(item, Period(now, whole.end))
        if is_anew or params.get("proration_behavior") != "none":
            renewals.bill_now(world, found, "subscription_update", renewals.first_lines(world, found))
    world.emit("customer.subscription.resumed", found)
    return found


def require_live(subscription: Object) -> None:
    """Refuse to touch what has ended.

    Raises:
        StripeError: 404 resource_missing, as at Stripe.
    """
    if subscription["status"] in standing.ENDED:
        message = f"No such subscription: '{subscription['id']}'"
        raise StripeError(message, status=404, code="resource_missing", param="id")


def trial_end_of(world: World, customer: Object, params: Mapping[str, Any]) -> int | None:
    """When a trial ends that the parameters ask for; None for none."""
    now = world.now(customer)
    if "trial_period_days" in params:
        return now + int(params["trial_period_days"]) * SECONDS_PER_DAY if params["trial_period_days"] else None
    wanted = params.get("trial_end")
    if wanted in (None, "now"):
        return None
    if wanted <= now:
        raise invalid("trial_end", "Invalid timestamp: must be an integer Unix timestamp in the future.")
    return int(wanted)


def resolve_cancel_at(subscription: Object, wanted: int | str) -> int:
    """The moment that a `cancel_at` names."""
    ends = [int(item["current_period_end"]) for item in subscription["items"]["data"]]
    if isinstance(wanted, int):
        return wanted
    return max(ends) if wanted == "max_period_end" else min(ends)


def _made(world: World, customer: Object, params: Mapping[str, Any]) -> Object:
    """A whole subscription that is not stored yet."""
    now = world.now(customer)
    subscription = _fields(world, customer, params, now)
    entries = params.get("items") or ()
    data = [items.make(world, subscription, entry, f"items[{index}]") for index, entry in enumerate(entries)]
    items.check(data, subscription["billing_mode"]["type"])
    if "billing_cycle_anchor" in params:
        _check_anchor(subscription, data, now)
    subscription["currency"] = data[0]["price"]["currency"]
    subscription["items"] = listing(f"/v1/subscription_items?subscription={subscription['id']}", data)
    for item in data:
        end = subscription["trial_end"] or items.cycle_of(subscription, item, now).end
        items.set_period(item, Period(now, end))
    if "cancel_at" in params:
        subscription["cancel_at"] = resolve_cancel_at(subscription, params["cancel_at"])
        if subscription["cancel_at"] <= now:
            raise invalid("cancel_at", "The `cancel_at` timestamp must be in the future.")
    elif subscription["cancel_at_period_end"]:
        subscription["cancel_at"] = items.period_of_subscription(subscription).end
    return subscription


def _check_anchor(subscription: Object, data: list[Object], now: int) -> None:
    anchor = subscription["billing_cycle_anchor"]
    begin = subscription["trial_end"] or now
    natural = min(boundary(begin, item["price"]["recurring"], 1) for item in data)
    if not now <= anchor <= natural:
        message = f"The anchor must be in the future, and not later than the next natural billing date ({natural})."
        raise invalid("billing_cycle_anchor", message)


def _fields(world: World, customer: Object, params: Mapping[str, Any], now: int) -> Object:
    trial_end = trial_end_of(world, customer, params)
    mode = params.get("billing_mode") or {"type": "flexible"}
    method = params.get("default_payment_method")
    if method is not None:
        world.get("payment_method", method, "default_payment_method")
    is_flexible = mode["type"] == "flexible"
    flexible = {"proration_discounts": "included", **(mode.get("flexible") or {})} if is_flexible else None
    rates = params.get("default_tax_rates") or ()
    return {
        **copy.deepcopy(_BLANK),
        "id": new_id("sub"),
        "object": KIND,
        "automatic_tax": {
            "disabled_reason": None,
            "enabled": False,
            "liability": None,
            **params.get("automatic_tax", {}),
        },
        "billing_cycle_anchor": params.get("billing_cycle_anchor", trial_end or now),
        "billing_mode": {"type": mode["type"], "flexible": flexible, "updated_at": None},
        "cancel_at_period_end": params.get("cancel_at_period_end", False),
        "collection_method": params.get("collection_method", "charge_automatically"),
        "created": now,
        "customer": customer["id"],
        "days_until_due": params.get("days_until_due"),
        "default_payment_method": method,
        "default_tax_rates": [world.get("tax_rate", rate, "default_tax_rates") for rate in rates],
        "description": params.get("description"),
        "metadata": dict(params.get("metadata") or {}),
        "payment_settings": {"save_default_payment_method": "off", **(params.get("payment_settings") or {})},
        "start_date": now,
        "status": "trialing" if trial_end else "active",
        "test_clock": customer.get("test_clock"),
        "trial_end": trial_end,
        "trial_settings": params.get("trial_settings") or {"end_behavior": dict(_TRIAL_ENDS)},
        "trial_start": now if trial_end else None,
        "_cancel_prorates": params.get("proration_behavior") != "none",
    }


def _require_payable(world: World, customer: Object, subscription: Object, params: Mapping[str, Any]) -> None:
    """Refuse, before anything is made, what cannot be paid and may not be incomplete."""
    behavior = params.get("payment_behavior", "allow_incomplete")
    is_charged = subscription["collection_method"] == "charge_automatically" and subscription["trial_end"] is None
    if behavior == "pending_if_incomplete":
        raise invalid("payment_behavior", "You cannot set `payment_behavior` to `pending_if_incomplete` here.")
    is_free = not any(line["amount"] for line in _first_lines(world, subscription, params))
    if behavior == "default_incomplete" or not is_charged or is_free:
        return
    method = collection.default_method(world, customer, None, subscription)
    if method is None:
        raise StripeError(
            "This customer has no attached payment source or default payment method. "
            "Please consider adding a default payment method.",
            code="resource_missing",
        )
    refusal = cards.refusal_of_charge(method)
    if behavior == "error_if_incomplete" and refusal is not None:
        raise declined(refusal.message, refusal.decline_code, refusal.code)


def _first_lines(world: World, subscription: Object, params: Mapping[str, Any]) -> list[Object]:
    """What is billed at once; the time before an anchor that was set is free where nothing is prorated."""
    is_free = "billing_cycle_anchor" in params and params.get("proration_behavior") == "none"
    return [] if is_free and subscription["trial_end"] is None else renewals.first_lines(world, subscription)


def _collect_first(world: World, subscription: Object, invoice: Object, behavior: str) -> None:
    invoices.finalize(world, invoice)
    if invoice["status"] == "paid":
        standing.paid(world, subscription, invoice)
    elif subscription["collection_method"] != "charge_automatically":
        world.emit("invoice.sent", invoice)
    elif behavior != "default_incomplete":
        collection.attempt(world, invoice)


def _explain(subscription: Object, params: Mapping[str, Any]) -> None:
    subscription["cancellation_details"].update(params.get("cancellation_details") or {})


def _given(params: Mapping[str, Any], name: str) -> Any:  # noqa: ANN401 - a parameter
    if name not in params:
        raise invalid(name, f"Missing required param: {name}.", "parameter_missing")
    return params[name]
