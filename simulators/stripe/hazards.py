"""What can go wrong between a caller and Stripe, as switches.

A hazard strikes a number of times, or at a rate, or both, and only calls whose path begins as it says. Rates are drawn
from a seed, so that a run can be repeated. What each one does is written where it strikes: in `calls`, `meters` and
`deliveries`.
"""

from dataclasses import dataclass, field
from random import Random
from typing import Any

from simulators.stripe.errors import invalid

NAMES = {
    "outage": "Every call fails: the connection is closed before anything is done.",
    "response_lost": "The call is carried out, then the connection is closed without an answer.",
    "error_500": "The call is not carried out; 500, and 500 again for the same idempotency key.",
    "error_500_after_commit": "The call is carried out, and answered 500, and 500 again for the same idempotency key.",
    "conflict_409": "The call is not carried out; 409, as if the idempotency key were in use.",
    "rate_limit_429": "The call is not carried out; 429.",
    "slow": "The call is held for some seconds before it is looked at, so that others overtake it.",
    "one_call_at_a_time": "A meter event is held for some seconds; another one for its customer and meter gets 429.",
    "duplicate_identifier": "A meter event is recorded, then refused as if its identifier had been seen before.",
    "identifier_forgotten": "A meter event is recorded although its identifier was seen before.",
    "meter_event_rejected": "A meter event is accepted, never counted, and reported by a thin event.",
    "summaries_lag": "Summaries leave out what arrived within the last so many seconds.",
    "webhook_duplicated": "An event is delivered twice.",
    "webhook_reordered": "Events that wait together are delivered in another order.",
    "webhook_delayed": "An event is delivered some seconds later, by the account's clock.",
    "webhook_dropped": "The first delivery of an event is lost and counts as failed; it is tried again later.",
}

LASTING_S = {"slow": 5.0, "one_call_at_a_time": 5.0, "summaries_lag": 900.0, "webhook_delayed": 60.0}
"""Those that take time, and how much unless told otherwise: enough to be seen by a person."""


@dataclass(slots=True)
class Hazard:
    """A switch that is on.

    Attributes:
        name: One of `NAMES`.
        times: Strikes left; None for as long as it is on.
        rate: Share of the chances at which it strikes, 0 to 1.
        path: Strikes only calls whose path begins so.
        seconds: How long, for those that take time.
        code: Which error, for those that have several.
        strikes: How often it has struck.
    """

    name: str
    times: int | None = None
    rate: float = 1.0
    seed: int = 0
    path: str = ""
    seconds: float = 0.0
    code: str | None = None
    strikes: int = 0
    random: Random = field(default_factory=Random, repr=False)

    def shown(self) -> dict[str, Any]:
        """Its settings and its count, as JSON."""
        names = ("name", "times", "rate", "seed", "path", "seconds", "code", "strikes")
        return {name: getattr(self, name) for name in names}


class Hazards:
    """The switches of an account."""

    def __init__(self) -> None:
        self._on: dict[str, Hazard] = {}

    def switch_on(self, name: str, **settings: Any) -> Hazard:  # noqa: ANN401 - the fields of a hazard
        """Switch a hazard on, or set it anew.

        Raises:
            StripeError: 400 for a name or a setting that there is not, or one that is out of its range.
        """
        if name not in NAMES:
            raise invalid("name", f"There is no hazard called {name}; there are {', '.join(NAMES)}")
        known = {"times", "rate", "seed", "path", "seconds", "code"}
        for setting in settings:
            if setting not in known:
                raise invalid(setting, f"A hazard has no {setting}; it has {', '.join(sorted(known))}")
        hazard = Hazard(name, **{"seconds": LASTING_S.get(name, 0.0), **settings})
        _check(hazard)
        hazard.random.seed(hazard.seed)
        self._on[name] = hazard
        return hazard

    def switch_off(self, name: str | None = None) -> None:
        """Switch one off, or all of them; nothing if it is off."""
        if name is None:
            self._on.clear()
        else:
            self._on.pop(name, None)

    def all(self) -> list[Hazard]:
        """Those that are on, and those that have spent their strikes."""
        return list(self._on.values())

    def strike(self, name: str, path: str = "") -> Hazard | None:
        """The hazard if it strikes here, which is then counted; None if it does not."""
        hazard = self._on.get(name)
        if hazard is None or not path.startswith(hazard.path) or hazard.times == 0:
            return None
        if hazard.rate < 1 and hazard.random.random() >= hazard.rate:
            return None
        hazard.strikes += 1
        if hazard.times is not None:
            hazard.times -= 1
        return hazard


def _check(hazard: Hazard) -> None:
    times: Any = hazard.times
    if times is not None and not (isinstance(times, int) and times >= 0):
        raise invalid("times", "A hazard strikes a whole number of times, or without end.")
    for name, most in (("rate", 1), ("seconds", 24 * 3600)):
        value = getattr(hazard, name)
        if not isinstance(value, int | float) or not 0 <= value <= most:
            raise invalid(name, f"The {name} of a hazard is a number from 0 to {most}.")
