"""Sums of usage events by the hour: a faster way to the same numbers, never the truth.

An hour is summed once nothing can be billed in it any more: a row carries the time its
transaction began, so the hour is over when every transaction that runs began after it.
What is written into an hour that is over, changed or deleted marks the hour through a
trigger, and readers go back to the rows until it is summed anew. ``hours_of`` is what
``app.billing.statement`` reads: sums where they hold, rows everywhere else, in one
snapshot.

Everything here may be deleted and is made again from the rows.
"""

from datetime import datetime, timedelta

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

HOUR = timedelta(hours=1)
CHUNK = timedelta(hours=24)
"""Summed in one transaction, where there is a backlog."""

# hashtext(…) as in the trigger ``mark_hour_changed``: a change below an hour and the
# summing of it wait for each other.
_LOCK = text("SELECT pg_advisory_xact_lock(hashtext('usage_rollups'))")
# A minute is for transactions that have begun and are not in the view yet.
_HORIZON = text(
    "SELECT date_trunc('hour', LEAST(now() - interval '1 minute', (SELECT min(xact_start) FROM pg_stat_activity"
    " WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid())), 'UTC')"
)
_CHANGED = text("SELECT min(hour) FROM rolled_hours WHERE NOT is_current AND hour < :horizon")
_NEXT = text(
    "SELECT COALESCE((SELECT max(hour) + interval '1 hour' FROM rolled_hours WHERE is_current),"
    " (SELECT date_trunc('hour', min(billed_at), 'UTC') FROM usage_events))"
)
_EXTENT = text("SELECT min(hour) AS first, max(hour) AS last FROM rolled_hours WHERE is_current")
_DELETE = text("DELETE FROM usage_rollup_hour WHERE hour >= :start AND hour < :end")
_COLUMNS = "org_id, hour, model, key_id, kind, price_version, requests, input_tokens, cached_tokens, output_tokens"
SUMS = (
    "SELECT org_id, date_trunc('hour', billed_at, 'UTC') AS hour, model, key_id, kind, price_version,"
    " count(*) AS requests, sum(input_tokens)::bigint AS input_tokens, sum(cached_tokens)::bigint AS cached_tokens,"
    " sum(output_tokens)::bigint AS output_tokens FROM usage_events WHERE billed_at >= :start AND billed_at < :end"
    " GROUP BY 1, 2, 3, 4, 5, 6"
)
"""The rows of ``usage_rollup_hour`` from ``start`` to ``end``, made from usage events."""
_INSERT = text(f"INSERT INTO usage_rollup_hour ({_COLUMNS}) {SUMS}")
_MARK = text(
    "INSERT INTO rolled_hours (hour, is_current) SELECT hour, true FROM generate_series(CAST(:start AS timestamptz),"
    " CAST(:end AS timestamptz) - interval '1 hour', interval '1 hour') AS hour"
    " ON CONFLICT (hour) DO UPDATE SET is_current = true"
)

HOURS_OF = """
whole AS MATERIALIZED (
    SELECT hour, date_trunc(:bucket, hour, 'UTC') AS start FROM rolled_hours
    WHERE is_current AND hour >= :start AND hour <= CAST(:end AS timestamptz) - interval '1 hour'
), gaps AS MATERIALIZED (
    SELECT gap_start, gap_end FROM (
        SELECT lag(hour + interval '1 hour', 1, CAST(:start AS timestamptz)) OVER (ORDER BY hour) AS gap_start,
            hour AS gap_end
        FROM whole
        UNION ALL
        SELECT COALESCE(max(hour) + interval '1 hour', CAST(:start AS timestamptz)), CAST(:end AS timestamptz)
        FROM whole
    ) AS edges WHERE gap_start < gap_end
), hours_of AS (
    SELECT whole.start, r.model, r.key_id, r.kind, r.price_version, r.requests, r.input_tokens,
        r.cached_tokens, r.output_tokens
    FROM usage_rollup_hour r JOIN whole USING (hour)
    WHERE r.org_id = :org_id AND r.hour >= :start AND r.hour < :end
    UNION ALL
    SELECT date_trunc(:bucket, u.billed_at, 'UTC'), u.model, u.key_id, u.kind, u.price_version, 1, u.input_tokens,
        u.cached_tokens, u.output_tokens
    FROM gaps g JOIN usage_events u
        ON u.org_id = :org_id AND u.billed_at >= g.gap_start AND u.billed_at < g.gap_end
)
"""
"""Common table expressions: ``hours_of`` has an organisation's usage from ``start`` to ``end``, each row once.

Binds ``org_id``, ``start``, ``end`` and ``bucket``. A row of it is a sum or a single event, with
the ``start`` of its bucket.
"""


async def roll_next(connection: AsyncConnection) -> bool:
    """Sums the next hours that are over and not summed, or one that has changed.

    Holds a lock until the transaction ends, against others that do the same and against
    changes of the past.

    Returns:
        Whether there may be more; call it again in another transaction.
    """
    await connection.execute(_LOCK)
    horizon: datetime = (await connection.execute(_HORIZON)).scalar_one()
    changed: datetime | None = (await connection.execute(_CHANGED, {"horizon": horizon})).scalar_one()
    if changed is not None:
        await _roll(connection, changed, changed + HOUR)
        return True
    start: datetime | None = (await connection.execute(_NEXT)).scalar_one()
    if start is None or start >= horizon:
        return False
    await _roll(connection, start, min(start + CHUNK, horizon))
    return True


async def rebuild_from(connection: AsyncConnection, start: datetime | None) -> datetime | None:
    """Sums a day of hours anew that were summed before, whatever is there.

    Args:
        connection: An open transaction.
        start: The first hour; None: the very first.

    Returns:
        Where to go on in another transaction; None: that was all.
    """
    await connection.execute(_LOCK)
    extent = (await connection.execute(_EXTENT)).one()
    if extent.first is None:
        return None
    first: datetime = extent.first
    begin = first if start is None else max(start, first)
    end: datetime = min(begin + CHUNK, extent.last + HOUR)
    if begin >= end:
        return None
    await _roll(connection, begin, end)
    return end


async def _roll(connection: AsyncConnection, start: datetime, end: datetime) -> None:
    bind = {"start": start, "end": end}
    for statement in (_DELETE, _INSERT, _MARK):
        await connection.execute(statement, bind)
