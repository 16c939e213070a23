"""Slows down who tries too often, in each process by itself.

For what needs no key: the point is to make guessing useless, not to count exactly.
"""

import time
from collections import deque
from collections.abc import Callable


class Throttle:
    """At most ``limit`` attempts within ``window_s`` seconds for each name.

    Keeps at most ``max_names`` names; the one that tried longest ago is forgotten first.
    """

    def __init__(
        self,
        limit: int = 10,
        window_s: float = 900.0,
        max_names: int = 10_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit = limit
        self._window_s = window_s
        self._max_names = max_names
        self._clock = clock
        self._attempts: dict[str, deque[float]] = {}

    def allows(self, *names: str) -> bool:
        """Counts one attempt for each name; whether all were within their limit."""
        counted = [self._count(name) for name in names]  # each, even after a refusal
        return all(counted)

    def _count(self, name: str) -> bool:
        now = self._clock()
        # Taken out and put back: the dictionary stays ordered by last attempt.
        attempts = self._attempts.pop(name, deque(maxlen=self._limit))
        while attempts and attempts[0] <= now - self._window_s:
            attempts.popleft()
        is_allowed = len(attempts) < self._limit
        if is_allowed:
            attempts.append(now)
        self._attempts[name] = attempts
        if len(self._attempts) > self._max_names:
            del self._attempts[next(iter(self._attempts))]
        return is_allowed
