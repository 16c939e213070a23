"""The queue of what customers are told: each is tried until it was taken, or for two days.

An attempt first moves the time of the next one, in a transaction of its own, so that of two
workers one tries, and one that is killed in between is followed by another. So a
recipient may be told twice, under the same id, and never not at all.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Row, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.alerts.calls import Caller
from app.alerts.endpoints import secret_of
from app.config import Settings
from app.db import Database
from app.errors import NotificationFailed
from app.tables import Notification, WebhookEndpoint
from app.telemetry import NOTIFICATIONS, get_logger

log = get_logger(__name__)

RETRY_AFTER = tuple(
    timedelta(seconds=seconds) for seconds in (5, 60, 300, 1_800, 7_200, 18_000, 36_000, 36_000, 86_400)
)
"""From one attempt to the next; after the last of them nobody tries any more."""

_BATCH = 50
_TAKE = text(
    "UPDATE notifications SET attempts = attempts + 1, due_at = :lease WHERE id IN ("
    "SELECT id FROM notifications WHERE state = 'pending' AND due_at <= :now ORDER BY due_at LIMIT :limit"
    " FOR UPDATE SKIP LOCKED) RETURNING id, org_id, channel, target, event, attempts"
)
_SENT = text("UPDATE notifications SET state = 'sent', sent_at = :now, last_error = NULL WHERE id = :id")
_FAILED = text("UPDATE notifications SET state = :state, due_at = :due_at, last_error = :error WHERE id = :id")
_LEASE = timedelta(minutes=2)

SendMail = Callable[[str, dict[str, Any]], Awaitable[None]]
"""Sends an event to an e-mail address; raises ``NotificationFailed``."""


@dataclass(frozen=True, slots=True)
class Messenger:
    """What tells: by mail and by webhook."""

    settings: Settings
    caller: Caller
    mail: SendMail


async def send_due(database: Database, messenger: Messenger, now: datetime) -> int:
    """Tries everything that is due; returns how many were taken."""
    num_sent = 0
    while True:
        async with database.begin() as connection:
            bind = {"now": now, "lease": now + _LEASE, "limit": _BATCH}
            rows = (await connection.execute(_TAKE, bind)).all()
        if not rows:
            return num_sent
        for row in rows:
            num_sent += await _attempt(database, messenger, row, now)


async def list_notifications(connection: AsyncConnection, org_id: UUID, limit: int = 20) -> list[Notification]:
    """The latest of an organisation, newest first."""
    columns = Notification.__table__.columns
    statement = select(*columns).where(Notification.org_id == org_id)
    rows = await connection.execute(statement.order_by(Notification.created_at.desc(), Notification.id).limit(limit))
    return [Notification(**row._mapping) for row in rows]


async def _attempt(database: Database, messenger: Messenger, row: Row[Any], now: datetime) -> bool:
    try:
        await _deliver(database, messenger, row, now)
    except NotificationFailed as error:
        is_last = row.attempts > len(RETRY_AFTER)
        due_at = now if is_last else now + RETRY_AFTER[row.attempts - 1]
        bind = {"state": "failed" if is_last else "pending", "due_at": due_at, "error": error.message, "id": row.id}
        outcome, statement = "failed" if is_last else "late", _FAILED
    else:
        bind, outcome, statement = {"now": now, "id": row.id}, "sent", _SENT
    async with database.begin() as connection:
        await connection.execute(statement, bind)
    NOTIFICATIONS.labels(row.channel, outcome).inc()
    log.info("notification.tried", id=str(row.id), channel=row.channel, outcome=outcome, attempts=row.attempts)
    return outcome == "sent"


async def _deliver(database: Database, messenger: Messenger, row: Row[Any], now: datetime) -> None:
    if row.channel == "mail":
        await messenger.mail(row.target, row.event)
        return
    async with database.begin() as connection:
        statement = select(WebhookEndpoint.url, WebhookEndpoint.secret_version)
        found = (await connection.execute(statement.where(WebhookEndpoint.id == UUID(row.target)))).one_or_none()
    if found is None:
        raise NotificationFailed("the address was removed")
    secret = secret_of(messenger.settings, UUID(row.target), found.secret_version)
    await messenger.caller.call(found.url, secret, row.id, row.event, now)
