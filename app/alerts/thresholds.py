"""What customers are told: the first time in a period that a share of a limit is used up.

The row of an alert and the notifications of it are one transaction, and the row is there
once: whatever is asked twice, or by two workers, is told once. Of several thresholds that
are passed between two looks only the highest is told. Of a limit that was changed, a threshold
is told again once more is used than they heard of: in a row of its own, or in place of
that of the same share.
"""

from contextlib import suppress
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import CursorResult, insert, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.alerts.levels import Level, read_levels
from app.db import Database
from app.errors import NotFound
from app.tables import Alert, Notification, WebhookEndpoint, new_id
from app.telemetry import get_logger

log = get_logger(__name__)

THRESHOLDS = (50, 80, 100)
"""Percent."""
ALERT_REACHED = "alert.reached"

_ORGS = text("SELECT org_id FROM org_budgets ORDER BY org_id")
# Who was told of as much of this period, as this share or a greater one, is not told again.
_PASS = text(
    'INSERT INTO alerts (org_id, measure, period_start, percent, used, "limit", reached_at)'
    " SELECT CAST(:org_id AS uuid), CAST(:measure AS text), CAST(:period_start AS timestamptz),"
    " CAST(:percent AS smallint), CAST(:used AS bigint), CAST(:limit AS bigint), CAST(:reached_at AS timestamptz)"
    " WHERE NOT EXISTS (SELECT 1 FROM alerts a WHERE a.org_id = :org_id AND a.measure = :measure"
    " AND a.period_start = :period_start AND a.percent >= :percent AND a.used >= :threshold)"
    " ON CONFLICT (org_id, measure, period_start, percent) DO UPDATE SET used = excluded.used,"
    ' "limit" = excluded."limit", reached_at = excluded.reached_at'
    # Another worker's, made meanwhile, is the same.
    ' WHERE alerts."limit" <> excluded."limit"'
)
_RECIPIENTS = text(
    "SELECT u.email FROM memberships m JOIN users u ON u.id = m.user_id"
    " WHERE m.org_id = :org_id AND m.role IN ('owner', 'admin', 'billing') ORDER BY u.email"
)


async def tell_due(database: Database, now: datetime) -> None:
    """Looks at every limit of every organisation; a transaction for each.

    Args:
        database: With the budgets.
        now: Of the alerts.
    """
    async with database.begin() as connection:
        org_ids = (await connection.execute(_ORGS)).scalars().all()
    for org_id in org_ids:
        # Gone meanwhile, or on a plan that is no more: no reason not to tell the others.
        with suppress(NotFound):
            async with database.begin() as connection:
                await tell(connection, org_id, now)


async def tell(connection: AsyncConnection, org_id: UUID, now: datetime) -> list[Alert]:
    """Writes down which thresholds the organisation has newly passed, and queues who is to be told.

    Returns:
        Those that are told.
    """
    told = []
    for level in await read_levels(connection, org_id, now):
        passed = [await _pass(connection, org_id, level, percent, now) for percent in _reached(level)]
        if passed and passed[-1] is not None:
            told.append(passed[-1])
            await _notify(connection, org_id, passed[-1], now)
    return told


async def list_alerts(connection: AsyncConnection, org_id: UUID, limit: int = 20) -> list[Alert]:
    """The latest of an organisation, newest first."""
    statement = select(*Alert.__table__.columns).where(Alert.org_id == org_id)
    rows = await connection.execute(statement.order_by(Alert.reached_at.desc(), Alert.percent.desc()).limit(limit))
    return [Alert(**row._mapping) for row in rows]


def _reached(level: Level) -> list[int]:
    return [percent for percent in THRESHOLDS if level.percent >= percent]


async def _pass(connection: AsyncConnection, org_id: UUID, level: Level, percent: int, now: datetime) -> Alert | None:
    """The alert, if it is new."""
    values: dict[str, Any] = {
        "org_id": org_id,
        "measure": level.measure,
        "period_start": level.period_start,
        "percent": percent,
        "used": level.used,
        "limit": level.limit,
        "reached_at": now,
    }
    # The least that is so many percent of the limit.
    threshold = -(level.limit * -percent // 100)
    result: CursorResult[None] = await connection.execute(_PASS, {**values, "threshold": threshold})
    return Alert(**values) if result.rowcount else None


async def _notify(connection: AsyncConnection, org_id: UUID, alert: Alert, now: datetime) -> None:
    event = {
        "type": ALERT_REACHED,
        "timestamp": now.isoformat(),
        "data": {
            "organization": str(org_id),
            "measure": alert.measure,
            "percent": alert.percent,
            # As text: JavaScript's numbers end at 2^53.
            "used": str(alert.used),
            "limit": str(alert.limit),
            "period_start": alert.period_start.isoformat(),
        },
    }
    mails = (await connection.execute(_RECIPIENTS, {"org_id": org_id})).scalars().all()
    found = select(WebhookEndpoint.id).where(WebhookEndpoint.org_id == org_id).order_by(WebhookEndpoint.id)
    endpoints = (await connection.execute(found)).scalars().all()
    targets = [("mail", mail) for mail in mails] + [("webhook", str(endpoint)) for endpoint in endpoints]
    rows = [
        {"id": new_id(), "org_id": org_id, "channel": channel, "target": target, "event": event, "due_at": now}
        for channel, target in targets
    ]
    if rows:
        await connection.execute(insert(Notification), rows)
    log.info("alert.reached", org_id=str(org_id), measure=alert.measure, percent=alert.percent, told=len(rows))
