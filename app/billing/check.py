"""One invariant of the books as a question to the database.

A check is a function that returns what it found wrong, in one line each; nothing wrong
is an empty list. Checks only read, and take as long as the ledger is large: this is
for a person or a nightly job, not for a request. What has to agree is compared in one
snapshot, by organisation and month or by day: a snapshot that stays open keeps every
version of the rows that each request changes, and slows admission down.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.billing.prices import PRICES
from app.db import Database

MAX_FINDINGS = 5
"""Shown of one check; the rest is counted."""
LIMIT = {"limit": MAX_FINDINGS + 1}
"""Bind of a statement that shows what is wrong."""


@dataclass(frozen=True, slots=True)
class Check:
    """One invariant: its name, what is promised, and the question."""

    name: str
    promise: str
    find: Callable[[Database], Awaitable[list[str]]]


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check says; ``problems`` is empty where the promise holds."""

    check: Check
    problems: Sequence[str]

    @property
    def is_kept(self) -> bool:
        """Whether the promise holds."""
        return not self.problems


async def examine(database: Database, checks: Sequence[Check]) -> list[Finding]:
    """Asks every check, one after the other."""
    return [Finding(check, await check.find(database)) for check in checks]


@asynccontextmanager
async def snapshot(database: Database) -> AsyncIterator[AsyncConnection]:
    """A transaction that sees one moment and changes nothing."""
    async with database.begin() as connection:
        await connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"))
        yield connection


def cost_of(row: Row[Any]) -> int:
    """What a row, or a sum of rows with one price, costs, in 10^-12 USD; nothing under a price that there is not."""
    price = PRICES.get((row.price_version, row.kind))
    if price is None:
        return 0
    return price.cost(int(row.input_tokens), int(row.cached_tokens), int(row.output_tokens))


async def read(database: Database, statement: TextClause, bind: Mapping[str, object] | None = None) -> Sequence[Any]:
    """The rows of one statement, in a snapshot of its own."""
    async with snapshot(database) as connection:
        return (await connection.execute(statement, bind)).all()
