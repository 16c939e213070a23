"""Forgets what Stripe would not know any more either, so that an account that lives for long stays small.

Idempotency keys and identifiers of meter events count for 24 hours, events can be retrieved for 30 days.
"""

from simulators.stripe.calls import KEYS
from simulators.stripe.deliveries import DELIVERY
from simulators.stripe.events import EVENT
from simulators.stripe.meter_events import IDENTIFIER
from simulators.stripe.v2 import THIN
from simulators.stripe.world import World

_DAY_S = 24 * 3600
_KEPT_S = {KEYS: _DAY_S, IDENTIFIER: _DAY_S, EVENT: 30 * _DAY_S, THIN: 30 * _DAY_S}


def forget(world: World) -> None:
    """Drop what the account has had for too long, and nothing that is still to be delivered.

    What counts is the account's time at which it came, `_made`: a test clock can stand still for years.
    """
    now = world.now()
    waiting = {delivery["event"] for delivery in world.all(DELIVERY)}
    for kind, kept_s in _KEPT_S.items():
        # In the order in which they came, so that this stops at the first that is kept.
        for found in world.all(kind):
            if found["_made"] + kept_s > now:
                break
            if found["id"] not in waiting:
                world.delete(kind, found["id"])
