"""Says when nothing was heard for so long, at the price of a clock reading for each time something was.

A timeout around every wait for the next of many things makes and cancels a timer each
time. Here one timer looks, when it is due, how long ago the last thing was heard, and is
set again for what is left.
"""

import asyncio
from collections.abc import Callable


class Silence:
    """A watch over a stream; ``close`` it.

    Args:
        after_s: Silence of at least so long is told, and again after as long again.
        tell: Called inside the event loop.
    """

    __slots__ = ("_after_s", "_heard_at", "_loop", "_tell", "_timer")

    def __init__(self, after_s: float, tell: Callable[[], None]) -> None:
        self._after_s = after_s
        self._tell = tell
        self._loop = asyncio.get_running_loop()
        self._heard_at = self._loop.time()
        self._timer = self._loop.call_later(after_s, self._look)

    def hear(self) -> None:
        """Something was heard just now."""
        self._heard_at = self._loop.time()

    def close(self) -> None:
        """Nothing is told any more."""
        self._timer.cancel()

    def _look(self) -> None:
        due_at = self._heard_at + self._after_s
        if self._loop.time() >= due_at:
            self._heard_at = self._loop.time()
            due_at = self._heard_at + self._after_s
            self._timer = self._loop.call_at(due_at, self._look)
            self._tell()
        else:
            self._timer = self._loop.call_at(due_at, self._look)
