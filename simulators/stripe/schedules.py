"""Subscription schedules: what a subscription will be, phase after phase.

A phase that begins where a billing period ends changes the items before that period is renewed, so that one invoice
bills the former usage at the former price and the new period at the new one.
"""

from collections.abc import Mapping
from typing import Any

from simulators.stripe import items, renewals, standing, subscription_changes, subscriptions, usage
from simulators.stripe.changes import merge_metadata, recorded
from simulators.stripe.errors import StripeError, invalid
from simulators.stripe.operations import Params, matching, operation
from simulators.stripe.periods import boundary
from simulators.stripe.world import Object, World

KIND = "subscription_schedule"

_LIVE = ("not_started", "active")


def next_step(world: World, schedule: Object) -> int | None:
    """When the schedule does something next; None for one that is over."""
    if schedule["status"] == "not_started":
        return int(schedule["phases"][0]["start_date"])
    return int(schedule["current_phase"]["end_date"]) if schedule["status"] == "active" else None


def step(world: World, schedule: Object) -> None:
    """Begin the next phase, or end the schedule after its last one."""
    now = world.now(schedule)
    if schedule["status"] == "not_started":
        _start(world, schedule)
        return
    ahead = [phase for phase in schedule["phases"] if phase["start_date"] >= schedule["current_phase"]["end_date"]]
    if ahead:
        with recorded(world, schedule, "subscription_schedule.updated"):
            _enter(world, schedule, ahead[0])
    elif schedule["end_behavior"] == "cancel":
        schedule.update(status="completed", completed_at=now, current_phase=None)
        renewals.end(world, _subscription(world, schedule))
        world.emit("subscription_schedule.completed", schedule)
    else:
        _subscription(world, schedule)["schedule"] = None
        schedule.update(status="released", released_at=now, current_phase=None)
        schedule.update(released_subscription=schedule["subscription"], subscription=None)
        world.emit("subscription_schedule.released", schedule)


@operation("POST", "/v1/subscription_schedules")
def create(world: World, params: Params) -> Object:
    """A schedule for a subscription that is there, or for one that it will start."""
    if "from_subscription" in params:
        return _adopted(world, params)
    for name in ("customer", "phases"):
        if name not in params:
            raise invalid(name, f"Missing required param: {name}.", "parameter_missing")
    customer = world.get("customer", params["customer"], "customer")
    now = world.now(customer)
    start = params.get("start_date", "now")
    mode = params.get("billing_mode") or {"type": "flexible"}
    schedule = world.new(KIND, "sub_sched", _fields(customer, params, mode), owner=customer)
    schedule["phases"] = _phases(world, params["phases"], now if start == "now" else start, now)
    world.emit("subscription_schedule.created", schedule)
    if schedule["phases"][0]["start_date"] <= now:
        _start(world, schedule)
    return schedule


@operation("GET", "/v1/subscription_schedules/{schedule}")
def retrieve(world: World, params: Params, schedule: str) -> Object:
    """One schedule."""
    return world.get(KIND, schedule, "schedule")


@operation("GET", "/v1/subscription_schedules")
def list_all(world: World, params: Params) -> list[Object]:
    """Schedules, by customer, or those that have not started."""
    found = matching(world.all(KIND), params, "customer")
    if "scheduled" in params:
        found = [schedule for schedule in found if (schedule["status"] == "not_started") == params["scheduled"]]
    return found


@operation("POST", "/v1/subscription_schedules/{schedule}")
def update(world: World, params: Params, schedule: str) -> Object:
    """Change a schedule's phases; a change of the running phase changes the subscription at once."""
    found = world.get(KIND, schedule, "schedule")
    _require_live(found, "update")
    now = world.now(found)
    with recorded(world, found, "subscription_schedule.updated"):
        if "end_behavior" in params:
            found["end_behavior"] = params["end_behavior"]
        merge_metadata(found, params)
        if "phases" in params:
            first = found["phases"][0]["start_date"]
            found["phases"] = _phases(world, params["phases"], first, now)
            if found["status"] == "active":
                behavior = params.get("proration_behavior", "create_prorations")
                _enter(world, found, _running(found, now), behavior)
    return found


@operation("POST", "/v1/subscription_schedules/{schedule}/release")
def release(world: World, params: Params, schedule: str) -> Object:
    """Leave the subscription as it is, and to itself."""
    found = world.get(KIND, schedule, "schedule")
    _require_live(found, "release")
    subscription = world.find(standing.KIND, found["subscription"])
    if subscription is not None:
        subscription["schedule"] = None
    found.update(status="released", released_at=world.now(found), current_phase=None)
    found.update(released_subscription=found["subscription"], subscription=None)
    world.emit("subscription_schedule.released", found)
    return found


@operation("POST", "/v1/subscription_schedules/{schedule}/cancel")
def cancel(world: World, params: Params, schedule: str) -> Object:
    """Cancel the schedule and its subscription, billing usage and crediting unused time unless told otherwise."""
    found = world.get(KIND, schedule, "schedule")
    _require_live(found, "cancel")
    if found["status"] == "active":
        how = {name: params.get(name, True) for name in ("invoice_now", "prorate")}
        subscriptions.cancel(world, how, found["subscription"])
    else:
        found.update(status="canceled", canceled_at=world.now(found))
        world.emit("subscription_schedule.canceled", found)
    return found


def _adopted(world: World, params: Params) -> Object:
    """A schedule whose one phase is what the subscription is now, until its period ends."""
    if params.keys() & {"phases", "customer", "start_date", "end_behavior"}:
        message = "You cannot pass other parameters with `from_subscription`; update the schedule afterwards."
        raise invalid("from_subscription", message)
    subscription = world.get(standing.KIND, params["from_subscription"], "from_subscription")
    subscriptions.require_live(subscription)
    if subscription["schedule"]:
        raise invalid("from_subscription", f"The subscription is already managed by {subscription['schedule']}.")
    customer = world.get("customer", subscription["customer"])
    period = items.period_of_subscription(subscription)
    entries = [
        {"price": item["price"]["id"], "quantity": item["quantity"], "metadata": item["metadata"]}
        for item in subscription["items"]["data"]
    ]
    phase: Object = {"items": entries, "start_date": period.start, "end_date": period.end}
    if subscription["status"] == "trialing":
        phase["trial_end"] = subscription["trial_end"]
    schedule = world.new(KIND, "sub_sched", _fields(customer, params, subscription["billing_mode"]), owner=customer)
    schedule["phases"] = _phases(world, [phase], period.start, period.start)
    schedule.update(status="active", subscription=subscription["id"])
    schedule["current_phase"] = {"start_date": period.start, "end_date": period.end}
    with recorded(world, subscription, renewals.UPDATED):
        subscription["schedule"] = schedule["id"]
    world.emit("subscription_schedule.created", schedule)
    return schedule


def _fields(customer: Object, params: Params, mode: Mapping[str, Any]) -> Object:
    settings = {
        "billing_cycle_anchor": "automatic",
        "collection_method": "charge_automatically",
        "invoice_settings": {"issuer": {"type": "self"}},
        **(params.get("default_settings") or {}),
    }
    return {
        "billing_mode": {"flexible": None, "updated_at": None, **mode},
        "canceled_at": None,
        "completed_at": None,
        "current_phase": None,
        "customer": customer["id"],
        "default_settings": settings,
        "end_behavior": params.get("end_behavior", "release"),
        "metadata": dict(params.get("metadata") or {}),
        "pause_schedules": [],
        "phases": [],
        "released_at": None,
        "released_subscription": None,
        "status": "not_started",
        "subscription": None,
        "test_clock": customer.get("test_clock"),
    }


def _phases(world: World, given: list[Mapping[str, Any]], start: int, now: int) -> list[Object]:
    """Phases without gaps: each starts where the one before it ends.

    Raises:
        StripeError: 400 for a phase without an end, or one that does not end after it starts.
    """
    made: list[Object] = []
    for index, phase in enumerate(given):
        begin = _moment(phase.get("start_date", start), now)
        if made and begin != made[-1]["end_date"]:
            raise invalid(f"phases[{index}][start_date]", "Phases must follow each other without a gap.")
        end = _end(phase, begin, now, f"phases[{index}]")
        if end <= begin:
            raise invalid(f"phases[{index}][end_date]", "A phase must end after it starts.")
        made.append(_phase(world, phase, begin, end))
        start = end
    return made


def _end(phase: Mapping[str, Any], begin: int, now: int, param: str) -> int:
    if "end_date" in phase:
        return _moment(phase["end_date"], now)
    if "duration" in phase:
        return boundary(begin, {"interval_count": 1, **phase["duration"]}, 1)
    raise invalid(f"{param}[end_date]", "A phase needs an `end_date` or a `duration`.", "parameter_missing")


def _phase(world: World, phase: Mapping[str, Any], begin: int, end: int) -> Object:
    entries = [_entry(world, entry) for entry in phase["items"]]
    return {
        "add_invoice_items": [],
        "currency": world.get("price", entries[0]["price"])["currency"],
        "discounts": [],
        "end_date": end,
        "items": entries,
        "metadata": dict(phase.get("metadata") or {}),
        "proration_behavior": phase.get("proration_behavior", "create_prorations"),
        "start_date": begin,
        "trial_end": phase.get("trial_end"),
    }


def _entry(world: World, entry: Mapping[str, Any]) -> Object:
    price = world.get("price", entry["price"], "phases[items][price]")
    quantity = None if usage.is_metered(price) else entry.get("quantity") or 1
    return {
        "discounts": [],
        "metadata": dict(entry.get("metadata") or {}),
        "plan": price["id"],
        "price": price["id"],
        "quantity": quantity,
        "tax_rates": [],
    }


def _moment(wanted: int | str, now: int) -> int:
    return now if wanted == "now" else int(wanted)


def _start(world: World, schedule: Object) -> None:
    """Make the subscription of the first phase."""
    phase = schedule["phases"][0]
    mode = {name: value for name, value in schedule["billing_mode"].items() if name == "type"}
    entries = [_params_of(entry) for entry in phase["items"]]
    subscription = subscriptions.start(
        world, {"customer": schedule["customer"], "items": entries, "billing_mode": mode}
    )
    with recorded(world, subscription, renewals.UPDATED):
        subscription["schedule"] = schedule["id"]
    with recorded(world, schedule, "subscription_schedule.updated"):
        schedule.update(status="active", subscription=subscription["id"])
        schedule["current_phase"] = {"start_date": phase["start_date"], "end_date": phase["end_date"]}


def _enter(world: World, schedule: Object, phase: Object, behavior: str | None = None) -> None:
    subscription = _subscription(world, schedule)
    schedule["current_phase"] = {"start_date": phase["start_date"], "end_date": phase["end_date"]}
    entries = _changes(subscription, phase)
    if entries:
        how = behavior or phase["proration_behavior"]
        subscription_changes.change(world, subscription, {"items": entries, "proration_behavior": how})
    if phase["metadata"]:
        subscription["metadata"].update(phase["metadata"])


def _changes(subscription: Object, phase: Object) -> list[Object]:
    """The entries that turn a subscription's items into those of a phase.

    An item whose price stays is kept; of the others, a metered one becomes metered and a licensed one licensed, so far
    as there are as many; the rest is added or removed.
    """
    wanted = list(phase["items"])
    left = list(subscription["items"]["data"])
    found = []
    for item in list(left):
        same = next((entry for entry in wanted if entry["price"] == item["price"]["id"]), None)
        if same is not None:
            left.remove(item)
            wanted.remove(same)
            if same["quantity"] != item["quantity"]:
                found.append({**_params_of(same), "id": item["id"]})
    for item in left:
        heir = next((entry for entry in wanted if (entry["quantity"] is None) == (item["quantity"] is None)), None)
        if heir is None:
            found.append({"id": item["id"], "deleted": True})
        else:
            wanted.remove(heir)
            found.append({**_params_of(heir), "id": item["id"]})
    return found + [_params_of(entry) for entry in wanted]


def _params_of(entry: Object) -> Object:
    quantity = {} if entry["quantity"] is None else {"quantity": entry["quantity"]}
    return {"price": entry["price"], "metadata": dict(entry["metadata"]), **quantity}


def _running(schedule: Object, now: int) -> Object:
    phases: list[Object] = schedule["phases"]
    running = [phase for phase in phases if phase["start_date"] <= now < phase["end_date"]]
    if not running:
        raise StripeError("The schedule has no phase that holds the present moment.", param="phases")
    return running[0]


def _subscription(world: World, schedule: Object) -> Object:
    return world.get(standing.KIND, schedule["subscription"])


def _require_live(schedule: Object, verb: str) -> None:
    if schedule["status"] not in _LIVE:
        message = f"You cannot {verb} a subscription schedule that is currently in the `{schedule['status']}` status."
        raise StripeError(message)
