"""Everything the account holds, and what time it is there.

Objects are the JSON that Stripe would show, one dictionary each, by kind (`subscription`, `billing.meter`) and id.
A key that begins with an underscore is a note of our own: it is stored, and left out of answers and events. So is a
kind that begins with an underscore: a table of ours, never shown.

There is no transaction: a handler checks, then changes. There is no lock: handlers do not await, so that one runs
at a time on the event loop.
"""

import copy
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from simulators.stripe.errors import missing
from simulators.stripe.hazards import Hazards
from simulators.stripe.ids import new_id

Object = dict[str, Any]
Job = Callable[[], None]

API_VERSION = "2026-10-28.endive"
CLOCK = "test_helpers.test_clock"
_NO_REQUEST: Mapping[str, None] = {"id": None, "idempotency_key": None}


class World:
    """One account.

    Args:
        real_time: Unix seconds of the world outside.

    Attributes:
        offset_s: How far the account's time is ahead of the real one.
        base_url: Where the simulator is reached; links to its pages begin with it.
        hazards: What goes wrong at present.
        request: Id and idempotency key of the call that is being answered.
        present: Makes the copy of an object that an event holds.
    """

    def __init__(self, real_time: Callable[[], float] = time.time) -> None:
        self.real_time = real_time
        self.offset_s = 0
        self.objects: dict[str, dict[str, Object]] = {}
        self.base_url = "http://127.0.0.1"
        self.hazards = Hazards()
        self.request: Object = dict(_NO_REQUEST)
        self.present: Callable[[Object], Object] = self.snapshot
        self._instant: int | None = None
        self._undelivered: list[Object] = []
        self._jobs: list[Job] = []

    # Time.

    def now(self, owner: Object | None = None) -> int:
        """Unix seconds: of the owner's test clock, or the account's where it has none.

        Args:
            owner: A test clock, or an object that lies under one, by its `test_clock` or its `customer`.
        """
        clock = self.clock_of(owner)
        if clock is not None:
            return int(clock["frozen_time"])
        return self._instant if self._instant is not None else int(self.real_time()) + self.offset_s

    def clock_of(self, owner: Object | None) -> Object | None:
        """The test clock that an object lives under; None for the account's own time."""
        if owner is None:
            return None
        if owner["object"] == CLOCK:
            return owner
        if owner.get("test_clock"):
            return self.objects.get(CLOCK, {}).get(owner["test_clock"])
        customer = owner.get("customer")
        return self.clock_of(self.objects.get("customer", {}).get(customer)) if customer else None

    @contextmanager
    def standing_at(self, clock: Object | None, moment: int) -> Iterator[None]:
        """Let it be `moment` under this test clock, or in the account; a test clock stays there afterwards."""
        if clock is not None:
            clock["frozen_time"] = moment
            yield
            return
        before, self._instant = self._instant, moment
        try:
            yield
        finally:
            self._instant = before

    @contextmanager
    def answering(self, request_id: str, idempotency_key: str | None) -> Iterator[None]:
        """Name the request that the events emitted meanwhile are due to."""
        self.request = {"id": request_id, "idempotency_key": idempotency_key}
        try:
            yield
        finally:
            self.request = dict(_NO_REQUEST)

    # Objects.

    def new(self, kind: str, prefix: str, fields: Mapping[str, Any], *, owner: Object | None = None) -> Object:
        """Make and store an object; `id`, `object`, `created` and `livemode` are set unless `fields` has them.

        Args:
            kind: Stripe's name of the type, which becomes `object`.
            prefix: Of the id, without underscore.
            fields: The rest of the object; kept as it is, not copied.
            owner: Whose test clock tells `created`; without it, the object's own customer or clock does.
        """
        made: Object = {"id": new_id(prefix), "object": kind, "livemode": False, **fields}
        made.setdefault("created", self.now(owner if owner is not None else made))
        return self.put(made)

    def put(self, object: Object) -> Object:
        """Store an object that was made elsewhere, under its own kind and id."""
        self.objects.setdefault(object["object"], {})[object["id"]] = object
        return object

    def get(self, kind: str, id: str, param: str = "id") -> Object:
        """The stored object itself: to change it is to change the account.

        Raises:
            StripeError: 404 resource_missing, blaming `param`.
        """
        found = self.objects.get(kind, {}).get(id)
        if found is None:
            raise missing(kind, id, param)
        return found

    def find(self, kind: str, id: str | None) -> Object | None:
        """The stored object, or None."""
        return self.objects.get(kind, {}).get(id) if id is not None else None

    def all(self, kind: str) -> list[Object]:
        """Every object of a kind, oldest first."""
        return list(self.objects.get(kind, {}).values())

    def delete(self, kind: str, id: str) -> None:
        """Forget an object.

        Raises:
            StripeError: 404 resource_missing.
        """
        self.get(kind, id)
        del self.objects[kind][id]

    # What follows from a change.

    def emit(self, type: str, object: Object, previous: Mapping[str, Any] | None = None) -> None:
        """Record an event about an object as it is now; it is delivered after the answer.

        Args:
            type: Such as `customer.subscription.updated`.
            object: Copied at this moment.
            previous: For `*.updated`: the former values of the fields that changed.
        """
        data: Object = {"object": self.present(object)}
        if previous is not None:
            data["previous_attributes"] = copy.deepcopy(dict(previous))
        event = {
            "api_version": API_VERSION,
            "created": self.now(object),
            "data": data,
            "pending_webhooks": 0,
            "request": dict(self.request),
            "type": type,
            "_made": self.now(),
        }
        self.announce(self.new("event", "evt", event))

    def announce(self, event: Object) -> None:
        """Have an event that is stored delivered after the answer."""
        self._undelivered.append(event)

    def snapshot(self, object: Object) -> Object:
        """A deep copy without our own notes."""
        copied: Object = _public(object)
        return copied

    @property
    def has_events(self) -> bool:
        """Whether there are events that nobody has taken."""
        return bool(self._undelivered)

    def take_events(self) -> list[Object]:
        """The events since the last call, oldest first; each is handed out once."""
        taken, self._undelivered = self._undelivered, []
        return taken

    def defer(self, job: Job) -> None:
        """Do this once the answer to the present request is made, before any other request is looked at."""
        self._jobs.append(job)

    def take_jobs(self) -> list[Job]:
        """The deferred jobs since the last call; each is handed out once."""
        taken, self._jobs = self._jobs, []
        return taken


def _public(value: Any) -> Any:  # noqa: ANN401 - any JSON
    if isinstance(value, dict):
        return {name: _public(inner) for name, inner in value.items() if not str(name).startswith("_")}
    if isinstance(value, list):
        return [_public(inner) for inner in value]
    return value
