"""The requests that a process works on, each in a task that only this module cancels.

A server that has drained for long enough cancels its own tasks, closes the pools and
ends the loop, which cancels once more. A request that is cut off has something left to
do that must not be cut off as well: close the engine's stream and write its usage row.
"""

import asyncio
from collections.abc import Coroutine


class RunningRequests:
    """Create it once per application; ``finish`` before anything that requests need is closed."""

    def __init__(self) -> None:
        # The loop itself holds only weak references to tasks.
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, work: Coroutine[None, None, None]) -> None:
        """Awaits ``work``; however often this is cancelled, ``work`` is cancelled once and then left to end."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            # The end of a loop cancels every task, this one's among them, by itself.
            if not task.cancelling():
                task.cancel()
            await asyncio.wait({task})
            raise

    async def finish(self) -> None:
        """Returns once every request has ended, however it ended."""
        while self._tasks:
            await asyncio.wait(self._tasks)
