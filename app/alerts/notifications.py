"""The queue of what customers are told: each is tried until it was taken, or for two days.

An attempt first moves the time of the next one, in a transaction of its own, so that of two
workers one tries, and one that is killed in between is followed by another. So a
recipient may be told twice, under the same id, and never not at all.

Several are tried at once, mails beside webhooks, so that nobody waits long for those who
do not answer.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from time import monotonic
from typing import Any
from uuid import UUID

from sqlalchemy import CursorResult, Row, insert, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.alerts.calls import Caller
from app.alerts.endpoints import require_endpoint, secrets_of
from app.config import Settings
from app.db import Database
from app.errors import NotificationFailed
from app.tables import CHANNELS, Notification, WebhookEndpoint, new_id
from app.telemetry import NOTIFICATIONS, get_logger

log = get_logger(__name__)

RETRY_AFTER = tuple(
    timedelta(seconds=seconds) for seconds in (5, 60, 300, 1_800, 7_200, 18_000, 36_000, 36_000, 86_400)
)
"""From one attempt to the next; after the last of them nobody tries any more."""

TEST_EVENT = "webhook.test"
KEPT_FOR = timedelta(days=90)
"""What is over is shown for so long; it names people."""

_AT_ONCE = 20
"""Of each channel."""
_TURN_S = 30.0
"""After so long nothing more is begun: a call is signed with the time at which the turn began."""
_TAKE = text(
    "UPDATE notifications SET attempts = attempts + 1, due_at = :lease WHERE id IN ("
    "SELECT id FROM notifications WHERE state = 'pending' AND channel = :channel AND due_at <= :now"
    " ORDER BY due_at LIMIT :limit FOR UPDATE SKIP LOCKED) RETURNING id, org_id, channel, target, event, attempts"
)
_SENT = text("UPDATE notifications SET state = 'sent', sent_at = :now, last_error = NULL WHERE id = :id")
_FAILED = text("UPDATE notifications SET state = :state, due_at = :due_at, last_error = :error WHERE id = :id")
_DELETE_OLD = text("DELETE FROM notifications WHERE state <> 'pending' AND created_at <= :before")
_FORGET_TEST = text(
    "DELETE FROM notifications WHERE org_id = :org_id AND target = :target AND state = 'pending'"
    " AND event ->> 'type' = :type"
)
# Longer than a turn and the slowest exchange with a mail server.
_LEASE = timedelta(minutes=5)

SendMail = Callable[[str, dict[str, Any]], Awaitable[None]]
"""Sends an event to an e-mail address; raises ``NotificationFailed``."""


@dataclass(frozen=True, slots=True)
class Messenger:
    """What tells: by mail and by webhook."""

    settings: Settings
    caller: Caller
    mail: SendMail


async def queue_test(connection: AsyncConnection, org_id: UUID, endpoint_id: UUID, now: datetime) -> None:
    """Has an address called with an event that means nothing, in place of one that is still on its way.

    Raises:
        NotFound: The organisation has no such address.
    """
    await require_endpoint(connection, org_id, endpoint_id)
    bind = {"org_id": org_id, "target": str(endpoint_id), "type": TEST_EVENT}
    await connection.execute(_FORGET_TEST, bind)
    event = {"type": TEST_EVENT, "timestamp": now.isoformat(), "data": {"organization": str(org_id)}}
    values = {"id": new_id(), "org_id": org_id, "channel": "webhook", "target": str(endpoint_id)}
    await connection.execute(insert(Notification).values(**values, event=event, due_at=now))


async def send_due(database: Database, messenger: Messenger, now: datetime) -> int:
    """Tries what is due until nothing is left or half a minute is over; returns how many were taken."""
    return sum(await _all(_work_off(database, messenger, channel, now) for channel in CHANNELS))


async def delete_old(connection: AsyncConnection, now: datetime) -> int:
    """Removes what was sent or given up long ago; returns how many."""
    result: CursorResult[None] = await connection.execute(_DELETE_OLD, {"before": now - KEPT_FOR})
    return result.rowcount


async def list_notifications(connection: AsyncConnection, org_id: UUID, limit: int = 20) -> list[Notification]:
    """The latest of an organisation, newest first."""
    columns = Notification.__table__.columns
    statement = select(*columns).where(Notification.org_id == org_id)
    rows = await connection.execute(statement.order_by(Notification.created_at.desc(), Notification.id).limit(limit))
    return [Notification(**row._mapping) for row in rows]


async def _work_off(database: Database, messenger: Messenger, channel: str, now: datetime) -> int:
    num_sent, until_s = 0, monotonic() + _TURN_S
    while monotonic() < until_s:
        async with database.begin() as connection:
            bind = {"channel": channel, "now": now, "lease": now + _LEASE, "limit": _AT_ONCE}
            rows = (await connection.execute(_TAKE, bind)).all()
        if not rows:
            break
        num_sent += sum(await _all(_attempt(database, messenger, row, now) for row in rows))
    return num_sent


async def _all(attempts: Iterable[Awaitable[int]]) -> list[int]:
    """What each returns; where one fails, the others are finished first."""
    outcomes = await asyncio.gather(*attempts, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
    return [outcome for outcome in outcomes if isinstance(outcome, int)]


async def _attempt(database: Database, messenger: Messenger, row: Row[Any], now: datetime) -> bool:
    try:
        await _deliver(database, messenger, row, now)
    except NotificationFailed as error:
        is_last = error.is_final or row.attempts > len(RETRY_AFTER)
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
        raise NotificationFailed("the address was removed", is_final=True)
    secrets = secrets_of(messenger.settings, UUID(row.target), found.secret_version)
    await messenger.caller.call(found.url, secrets, row.id, row.event, now)
