"""Changes of a subscription: items, trial, anchor, cancellation, and what they cost.

Under flexible billing the anchor moves only when asked: an item that changes its interval enters the period of the new
interval that holds the moment, and pays from the moment on. Under classic billing such a change starts a new cycle.
"""

from collections.abc import Mapping
from typing import Any

from simulators.stripe import cards, collection, discounts, items, prorations, renewals, usage
from simulators.stripe.changes import merge_metadata, recorded
from simulators.stripe.errors import StripeError, declined, invalid
from simulators.stripe.operations import Params, operation
from simulators.stripe.periods import Period
from simulators.stripe.standing import KIND
from simulators.stripe.subscriptions import require_live, resolve_cancel_at, trial_end_of
from simulators.stripe.world import Object, World

_ENTRY = ("discounts", "metadata", "price", "price_data", "quantity", "tax_rates")
_PLAIN = (
    "automatic_tax",
    "collection_method",
    "days_until_due",
    "default_payment_method",
    "description",
    "pause_collection",
    "trial_settings",
)


def change(world: World, subscription: Object, params: Mapping[str, Any]) -> None:
    """Apply the parameters of an update, bill what they say is to be billed at once, and tell of it.

    Raises:
        StripeError: 400 for parameters; 402 under `error_if_incomplete`, with nothing changed.
    """
    require_live(subscription)
    _check(world, subscription, params)
    behavior = params.get("proration_behavior", "create_prorations")
    with recorded(world, subscription, renewals.UPDATED):
        is_anew = _change_items(world, subscription, params, behavior)
        is_anew = _change_trial(world, subscription, params) or is_anew
        if is_anew or (params.get("billing_cycle_anchor") or {}).get("type") == "now":
            _restart(world, subscription, behavior)
        elif behavior == "always_invoice":
            renewals.bill_now(world, subscription, "subscription_update", [])
        _change_cancellation(world, subscription, params, behavior)
        _change_fields(world, subscription, params)


@operation("POST", "/v1/subscriptions/{subscription_exposed_id}")
def update(world: World, params: Params, subscription_exposed_id: str) -> Object:
    """See `change`."""
    subscription = world.get(KIND, subscription_exposed_id, "id")
    change(world, subscription, params)
    return subscription


@operation("POST", "/v1/subscriptions/{subscription}/migrate")
def migrate(world: World, params: Params, subscription: str) -> Object:
    """Move a subscription to flexible billing; there is no way back."""
    found = world.get(KIND, subscription, "subscription")
    if found["billing_mode"]["type"] == "flexible":
        raise invalid("billing_mode", "This subscription already uses flexible billing mode.")
    with recorded(world, found, renewals.UPDATED):
        flexible = {"proration_discounts": "included"}
        found["billing_mode"] = {"type": "flexible", "flexible": flexible, "updated_at": world.now(found)}
    return found


@operation("GET", "/v1/subscription_items")
def list_items(world: World, params: Params) -> list[Object]:
    """A subscription's items."""
    data: list[Object] = world.get(KIND, params["subscription"], "subscription")["items"]["data"]
    return data


@operation("GET", "/v1/subscription_items/{item}")
def retrieve_item(world: World, params: Params, item: str) -> Object:
    """One item of a subscription."""
    return items.find(world, item)[0]


@operation("POST", "/v1/subscription_items")
def create_item(world: World, params: Params) -> Object:
    """Add an item to a subscription."""
    subscription = world.get(KIND, params["subscription"], "subscription")
    entry = {name: value for name, value in params.items() if name in _ENTRY}
    change(world, subscription, {**_behavior(params), "items": [entry]})
    added: Object = subscription["items"]["data"][-1]
    return added


@operation("POST", "/v1/subscription_items/{item}")
def update_item(world: World, params: Params, item: str) -> Object:
    """Change one item of a subscription."""
    found, subscription = items.find(world, item)
    entry = {name: value for name, value in params.items() if name in _ENTRY}
    change(world, subscription, {**_behavior(params), "items": [{**entry, "id": item}]})
    return found


@operation("DELETE", "/v1/subscription_items/{item}")
def delete_item(world: World, params: Params, item: str) -> Object:
    """Take an item off its subscription."""
    _, subscription = items.find(world, item)
    change(world, subscription, {**_behavior(params), "items": [{"id": item, "deleted": True}]})
    return {"id": item, "object": items.KIND, "deleted": True}


def _behavior(params: Params) -> Params:
    kept = ("proration_behavior", "proration_date", "payment_behavior")
    return {name: params[name] for name in kept if name in params}


def _check(world: World, subscription: Object, params: Mapping[str, Any]) -> None:
    """Refuse before anything is changed."""
    is_first_unpaid = subscription["status"] == "incomplete"
    if is_first_unpaid and params.keys() - {"metadata", "default_payment_method", "expand"}:
        raise StripeError("This subscription cannot be updated until its first invoice is paid.")
    if subscription["schedule"] and params.keys() & {"cancel_at", "cancel_at_period_end"}:
        raise StripeError(
            f"The subscription is managed by the subscription schedule `{subscription['schedule']}`, and updating any "
            "cancelation behavior directly is not allowed. Please update the schedule instead."
        )
    if "cancel_at" in params and params.get("cancel_at_period_end"):
        raise invalid("cancel_at", "You may only specify one of these parameters: cancel_at, cancel_at_period_end.")
    if "default_payment_method" in params:
        world.get("payment_method", params["default_payment_method"], "default_payment_method")
    if "proration_date" in params:
        _check_proration_date(subscription, params["proration_date"])
    behavior = params.get("payment_behavior")
    if behavior == "pending_if_incomplete":
        raise invalid("payment_behavior", "The simulator does not know `pending_if_incomplete`.")
    if behavior == "error_if_incomplete":
        customer = world.get("customer", subscription["customer"])
        method = collection.default_method(world, customer, None, subscription)
        refusal = cards.refusal_of_charge(method) if method else cards.GENERIC
        if refusal is not None:
            raise declined(refusal.message, refusal.decline_code, refusal.code)


def _check_proration_date(subscription: Object, moment: int) -> None:
    data = subscription["items"]["data"]
    start, end = (
        edge(item[f"current_period_{name}"] for item in data) for name, edge in (("start", min), ("end", max))
    )
    if not start <= moment <= end:
        raise invalid("proration_date", "The proration date must lie in the current period of the subscription.")


def _change_items(world: World, subscription: Object, params: Mapping[str, Any], behavior: str) -> bool:
    """Change, add and remove items; returns whether classic billing starts a new cycle for it."""
    moment = params.get("proration_date", world.now(subscription))
    data = subscription["items"]["data"]
    planned = [
        _Planned(world, subscription, entry, f"items[{index}]") for index, entry in enumerate(params.get("items") or ())
    ]
    removed = {plan.id for plan in planned if plan.is_removed}
    changed = {plan.id: plan.after for plan in planned}
    kept = [changed.get(item["id"], item) for item in data if item["id"] not in removed]
    kept += [plan.after for plan in planned if plan.id is None]
    items.check(kept, subscription["billing_mode"]["type"])
    is_anew = subscription["billing_mode"]["type"] == "classic" and any(plan.is_other_interval for plan in planned)
    is_prorated = behavior != "none" and subscription["status"] != "trialing"
    for plan in planned:
        plan.carry_out(world, subscription, moment, is_prorated=is_prorated, is_anew=is_anew)
    data[:] = [item for item in data if item["id"] not in removed]
    data += [plan.after for plan in planned if plan.id is None]
    return is_anew


class _Planned:
    """One entry of `items`: the item as it is, and as it will be."""

    def __init__(self, world: World, subscription: Object, entry: Mapping[str, Any], param: str) -> None:
        self.id: str | None = entry.get("id")
        self.is_removed = bool(entry.get("deleted"))
        if self.id is None:
            self.before = None
            self.after = items.make(world, subscription, entry, param)
            return
        found = [item for item in subscription["items"]["data"] if item["id"] == self.id]
        if not found:
            message = f"No such subscription item: '{self.id}'"
            raise StripeError(message, status=404, code="resource_missing", param=f"{param}[id]")
        self.before = found[0]
        self.after = dict(found[0])
        if not self.is_removed:
            items.change(world, subscription, self.after, entry, param)

    @property
    def is_other_interval(self) -> bool:
        """The item's price changes to another interval."""
        return self.before is not None and not items.are_alike([self.before["price"], self.after["price"]])

    def carry_out(self, world: World, subscription: Object, moment: int, *, is_prorated: bool, is_anew: bool) -> None:
        """Bill what ends, let the item be what it will be, and bill what begins.

        Where the item's period ends at this very moment, the renewal that follows bills what begins.
        """
        if self.before is None:
            self._begin(world, subscription, moment, is_prorated=is_prorated)
            return
        old = self.before
        is_other = self.is_other_interval
        if self._is_same:
            self._take_over(world, subscription, moment)
            return
        is_ending = old["current_period_end"] <= moment
        self._close(world, subscription, moment, is_prorated=is_prorated, is_ending=is_ending)
        self._take_over(world, subscription, moment)
        if self.is_removed or is_anew or is_ending:
            return
        if is_other and subscription["status"] != "trialing":
            whole = items.cycle_of(subscription, old, moment)
            old.update(current_period_start=whole.start, current_period_end=whole.end)
        if is_prorated and not usage.is_metered(old["price"]):
            prorations.debit_remaining(world, subscription, old, moment)

    @property
    def _is_same(self) -> bool:
        assert self.before is not None
        is_same_price = self.before["price"]["id"] == self.after["price"]["id"]
        return is_same_price and self.before["quantity"] == self.after["quantity"] and not self.is_removed

    @property
    def _keeps_meter(self) -> bool:
        assert self.before is not None
        meters = (self.before["price"]["recurring"].get("meter"), self.after["price"]["recurring"].get("meter"))
        return meters[0] == meters[1] and not self.is_removed

    def _take_over(self, world: World, subscription: Object, moment: int) -> None:
        assert self.before is not None
        old = self.before
        is_other_meter = old["price"]["recurring"].get("meter") != self.after["price"]["recurring"].get("meter")
        for name in ("discounts", "metadata", "plan", "price", "quantity", "tax_rates"):
            old[name] = self.after[name]
        if is_other_meter:
            usage.begin(world, subscription["customer"], old, moment)

    def _close(self, world: World, subscription: Object, moment: int, *, is_prorated: bool, is_ending: bool) -> None:
        assert self.before is not None
        if usage.is_metered(self.before["price"]):
            if is_ending and self._keeps_meter:
                # The renewal that follows bills the period, and what is reported for it while its invoice is a draft.
                usage.keep_price(self.before)
                return
            is_trial = subscription["status"] == "trialing"
            is_billed = (is_prorated or is_ending) and not is_trial
            prorations.bill_usage(world, subscription, self.before, moment, is_billed=is_billed)
        elif is_prorated:
            prorations.credit_unused(world, subscription, self.before, moment)

    def _begin(self, world: World, subscription: Object, moment: int, *, is_prorated: bool) -> None:
        is_ending = items.period_of_subscription(subscription).end <= moment
        if is_ending:
            whole = Period(moment, moment)
        elif subscription["status"] == "trialing":
            whole = Period(moment, subscription["trial_end"])
        else:
            whole = items.cycle_of(subscription, self.after, moment)
        items.set_period(self.after, whole)
        if usage.is_metered(self.after["price"]):
            usage.begin(world, subscription["customer"], self.after, moment)
        elif is_prorated and not is_ending:
            prorations.debit_remaining(world, subscription, self.after, moment)


def _change_trial(world: World, subscription: Object, params: Mapping[str, Any]) -> bool:
    """Start, move or end a trial; returns whether a new cycle starts now, because a trial ends now."""
    if "trial_end" not in params:
        return False
    now = world.now(subscription)
    if params["trial_end"] == "now":
        if subscription["status"] != "trialing":
            return False
        subscription.update(status="active", trial_end=now)
        for item in subscription["items"]["data"]:
            items.set_period(item, Period(item["current_period_start"], now))
        return True
    end = trial_end_of(world, world.get("customer", subscription["customer"]), params)
    assert end is not None
    if subscription["status"] != "trialing":
        subscription["trial_start"] = now
        for item in subscription["items"]["data"]:
            if usage.is_metered(item["price"]):
                prorations.bill_usage(world, subscription, item, now)
            else:
                prorations.credit_unused(world, subscription, item, now)
            item["current_period_start"] = now
    subscription.update(status="trialing", trial_end=end, billing_cycle_anchor=end)
    subscription.pop("_trial_end_told", None)
    for item in subscription["items"]["data"]:
        items.set_period(item, Period(item["current_period_start"], end))
    return False


def _restart(world: World, subscription: Object, behavior: str) -> None:
    """Start a new cycle now: close the running periods, then bill whole new ones."""
    now = world.now(subscription)
    for item in subscription["items"]["data"]:
        is_open = item["current_period_start"] < now < item["current_period_end"]
        if not is_open or behavior == "none":
            continue
        if usage.is_metered(item["price"]):
            prorations.bill_usage(world, subscription, item, now)
        else:
            prorations.credit_unused(world, subscription, item, now)
    subscription["billing_cycle_anchor"] = now
    for item in subscription["items"]["data"]:
        items.set_period(item, items.cycle_of(subscription, item, now))
    renewals.bill_now(world, subscription, "subscription_update", renewals.first_lines(world, subscription))


def _change_cancellation(world: World, subscription: Object, params: Mapping[str, Any], behavior: str) -> None:
    """Set or clear the moment at which the subscription ends.

    With items of several intervals `cancel_at_period_end` means the earliest end, and moves with it; `cancel_at` stays.
    """
    if "cancel_at" not in params and "cancel_at_period_end" not in params:
        return
    now = world.now(subscription)
    if params.get("cancel_at_period_end"):
        at: int | None = items.period_of_subscription(subscription).end
    elif params.get("cancel_at"):
        at = resolve_cancel_at(subscription, params["cancel_at"])
        if at <= now:
            raise invalid("cancel_at", "The `cancel_at` timestamp must be in the future.")
    else:
        at = None
    subscription["cancel_at_period_end"] = bool(params.get("cancel_at_period_end"))
    subscription["cancel_at"] = at
    subscription["canceled_at"] = None if at is None else now
    reason = None if at is None else "cancellation_requested"
    subscription["cancellation_details"]["reason"] = reason
    subscription["_cancel_prorates"] = behavior != "none"


def _change_fields(world: World, subscription: Object, params: Mapping[str, Any]) -> None:
    for name in _PLAIN:
        if name in params:
            subscription[name] = params[name] if params[name] != "" else None
    if "discounts" in params:
        owner = {"customer": subscription["customer"], "subscription": subscription["id"]}
        subscription["discounts"] = discounts.redeem(
            world, params["discounts"], "discounts", currency=subscription["currency"], **owner
        )
    if "default_tax_rates" in params:
        rates = params["default_tax_rates"] or ()
        subscription["default_tax_rates"] = [world.get("tax_rate", rate, "default_tax_rates") for rate in rates]
    if "payment_settings" in params:
        subscription["payment_settings"].update(params["payment_settings"])
    if "cancellation_details" in params:
        given = params["cancellation_details"]
        subscription["cancellation_details"].update({name: value or None for name, value in given.items()})
    merge_metadata(subscription, params)
