"""Snapshot events, as the API lists them. They are made by `World.emit` and delivered by `deliveries`."""

from simulators.stripe.operations import Params, matching, operation
from simulators.stripe.world import Object, World

EVENT = "event"


@operation("GET", "/v1/events")
def list_events(world: World, params: Params) -> list[Object]:
    """Events by type; `delivery_success=false` leaves those that some endpoint still waits for."""
    found = matching(world.all(EVENT), params, "type")
    if "types" in params:
        found = [event for event in found if event["type"] in params["types"]]
    if "delivery_success" in params:
        found = [event for event in found if (event["pending_webhooks"] == 0) == params["delivery_success"]]
    return found


@operation("GET", "/v1/events/{id}")
def retrieve(world: World, params: Params, id: str) -> Object:
    """One event, with the object as it was then."""
    return world.get(EVENT, id)
