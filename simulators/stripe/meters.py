"""Meters, and what they have counted.

The events of a customer and meter are one row, `USAGE`, with those that counted in the order of their arrival; they
come in by `meter_events`.
"""

from collections.abc import Callable, Iterator, Mapping

from simulators.stripe.errors import invalid
from simulators.stripe.operations import Params, matching, operation
from simulators.stripe.world import Object, World

METER = "billing.meter"
USAGE = "_usage"
_SUMMARY = "billing.meter_event_summary"

_WINDOWS_S = {None: 60, "hour": 3600, "day": 24 * 3600}

_FORMULAS: Mapping[str, Callable[[list[int]], int]] = {
    "sum": sum,
    "count": len,
    "last": lambda values: values[-1] if values else 0,
}


def usage(world: World, meter: str, customer: str, start: int, end: int) -> int:
    """What a meter has counted so far for a customer, by its formula, for start <= timestamp < end.

    Args:
        world: The account.
        meter: Id of the meter.
        customer: Id of the customer.
        start: Unix seconds.
        end: Unix seconds.
    """
    counted = sorted(_counted(world, meter, customer), key=lambda event: int(event["timestamp"]))
    values = [int(event["value"]) for event in counted if start <= event["timestamp"] < end]
    return _FORMULAS[world.get(METER, meter)["default_aggregation"]["formula"]](values)


def named(world: World, event_name: str) -> Object | None:
    """The active meter that counts events of this name."""
    meters = world.all(METER)
    return next((meter for meter in meters if meter["event_name"] == event_name and meter["status"] == "active"), None)


@operation("POST", "/v1/billing/meters")
def create_meter(world: World, params: Params) -> Object:
    """A meter; no two active ones count events of the same name."""
    _require_free_name(world, params["event_name"])
    mapping = params.get("customer_mapping", {"event_payload_key": "stripe_customer_id", "type": "by_id"})
    now = world.now()
    made = world.new(
        METER,
        "mtr_test",
        {
            "created": now,
            "updated": now,
            "customer_mapping": mapping,
            "default_aggregation": params["default_aggregation"],
            "display_name": params["display_name"],
            "event_name": params["event_name"],
            "event_time_window": params.get("event_time_window"),
            "status": "active",
            "status_transitions": {"deactivated_at": None},
            "value_settings": params.get("value_settings", {"event_payload_key": "value"}),
        },
    )
    world.emit("billing.meter.created", made)
    return made


@operation("GET", "/v1/billing/meters")
def list_meters(world: World, params: Params) -> list[Object]:
    """Meters by status."""
    return matching(world.all(METER), params, "status")


@operation("GET", "/v1/billing/meters/{id}")
def retrieve_meter(world: World, params: Params, id: str) -> Object:
    """One meter."""
    return world.get(METER, id)


@operation("POST", "/v1/billing/meters/{id}")
def update_meter(world: World, params: Params, id: str) -> Object:
    """Rename a meter; the name of its events stays."""
    meter = world.get(METER, id)
    previous = {"display_name": meter["display_name"], "updated": meter["updated"]}
    if "display_name" in params:
        meter.update(display_name=params["display_name"], updated=world.now())
        world.emit("billing.meter.updated", meter, previous)
    return meter


@operation("POST", "/v1/billing/meters/{id}/deactivate")
def deactivate_meter(world: World, params: Params, id: str) -> Object:
    """Count nothing any more, and free the name."""
    meter = world.get(METER, id)
    if meter["status"] == "inactive":
        raise invalid("id", f"The meter {id} is already inactive.")
    now = world.now()
    meter.update(status="inactive", status_transitions={"deactivated_at": now}, updated=now)
    world.emit("billing.meter.deactivated", meter)
    return meter


@operation("POST", "/v1/billing/meters/{id}/reactivate")
def reactivate_meter(world: World, params: Params, id: str) -> Object:
    """Count again; what came meanwhile is lost."""
    meter = world.get(METER, id)
    if meter["status"] == "active":
        raise invalid("id", f"The meter {id} is already active.")
    _require_free_name(world, meter["event_name"])
    meter.update(status="active", status_transitions={"deactivated_at": None}, updated=world.now())
    world.emit("billing.meter.reactivated", meter)
    return meter


@operation("GET", "/v1/billing/meters/{id}/event_summaries")
def list_summaries(world: World, params: Params, id: str) -> list[Object]:
    """What was counted in the whole range, or in each hour or day of it (UTC), those without usage left out.

    The hazard `summaries_lag` leaves out what arrived within its last seconds.
    """
    meter = world.get(METER, id)
    customer = world.get("customer", params["customer"], "customer")
    start, end = params["start_time"], params["end_time"]
    window = params.get("value_grouping_window")
    _check_range(start, end, _WINDOWS_S[window])
    hazard = world.hazards.strike("summaries_lag")
    seen = world.now(customer) - (round(hazard.seconds) if hazard else 0)
    counted = [event for event in _counted(world, id, customer["id"]) if event["received"] <= seen]
    counted.sort(key=lambda event: int(event["timestamp"]))
    formula = _FORMULAS[meter["default_aggregation"]["formula"]]
    summaries = []
    for begin, close in _windows(start, end, _WINDOWS_S[window] if window else end - start):
        values = [int(event["value"]) for event in counted if begin <= event["timestamp"] < close]
        if values or window is None:
            summaries.append(_summary(meter, customer, begin, close, formula(values)))
    return summaries


def _summary(meter: Object, customer: Object, begin: int, close: int, value: int) -> Object:
    return {
        # Made from what it is about, so that it is the same in every answer and a cursor finds it.
        "id": f"mtrusg_test_{meter['id'][-8:]}{customer['id'][-8:]}_{begin}_{close}",
        "object": _SUMMARY,
        "aggregated_value": value,
        "start_time": begin,
        "end_time": close,
        "livemode": False,
        "meter": meter["id"],
    }


def _windows(start: int, end: int, step: int) -> Iterator[tuple[int, int]]:
    for begin in range(start, end, step):
        yield begin, begin + step


def _check_range(start: int, end: int, step: int) -> None:
    for name, moment in (("start_time", start), ("end_time", end)):
        if moment % step:
            raise invalid(name, f"Invalid {name}: must be aligned with boundaries of {step} seconds.")
    if end <= start:
        raise invalid("end_time", "Invalid end_time: must be after start_time.")


def _counted(world: World, meter: str, customer: str) -> list[Object]:
    row = world.find(USAGE, f"{meter}/{customer}")
    return [event for event in row["events"] if not event["is_cancelled"]] if row is not None else []


def _require_free_name(world: World, event_name: str) -> None:
    if named(world, event_name) is not None:
        raise invalid(
            "event_name",
            f"There is already an active meter for the event name {event_name}.",
            "resource_already_exists",
        )
