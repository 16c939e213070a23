"""Where several tasks put things and one takes them out.

As ``asyncio.Queue`` with one taker and putters that never wait, in fewer calls: nothing
counts unfinished work, and nobody has to be woken but the one who takes.
"""

import asyncio
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Mailbox(Generic[T]):
    """A bounded queue of one event loop.

    Args:
        size: Whoever puts guarantees that no more are in it.
    """

    __slots__ = ("_items", "_size", "_taker")

    def __init__(self, size: int) -> None:
        self._items: deque[T] = deque()
        self._size = size
        self._taker: asyncio.Future[None] | None = None

    def __len__(self) -> int:
        """How many wait to be taken."""
        return len(self._items)

    def put(self, item: T) -> None:
        """Adds one behind the others."""
        assert len(self._items) < self._size
        self._items.append(item)
        if self._taker is not None and not self._taker.done():
            self._taker.set_result(None)

    async def take(self) -> T:
        """The oldest one, as soon as there is any; one task at a time."""
        while not self._items:
            self._taker = asyncio.get_running_loop().create_future()
            try:
                await self._taker
            finally:
                self._taker = None
        return self._items.popleft()
