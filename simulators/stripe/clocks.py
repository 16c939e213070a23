"""Test clocks: what a customer made under one lives in a time of its own, which moves when it is told to.

Advancing answers at once with `advancing`; the work is done before the next call is looked at, so that whoever asks
again finds the clock `ready`.
"""

import structlog

from simulators.stripe import lifecycle, standing
from simulators.stripe.errors import StripeError, invalid
from simulators.stripe.operations import Params, operation
from simulators.stripe.periods import add_months, boundary
from simulators.stripe.world import CLOCK, Object, World

log = structlog.get_logger()

_KEPT_S = 30 * 24 * 3600


@operation("POST", "/v1/test_helpers/test_clocks")
def create(world: World, params: Params) -> Object:
    """A clock that stands at `frozen_time`."""
    made = world.new(
        CLOCK,
        "clock",
        {
            "created": world.now(),
            "deletes_after": world.now() + _KEPT_S,
            "frozen_time": params["frozen_time"],
            "name": params.get("name"),
            "status": "ready",
            "status_details": {"advancing": None},
        },
    )
    world.emit("test_helpers.test_clock.created", made)
    return made


@operation("GET", "/v1/test_helpers/test_clocks")
def list_clocks(world: World, params: Params) -> list[Object]:
    """Every clock."""
    return world.all(CLOCK)


@operation("GET", "/v1/test_helpers/test_clocks/{test_clock}")
def retrieve(world: World, params: Params, test_clock: str) -> Object:
    """One clock."""
    return world.get(CLOCK, test_clock, "test_clock")


@operation("POST", "/v1/test_helpers/test_clocks/{test_clock}/advance")
def advance(world: World, params: Params, test_clock: str) -> Object:
    """Move a clock forward, and let everything happen that is due on the way.

    Raises:
        StripeError: 400 for a time that is not ahead, or too far; 429 while it is advancing already.
    """
    clock = retrieve(world, params, test_clock)
    until = params["frozen_time"]
    if clock["status"] == "advancing":
        raise StripeError("The test clock is already advancing.", status=429, code="lock_timeout")
    if until <= clock["frozen_time"]:
        raise invalid("frozen_time", "The clock can only be advanced to a time after its present frozen time.")
    if until > _furthest(world, clock):
        raise invalid("frozen_time", "The clock can be advanced by two intervals of its shortest subscription at most.")
    clock.update(status="advancing", status_details={"advancing": {"target_frozen_time": until}})
    world.emit("test_helpers.test_clock.advancing", clock)
    world.defer(lambda: _advance(world, clock, until))
    return clock


@operation("DELETE", "/v1/test_helpers/test_clocks/{test_clock}")
def delete(world: World, params: Params, test_clock: str) -> Object:
    """Remove a clock with its customers and all that is theirs."""
    clock = retrieve(world, params, test_clock)
    mine = [found["id"] for found in world.all("customer") if found.get("test_clock") == test_clock]
    for kind in list(world.objects):
        for found in world.all(kind):
            if found.get("customer") in mine or (kind == "customer" and found["id"] in mine):
                world.delete(kind, found["id"])
    world.emit("test_helpers.test_clock.deleted", clock)
    world.delete(CLOCK, test_clock)
    return {"id": test_clock, "object": CLOCK, "deleted": True}


def _furthest(world: World, clock: Object) -> int:
    """Where a clock may go at once: two intervals of its shortest subscription, or two years without one."""
    now = int(clock["frozen_time"])
    prices = [
        item["price"]
        for subscription in world.all(standing.KIND)
        if world.clock_of(subscription) is clock and subscription["status"] not in standing.ENDED
        for item in subscription["items"]["data"]
    ]
    return min((boundary(now, price["recurring"], 2) for price in prices), default=add_months(now, 24))


def _advance(world: World, clock: Object, until: int) -> None:
    try:
        lifecycle.advance(world, clock, until)
    except Exception:
        log.exception("simulator.clock_failed", clock=clock["id"])
        clock.update(status="internal_failure", status_details={"advancing": None})
        world.emit("test_helpers.test_clock.internal_failure", clock)
        return
    clock.update(frozen_time=until, status="ready", status_details={"advancing": None})
    world.emit("test_helpers.test_clock.ready", clock)
