"""Delivers events to the endpoints that want them, signed, and again until they are taken.

A delivery is a row of its own for each event and endpoint, kept until an endpoint answered 2xx, or for three days. It
is due at a moment of the account's clock, so that moving that clock forward makes it due at once. They go out one after
another, oldest first; the order is not promised, as at Stripe, and a hazard changes it.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import httpx
import structlog
from stripe import WebhookSignature

from simulators.stripe import v2, webhook_endpoints
from simulators.stripe.answers import complete
from simulators.stripe.events import EVENT
from simulators.stripe.ids import new_id
from simulators.stripe.v2 import DESTINATION, THIN
from simulators.stripe.webhook_endpoints import ENDPOINT
from simulators.stripe.world import Object, World

log = structlog.get_logger()

DELIVERY = "_delivery"
_TIMEOUT_S = 10.0
_FIRST_RETRY_S = 5
_MAX_RETRY_S = 6 * 3600
_GIVEN_UP_AFTER_S = 3 * 24 * 3600


class Courier:
    """Carries the events of an account.

    Args:
        world: The account.
        client: Posts to the endpoints.
        save: Called after something was tried.
    """

    def __init__(self, world: World, client: httpx.AsyncClient, save: Callable[[], None]) -> None:
        self._world = world
        self._client = client
        self._save = save
        self._is_waiting = asyncio.Event()
        self._one_at_a_time = asyncio.Lock()

    def collect(self) -> None:
        """Make the deliveries of the events that were emitted since the last call."""
        for event in self._world.take_events():
            self.send_again(event)

    def send_again(self, event: Object) -> None:
        """Deliver an event to every endpoint that wants it, whether or not it was delivered before."""
        for kind, endpoint in self._endpoints(event):
            due = self._world.now()
            if hazard := self._world.hazards.strike("webhook_delayed"):
                due += round(hazard.seconds)
            copies = 2 if self._world.hazards.strike("webhook_duplicated") else 1
            for _ in range(copies):
                self._put(event, kind, endpoint, due)
        self._is_waiting.set()

    async def run(self, tick_s: float = 1.0) -> None:
        """Deliver what is due, until cancelled; looks at the clock every so often, and at once after `collect`."""
        while True:
            with contextlib.suppress(TimeoutError):
                # wait_for of Python 3.11 may lose the cancellation that ends this.
                async with asyncio.timeout(tick_s):
                    await self._is_waiting.wait()
            self._is_waiting.clear()
            try:
                await self.deliver()
            except Exception:
                log.exception("simulator.courier_failed")

    async def close(self) -> None:
        """Let go of the connections."""
        await self._client.aclose()

    async def deliver(self, *, is_everything_due: bool = False) -> tuple[int, int]:
        """Try what is due once.

        Args:
            is_everything_due: Try what waits for a later moment too.

        Returns:
            How many were taken, and how many were not.
        """
        async with self._one_at_a_time:
            tried = self._due(is_everything_due)
            taken = [await self._attempt(delivery) for delivery in tried]
        if tried:
            self._save()
        return sum(taken), len(taken) - sum(taken)

    def _due(self, is_everything_due: bool) -> list[Object]:
        now = self._world.now()
        due = [found for found in self._world.all(DELIVERY) if is_everything_due or found["due"] <= now]
        if len(due) > 1 and (hazard := self._world.hazards.strike("webhook_reordered")):
            hazard.random.shuffle(due)
        return due

    async def _attempt(self, delivery: Object) -> bool:
        event = self._world.find(delivery["kind"], delivery["event"])
        endpoint = self._world.find(delivery["endpoint_kind"], delivery["endpoint"])
        if event is None or endpoint is None or endpoint["status"] != "enabled":
            self._finish(delivery, event)
            return False
        if delivery["attempts"] == 0 and self._world.hazards.strike("webhook_dropped"):
            self._postpone(delivery, event, "dropped")
            return False
        problem = await self._post(endpoint, _body(event))
        if problem is None:
            self._finish(delivery, event)
            return True
        log.info("simulator.delivery_failed", event_id=event["id"], type=event["type"], problem=problem)
        self._postpone(delivery, event, problem)
        return False

    async def _post(self, endpoint: Object, body: str) -> str | None:
        """What went wrong; None if the endpoint took it."""
        url = endpoint["_url"] if endpoint["object"] == DESTINATION else endpoint["url"]
        # Signed by the real time: whoever verifies it knows no other.
        header = WebhookSignature.generate_signature_header(body, endpoint["_secret"], int(time.time()))
        headers = {"Content-Type": "application/json; charset=utf-8", "Stripe-Signature": header}
        try:
            answer = await self._client.post(url, content=body.encode(), headers=headers, timeout=_TIMEOUT_S)
        except httpx.HTTPError as error:
            return repr(error)
        return None if answer.is_success else str(answer.status_code)

    def _postpone(self, delivery: Object, event: Object, problem: str) -> None:
        delivery["attempts"] += 1
        delivery["problem"] = problem
        wait_s = min(_FIRST_RETRY_S * 3 ** (delivery["attempts"] - 1), _MAX_RETRY_S)
        delivery["due"] = self._world.now() + wait_s
        if delivery["due"] > delivery["made"] + _GIVEN_UP_AFTER_S:
            self._finish(delivery, event)

    def _finish(self, delivery: Object, event: Object | None) -> None:
        # It may be gone: a resend does not stop the one before it.
        if self._world.find(DELIVERY, delivery["id"]) is None:
            return
        self._world.delete(DELIVERY, delivery["id"])
        if event is not None and "pending_webhooks" in event:
            event["pending_webhooks"] -= 1

    def _put(self, event: Object, kind: str, endpoint: Object, due: int) -> None:
        self._world.put(
            {
                "id": new_id("wd"),
                "object": DELIVERY,
                "kind": event["object"],
                "event": event["id"],
                "endpoint_kind": kind,
                "endpoint": endpoint["id"],
                "attempts": 0,
                "problem": None,
                "made": self._world.now(),
                "due": due,
            }
        )
        if "pending_webhooks" in event:
            event["pending_webhooks"] += 1

    def _endpoints(self, event: Mapping[str, Any]) -> list[tuple[str, Object]]:
        endpoints = self._world.all(ENDPOINT)
        if event["object"] == EVENT:
            return [(ENDPOINT, found) for found in endpoints if webhook_endpoints.wants(found, event["type"])]
        given = [(ENDPOINT, found) for found in endpoints if found.get("_takes_thin")]
        destinations = self._world.all(DESTINATION)
        return given + [(DESTINATION, found) for found in destinations if v2.wants(found, event["type"])]


def _body(event: Object) -> str:
    if event["object"] == THIN:
        return json.dumps(v2.notification(event))
    shown = {name: value for name, value in event.items() if not name.startswith("_")}
    return json.dumps(complete(shown), indent=2)
