"""What an account forgets."""

from simulators.stripe.retention import forget
from simulators.stripe.world import World

DAY = 24 * 3600


def test_old_keys_identifiers_and_events_are_forgotten() -> None:
    now = 1_000_000_000
    world = World(lambda: now)
    for kind, kept_days in (
        ("_idempotency_key", 1),
        ("_meter_event_identifier", 1),
        ("event", 30),
        ("v2.core.event", 30),
    ):
        for name, age in (("old", kept_days * DAY), ("young", kept_days * DAY - 1)):
            world.put({"id": name, "object": kind, "_made": now - age})
    world.put({"id": "wd", "object": "_delivery", "event": "none"})
    forget(world)
    kinds = ("_idempotency_key", "_meter_event_identifier", "event", "v2.core.event")
    assert [[found["id"] for found in world.all(kind)] for kind in kinds] == [["young"]] * 4


def test_event_that_is_still_to_be_delivered_stays() -> None:
    world = World(lambda: 1_000_000_000)
    world.put({"id": "evt", "object": "event", "_made": 0})
    world.put({"id": "wd", "object": "_delivery", "event": "evt"})
    forget(world)
    assert len(world.all("event")) == 1


def test_clock_that_stands_in_the_past_makes_nothing_old() -> None:
    world = World(lambda: 1_000_000_000)
    clock = world.new("test_helpers.test_clock", "clock", {"frozen_time": 5})
    world.emit("test_helpers.test_clock.created", clock)
    forget(world)
    assert [event["created"] for event in world.all("event")] == [5]
