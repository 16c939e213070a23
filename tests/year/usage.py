"""Usage of the year: rows as settlements write them, at the time that the year has."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import insert, text

from app.db import Database
from app.partitions import ensure_partitions
from app.tables import UsageEvent, new_id
from tests.year.oracle import Row

MODELS = (("shakespeare", "generation", 1), ("tang-poetry", "generation", 2), ("banking77", "classification", 1))
# As a settlement does it: what is used in a month, and off the credit where there is one.
_SPEND = text(
    "UPDATE org_budgets SET month = GREATEST(month, :month),"
    " cost_used = CASE WHEN month >= :month THEN cost_used ELSE 0 END"
    " + CASE WHEN month <= :month THEN CAST(:cost AS bigint) ELSE 0 END,"
    " tokens_used = CASE WHEN month >= :month THEN tokens_used ELSE 0 END"
    " + CASE WHEN month <= :month THEN CAST(:tokens AS bigint) ELSE 0 END,"
    " credit = credit - CAST(:cost AS bigint) WHERE org_id = :org_id RETURNING credit IS NOT NULL"
)


@dataclass(frozen=True, slots=True)
class Habit:
    """How much an organisation uses.

    Attributes:
        days: Of a month, on which it uses anything.
        tokens: Of an average row, input and output.
    """

    days: int
    tokens: int


def draw(habit: Habit, org_id: UUID, start: datetime, end: datetime, seed: str) -> Iterator[Row]:
    """What is used from ``start`` until before ``end``; the same for the same arguments.

    Each day that something is used has one or two moments of one to three rows.
    """
    day = start.replace(hour=0, minute=0, second=0, microsecond=0)
    while day < end:
        chance = random.Random(f"{seed} {day}")
        if chance.random() < habit.days / 30:
            for _ in range(chance.choice((1, 1, 2))):
                moment = day + timedelta(microseconds=chance.randrange(86_400_000_000))
                for at in (moment + timedelta(milliseconds=7 * number) for number in range(chance.randint(1, 3))):
                    row = one(chance, habit, org_id, at)
                    if start <= at < end:
                        yield row
        day += timedelta(days=1)


def one(chance: random.Random, habit: Habit, org_id: UUID, at: datetime) -> Row:
    """A row that is billed at ``at``."""
    _, kind, version = MODELS[chance.randrange(len(MODELS))]
    total = chance.randint(habit.tokens // 2, habit.tokens * 3 // 2)
    output = total // 4 if kind == "generation" else 0
    cached = chance.choice((0, 0, total // 8))
    return Row(new_id(), org_id, at, version, kind, total - output, cached, output, is_prepaid=False)


async def write(database: Database, rows: Sequence[Row], *, billed_at: datetime | None = None) -> None:
    """Writes rows as settlements do, those of prepaid organisations against their credit.

    Args:
        database: With the partitions of their months, or without.
        rows: In the order of time.
        billed_at: Of late ones, which count from when they are seen.
    """
    if not rows:
        return
    async with database.begin() as connection:
        await ensure_partitions(connection, (billed_at or min(row.counts_at for row in rows)).date())
        written = []
        for row in rows:
            at = billed_at or row.counts_at
            tokens = row.input_tokens + row.output_tokens
            spent = {"org_id": row.org_id, "month": at.date().replace(day=1), "cost": row.pico_usd, "tokens": tokens}
            is_prepaid = bool(await connection.scalar(_SPEND, spent))
            written.append(_values(row, at, is_prepaid=is_prepaid))
        await connection.execute(insert(UsageEvent), written)


async def read(database: Database, late: dict[UUID, datetime]) -> list[Row]:
    """Every usage row of the database.

    Args:
        database: Of the year.
        late: When late rows were first seen.
    """
    async with database.begin() as connection:
        found = await connection.exec_driver_sql(
            "SELECT id, org_id, billed_at, price_version, kind, input_tokens, cached_tokens, output_tokens, is_prepaid"
            " FROM usage_events"
        )
        return [
            Row(
                row.id,
                row.org_id,
                late.get(row.id, row.billed_at),
                row.price_version,
                row.kind,
                row.input_tokens,
                row.cached_tokens,
                row.output_tokens,
                row.is_prepaid,
            )
            for row in found
        ]


def _values(row: Row, billed_at: datetime, *, is_prepaid: bool) -> dict[str, Any]:
    model = next(name for name, kind, version in MODELS if (kind, version) == (row.kind, row.version))
    return {
        "id": row.id,
        "started_at": billed_at - timedelta(seconds=1),
        "billed_at": billed_at,
        "org_id": row.org_id,
        "key_id": row.org_id,
        "model": model,
        "model_digest": "0" * 64,
        "kind": row.kind,
        "input_tokens": row.input_tokens,
        "cached_tokens": row.cached_tokens,
        "output_tokens": row.output_tokens,
        "finish_reason": "stop",
        "price_version": row.version,
        "is_prepaid": is_prepaid,
    }
