"""An account at work: its objects, its courier, its clock, and the file that keeps it."""

import asyncio
from pathlib import Path

import httpx
import structlog

from simulators.stripe import lifecycle, state
from simulators.stripe.answers import complete
from simulators.stripe.deliveries import Courier
from simulators.stripe.expansion import expanded
from simulators.stripe.retention import forget
from simulators.stripe.webhook_endpoints import ENDPOINT
from simulators.stripe.world import World

log = structlog.get_logger()


class Account:
    """What the routes of the application share.

    Args:
        world: The account's objects.
        client: Posts events to endpoints.
        state_file: Where the account is kept; None keeps it in memory only.
    """

    def __init__(self, world: World, client: httpx.AsyncClient, state_file: Path | None = None) -> None:
        self.world = world
        self.courier = Courier(world, client, self.save)
        self._state_file = state_file
        # An event holds its object as an answer would, so that a mismatch shows where the event is made.
        world.present = lambda object: complete(expanded(world, object))

    def settle(self) -> None:
        """Do what the last call deferred, hand its events over, and keep what it changed."""
        for job in self.world.take_jobs():
            job()
        self.courier.collect()
        self.save()

    def save(self) -> None:
        """Keep the account as it is now."""
        if self._state_file is not None:
            state.save(self.world, self._state_file)

    def reset(self) -> None:
        """Forget everything but the endpoint that the simulator was started with; no hazard is on."""
        given = [found for found in self.world.all(ENDPOINT) if found.get("_is_given")]
        self.world.take_jobs()
        self.world.take_events()
        self.world.objects.clear()
        self.world.offset_s = 0
        self.world.hazards.switch_off()
        for endpoint in given:
            self.world.put(endpoint)

    def forward(self, seconds: int) -> None:
        """Move the account's clock forward; what is due on the way happens, each thing at its time."""
        lifecycle.advance(self.world, None, self.world.now() + seconds)
        self.world.offset_s += seconds
        forget(self.world)
        self.settle()

    async def run(self, tick_s: float = 1.0) -> None:
        """Let happen what falls due by the account's own clock, until cancelled."""
        while True:
            await asyncio.sleep(tick_s)
            try:
                lifecycle.advance(self.world, None, self.world.now())
                forget(self.world)
            except Exception:
                log.exception("simulator.lifecycle_failed")
            # Most ticks bring nothing, and writing the file for nothing wears the disk.
            if self.world.has_events:
                self.settle()
