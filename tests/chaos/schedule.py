"""What is killed when: drawn from a seed, so that a schedule can be had again."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

Victim = Literal[
    "api",
    "every api",
    "engine",
    "worker",
    "postgres",
    "postgres, every api",
    "everything",
    "api stopped",
    "engine stopped",
    "postgres stopped",
]
SHARES: dict[Victim, int] = {
    "api": 16,
    "every api": 12,
    "engine": 14,
    "worker": 6,
    "postgres": 14,
    "postgres, every api": 10,
    "everything": 10,
    "api stopped": 5,
    "engine stopped": 5,
    "postgres stopped": 8,
}
"""Out of a hundred. ``everything`` is the supervisor, whose children end with it."""
BREAKS_CONNECTIONS: frozenset[Victim] = frozenset({"api", "every api", "postgres, every api", "everything"})
"""Callers may lose their connections; with every other victim no connection breaks."""


@dataclass(frozen=True, slots=True)
class Strike:
    """One kill, or one stop.

    Attributes:
        after_s: Load runs so long before.
        stopped_s: SIGSTOP for so long; 0: SIGKILL.
        between_s: From the first to the second, where the victims are two.
        then_s: Load goes on so long afterwards.
        pick: Which of several equal processes, in [0, 1).
    """

    victim: Victim
    after_s: float
    stopped_s: float
    between_s: float
    then_s: float
    pick: float

    @property
    def victims(self) -> list[str]:
        """One after the other."""
        return self.victim.split(", ")

    def __str__(self) -> str:
        what = f" for {self.stopped_s:.1f} s" if self.stopped_s else ""
        return f"{self.victim}{what} after {self.after_s:.2f} s of load, which goes on for {self.then_s:.1f} s"


def strikes(seed: int, num: int, victims: Sequence[Victim] = tuple(SHARES)) -> Iterator[Strike]:
    """``num`` strikes; every victim comes once before any is drawn, as far as ``num`` goes."""
    rng = random.Random(seed)
    first = rng.sample(victims, min(num, len(victims)))
    for victim in first + rng.choices(victims, [SHARES[victim] for victim in victims], k=num - len(first)):
        yield Strike(
            victim,
            after_s=rng.uniform(0.3, 2.5),
            stopped_s=rng.uniform(0.5, 4.0) if victim.endswith("stopped") else 0.0,
            between_s=rng.uniform(0.0, 0.8),
            then_s=rng.uniform(0.2, 1.5),
            pick=rng.random(),
        )
