"""Thin events and their destinations: the `/v2/core` half that billing by meter needs.

A thin event tells that something happened to an object and is fetched for the rest. Meters send two: that events of
one meter were wrong, and that events named no meter. Stripe gathers errors over some minutes; here each wrong event is
reported at once, in a report of its own.
"""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from simulators.stripe.errors import invalid
from simulators.stripe.ids import new_id
from simulators.stripe.operations import Params, operation
from simulators.stripe.world import Object, World

THIN = "v2.core.event"
DESTINATION = "v2.core.event_destination"
ERROR_REPORT = "v1.billing.meter.error_report_triggered"
NO_METER = "v1.billing.meter.no_meter_found"

_WINDOW_S = 10
_DEFAULT_LIMIT = 20


def report(world: World, meter: Object | None, code: str, message: str, identifier: str, at: int) -> Object:
    """Announce that a meter event was accepted and will not be counted.

    Args:
        world: The account.
        meter: Whose event it was; None where its name belongs to no meter.
        code: Such as `meter_event_customer_not_found`.
        message: For a person.
        identifier: Of the event.
        at: Unix seconds at which it was looked at.
    """
    sample = {"error_message": message, "request": {"identifier": identifier}}
    data = {
        "developer_message_summary": f"There is 1 invalid event: {message}",
        "reason": {"error_count": 1, "error_types": [{"code": code, "error_count": 1, "sample_errors": [sample]}]},
        "validation_start": timestamp(at - at % _WINDOW_S),
        "validation_end": timestamp(at - at % _WINDOW_S + _WINDOW_S),
    }
    event: Object = {
        "id": new_id("evt_test", 32),
        "object": THIN,
        "type": ERROR_REPORT if meter is not None else NO_METER,
        "created": timestamp(at),
        "livemode": False,
        "context": None,
        "reason": None,
        "data": data,
        "_made": world.now(),
    }
    if meter is not None:
        related = {"id": meter["id"], "type": meter["object"], "url": f"/v1/billing/meters/{meter['id']}"}
        event["related_object"] = related
    world.announce(world.put(event))
    return event


def notification(event: Mapping[str, Any]) -> Object:
    """What is delivered of a thin event: all but its data."""
    return {name: value for name, value in event.items() if name != "data" and not name.startswith("_")}


def timestamp(moment: int) -> str:
    """A moment as `/v2` writes it."""
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def wants(destination: Mapping[str, Any], type: str) -> bool:
    """Whether a destination is enabled for this type of thin event."""
    names = destination["enabled_events"]
    return destination["status"] == "enabled" and ("*" in names or type in names)


@operation("GET", "/v2/core/events/{id}")
def retrieve_event(world: World, params: Params, id: str) -> Object:
    """A thin event with its data."""
    return world.get(THIN, id)


@operation("GET", "/v2/core/events")
def list_events(world: World, params: Params) -> Object:
    """The newest thin events, by their types and the object that they are about; one page only."""
    found = list(reversed(world.all(THIN)))
    if "types" in params:
        found = [event for event in found if event["type"] in params["types"]]
    if "object_id" in params:
        found = [event for event in found if event.get("related_object", {}).get("id") == params["object_id"]]
    return _page(found, params)


@operation("POST", "/v2/core/event_destinations")
def create_destination(world: World, params: Params) -> Object:
    """A webhook for thin events; its secret is told here only, and only if asked for by `include`."""
    if params["type"] != "webhook_endpoint" or params["event_payload"] != "thin":
        raise invalid("type", "The simulator knows destinations for thin events at webhook endpoints only.")
    url = params.get("webhook_endpoint", {}).get("url")
    if not url:
        raise invalid("webhook_endpoint", "Missing required param: webhook_endpoint.", "parameter_missing")
    now = world.now()
    made: Object = {
        "id": new_id("ed_test", 32),
        "object": DESTINATION,
        "created": timestamp(now),
        "updated": timestamp(now),
        "description": params.get("description", ""),
        "enabled_events": params["enabled_events"],
        "event_payload": "thin",
        "events_from": params.get("events_from", ["@self"]),
        "livemode": False,
        "metadata": params.get("metadata", {}),
        "name": params["name"],
        "status": "enabled",
        "type": "webhook_endpoint",
        "_url": url,
        "_secret": new_id("whsec", 32),
    }
    return _shown_destination(world.put(made), params)


@operation("GET", "/v2/core/event_destinations")
def list_destinations(world: World, params: Params) -> Object:
    """Every destination; one page only."""
    return _page([_shown_destination(found, params) for found in world.all(DESTINATION)], params)


@operation("GET", "/v2/core/event_destinations/{id}")
def retrieve_destination(world: World, params: Params, id: str) -> Object:
    """One destination."""
    return _shown_destination(world.get(DESTINATION, id), params)


@operation("DELETE", "/v2/core/event_destinations/{id}")
def delete_destination(world: World, params: Params, id: str) -> Object:
    """Remove it; what is under way to it is given up."""
    world.delete(DESTINATION, id)
    return {"id": id, "object": DESTINATION, "deleted": True}


def _shown_destination(found: Object, params: Params) -> Object:
    include = params.get("include", [])
    parts = {"signing_secret": found["_secret"], "url": found["_url"]}
    shown = {name: value for name, value in parts.items() if f"webhook_endpoint.{name}" in include}
    return {**found, "webhook_endpoint": shown or None}


def _page(found: Iterable[Object], params: Params) -> Object:
    return {
        "data": list(found)[: params.get("limit", _DEFAULT_LIMIT)],
        "next_page_url": None,
        "previous_page_url": None,
    }
