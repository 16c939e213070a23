"""Month partitions of ``usage_events``: they exist before anything is written to them."""

from collections.abc import Iterator
from datetime import UTC, date, datetime

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

MONTHS_AHEAD = 3


async def ensure_partitions(connection: AsyncConnection, today: date, months_ahead: int = MONTHS_AHEAD) -> list[str]:
    """Makes the partitions of ``usage_events`` for this month and those ahead.

    May run at any time and in several processes at once; the lock lasts as long as
    the transaction.

    Returns:
        The names of the partitions, existing ones included.
    """
    # A partition that is missing needs the whole table for a moment: not behind somebody's
    # long read, while all settlements wait behind this. There are months until the next try.
    await connection.execute(text("SET LOCAL lock_timeout = '2s'"))
    await connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('usage_events_partitions'))"))
    names = []
    for start, end in _months(today, months_ahead):
        name = f"usage_events_y{start.year:04d}m{start.month:02d}"
        # Names and bounds are made of integers; DDL takes no bound parameters.
        await connection.execute(
            text(
                f"CREATE TABLE IF NOT EXISTS {name} PARTITION OF usage_events"
                f" FOR VALUES FROM ('{_midnight(start)}') TO ('{_midnight(end)}')"
            )
        )
        names.append(name)
    return names


def _months(today: date, months_ahead: int) -> Iterator[tuple[date, date]]:
    first = today.year * 12 + today.month - 1
    for month in range(first, first + months_ahead + 1):
        yield date(month // 12, month % 12 + 1, 1), date((month + 1) // 12, (month + 1) % 12 + 1, 1)


def _midnight(day: date) -> str:
    return datetime(day.year, day.month, day.day, tzinfo=UTC).isoformat()
