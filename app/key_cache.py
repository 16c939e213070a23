"""Keys that were looked up a moment ago, kept in the memory of one process.

A change of a key is told on a channel of PostgreSQL by a trigger, whoever made it, and
forgets the key in every process. The channel is asked twice a second whether it still
works: an entry lives for ten seconds while it does, and for half a second while it does
not, so what was revoked is forgotten within a second in either case. What a key is
worth is not known here; admission asks the database again before any work.
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import asyncpg

from app.db import Database, open_connection
from app.errors import AppError
from app.telemetry import get_logger

log = get_logger(__name__)

CHANNEL = "tollgate_keys"
"""As in the trigger ``tell_key_changed``: a key's hash in hex, or nothing for all keys."""
MAX_AGE_S = 10.0
UNHEARD_AGE_S = 0.5
HEARTBEAT_S = 0.5
# A channel that answered less than this ago has lost no news older than that.
TRUST_S = 1.0

T = TypeVar("T")
Pause = Callable[[float], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Ticket:
    """Taken before a look-up, so that what changes meanwhile is not kept."""

    revision: int
    taken_at: float


class KeyCache(Generic[T]):
    """Values by a key's hash; belongs to one event loop.

    Args:
        max_keys: Entries at most; the oldest goes first.
        clock: Monotonic seconds.
    """

    def __init__(self, max_keys: int = 10_000, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_keys = max_keys
        self._clock = clock
        self._entries: dict[bytes, tuple[float, T]] = {}
        self._revision = 0
        self._heard_at = -math.inf

    @property
    def is_heard(self) -> bool:
        """Whether news of changes arrive."""
        return self._clock() - self._heard_at < TRUST_S

    def get(self, key_hash: bytes) -> T | None:
        """What is known of the key, if it is recent enough."""
        entry = self._entries.get(key_hash)
        if entry is None:
            return None
        looked_up_at, value = entry
        max_age_s = MAX_AGE_S if self.is_heard else UNHEARD_AGE_S
        if self._clock() - looked_up_at < max_age_s:
            return value
        del self._entries[key_hash]
        return None

    def ticket(self) -> Ticket:
        """To be taken before the key is looked up, and handed to ``put``."""
        return Ticket(self._revision, self._clock())

    def put(self, key_hash: bytes, value: T, ticket: Ticket) -> None:
        """Keeps ``value``, unless some key has changed since the ticket was taken."""
        if ticket.revision != self._revision:
            return
        self._entries.pop(key_hash, None)
        self._entries[key_hash] = (ticket.taken_at, value)
        if len(self._entries) > self._max_keys:
            del self._entries[next(iter(self._entries))]

    def forget(self, key_hash: bytes | None = None) -> None:
        """Drops one key, or all of them."""
        self._revision += 1
        if key_hash is None:
            self._entries.clear()
        else:
            self._entries.pop(key_hash, None)

    async def follow(self, database: Database, pause: Pause = asyncio.sleep) -> None:
        """Hears of changes until it is cancelled; connects again where the channel breaks.

        Args:
            database: One connection of it is held.
            pause: Waits so many seconds.
        """
        while True:
            try:
                await self._listen(database, pause)
            except (AppError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                log.warning("key_cache.channel_lost", error=type(error).__name__)
            self._heard_at = -math.inf
            await pause(HEARTBEAT_S)

    async def _listen(self, database: Database, pause: Pause) -> None:
        connection = await open_connection(database.engine)
        try:
            channel: Any = (await connection.get_raw_connection()).driver_connection
            await channel.add_listener(CHANNEL, self._take_news)
            # What changed before the channel was open was not told.
            self.forget()
            while True:
                asked_at = self._clock()
                await channel.execute("SELECT 1", timeout=TRUST_S)
                self._heard_at = asked_at
                await pause(HEARTBEAT_S)
        finally:
            # It listens: not to be lent to anybody else.
            await connection.invalidate()
            await connection.close()

    def _take_news(self, _connection: object, _pid: int, _channel: str, payload: str) -> None:
        self.forget(bytes.fromhex(payload) if payload else None)
