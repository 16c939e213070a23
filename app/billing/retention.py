"""How long usage rows are kept: whole months are dropped, with the sums made of them.

Dropping a partition takes a moment, where deleting its rows would take hours. What is
gone is gone from every answer: sums do not outlive the rows they were made of.
"""

from datetime import UTC, date, datetime

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.migrate import PARTITION_PREFIX

# Writers queue up behind a drop that waits; it is tried again at the job's next turn.
_WAIT_FOR_WRITERS = text("SET LOCAL lock_timeout = '2s'")
_LOCK_ROLLUPS = text("SELECT pg_advisory_xact_lock(hashtext('usage_rollups'))")
_PARTITIONS = text(
    "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
    " WHERE i.inhparent = 'usage_events'::regclass ORDER BY c.relname"
)


async def drop_old_usage(connection: AsyncConnection, today: date, keep_months: int) -> list[str]:
    """Drops the months that ended more than ``keep_months`` whole months before this one.

    Args:
        connection: An open transaction; writers wait until it ends.
        today: In UTC.
        keep_months: Above 0; the running month is not counted.

    Returns:
        The names of the partitions that are gone.

    Raises:
        DBAPIError: The table was in use for two seconds.
    """
    first_kept = _months_before(today, keep_months)
    found = (await connection.execute(_PARTITIONS)).scalars().all()
    old = [name for name in found if name < _partition(first_kept)]
    if not old:
        return []
    await connection.execute(_LOCK_ROLLUPS)
    await connection.execute(_WAIT_FOR_WRITERS)
    end = {"end": datetime(first_kept.year, first_kept.month, 1, tzinfo=UTC)}
    for name in old:
        # A request that began in the last minute of a month is billed in the next.
        await connection.execute(
            text(
                "UPDATE rolled_hours SET is_current = false WHERE hour IN (SELECT date_trunc('hour', billed_at, 'UTC')"  # noqa: S608
                f" FROM {name} WHERE billed_at >= :end)"
            ),
            end,
        )
        await connection.execute(text(f"DROP TABLE {name}"))
    for table in ("usage_rollup_hour", "rolled_hours"):
        await connection.execute(text(f"DELETE FROM {table} WHERE hour < :end"), end)  # noqa: S608 - ours
    return old


def _months_before(today: date, months: int) -> date:
    count = today.year * 12 + today.month - 1 - months
    return date(count // 12, count % 12 + 1, 1)


def _partition(month: date) -> str:
    """As ``app.partitions`` names them; names sort as their months do."""
    return f"{PARTITION_PREFIX}{month.year:04d}m{month.month:02d}"
