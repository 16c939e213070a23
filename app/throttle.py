"""Slows down who tries too often, whichever process they reach and whether it was started again or not.

A row for each name says when all that was tried is forgotten (a leaky bucket, as in the
generic cell rate algorithm of ITU-T I.371). Its table is not written ahead: the counts of a
crash of PostgreSQL are lost, and attempts cost no flush to disk. Names are people's addresses,
so they are remembered as hashes.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

# Nothing is counted of an attempt that is refused.
_TAKE = text(
    "INSERT INTO throttled AS t (name_hash, free_at)"
    " VALUES (:name_hash, CAST(:now AS timestamptz) + CAST(:step AS interval))"
    " ON CONFLICT (name_hash) DO UPDATE SET free_at = GREATEST(t.free_at, :now) + :step"
    " WHERE GREATEST(t.free_at, :now) <= CAST(:latest AS timestamptz)"
)
_GIVE_BACK = text("UPDATE throttled SET free_at = free_at - CAST(:step AS interval) WHERE name_hash = :name_hash")
_SWEEP = text("DELETE FROM throttled WHERE free_at <= :now")


@dataclass(frozen=True, slots=True)
class Limit:
    """At most ``num`` attempts at once, and as many again spread over each ``window``."""

    num: int
    window: timedelta

    @property
    def step(self) -> timedelta:
        """After how long one more attempt is allowed."""
        return self.window / self.num


@dataclass(frozen=True, slots=True)
class Attempt:
    """One more of what a limit counts under a name."""

    name: str
    limit: Limit

    @property
    def name_hash(self) -> bytes:
        """What is remembered of the name."""
        return hashlib.sha256(self.name.encode("utf-8", "surrogatepass")).digest()


async def take(connection: AsyncConnection, attempts: Sequence[Attempt], now: datetime) -> bool:
    """Counts attempts one after the other until one is over its limit; whether none was.

    Args:
        connection: A transaction that commits whatever the answer is, soon: it locks the names.
        attempts: In an order that is the same for everybody, or two may wait for each other. Who
            is stopped by an earlier one does not use up a later one.
        now: Aware.
    """
    for attempt in attempts:
        step = attempt.limit.step
        latest = now + (attempt.limit.num - 1) * step
        bind = {"name_hash": attempt.name_hash, "now": now, "step": step, "latest": latest}
        if not (await connection.execute(_TAKE, bind)).rowcount:
            return False
    return True


async def give_back(connection: AsyncConnection, attempts: Sequence[Attempt]) -> None:
    """Counts attempts that were taken as if they had not been made."""
    for attempt in attempts:
        await connection.execute(_GIVE_BACK, {"name_hash": attempt.name_hash, "step": attempt.limit.step})


async def sweep(connection: AsyncConnection, now: datetime) -> int:
    """Forgets names of which nothing counts any more; returns how many."""
    return (await connection.execute(_SWEEP, {"now": now})).rowcount
