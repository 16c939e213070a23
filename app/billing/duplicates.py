"""Several subscriptions of one organisation: the newest stays, the others end at Stripe.

It takes two checkouts that are both paid, in two tabs for instance. Nobody shall pay twice
for the same time: what is left of the older one's becomes credit with the next invoice,
and its usage is reported and invoiced first.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Row, text

from app import audit
from app.billing import claims, effects, outbox
from app.billing.gateway import Gateway
from app.billing.turns import Turns
from app.db import Database
from app.telemetry import DUPLICATE_SUBSCRIPTIONS, get_logger

log = get_logger(__name__)

# Of those that live the newest is current, so any other is one too many.
_DUPLICATES = text(
    "SELECT s.org_id, s.stripe_subscription_id AS id, c.stripe_subscription_id AS current_id"
    " FROM subscriptions s JOIN subscriptions c ON c.org_id = s.org_id AND c.is_current"
    " WHERE NOT s.is_current AND s.status IN ('trialing', 'active', 'past_due', 'unpaid')"
    " AND (CAST(:id AS text) IS NULL OR s.stripe_subscription_id = :id) ORDER BY s.started_at"
)


async def end_all(database: Database, gateway: Gateway, now: datetime, grace: timedelta) -> int:
    """Ends every subscription that has a newer one beside it; may run twice.

    Args:
        database: With the subscriptions as they are known.
        gateway: To end them.
        now: By Stripe's clock.
        grace: How long organisations are served on after a payment has failed.

    Returns:
        How many were ended.

    Raises:
        StripeUnavailable: As every call; the rest is for the next run.
        StripeRefused: Of one of them; those of others are ended.
    """
    num_ended = 0
    turns = Turns("subscription.duplicate_failed")
    for row in await _find(database):
        with turns.of(org_id=str(row.org_id), subscription=row.id):
            num_ended += await _end_if_duplicate(database, gateway, row, now, grace)
    turns.end()
    return num_ended


async def _end_if_duplicate(
    database: Database, gateway: Gateway, row: Row[Any], now: datetime, grace: timedelta
) -> bool:
    # What we know may be old: the newer one may have ended since.
    await effects.refresh(database, gateway, row.current_id, now, grace)
    await effects.refresh(database, gateway, row.id, now, grace)
    if not await _find(database, row.id):
        return False
    await _end(database, gateway, row, now)
    await effects.refresh(database, gateway, row.id, now, grace)
    return True


async def _find(database: Database, id: str | None = None) -> Sequence[Row[Any]]:
    async with database.begin() as connection:
        return (await connection.execute(_DUPLICATES, {"id": id})).all()


async def _end(database: Database, gateway: Gateway, row: Row[Any], now: datetime) -> None:
    await claims.flush(database, row.org_id, now)
    await outbox.drain(database, gateway, now=now, org_id=row.org_id)
    await gateway.cancel_subscription(row.id)
    DUPLICATE_SUBSCRIPTIONS.inc()
    log.error("subscription.duplicate_ended", org_id=str(row.org_id), subscription=row.id, current=row.current_id)
    async with database.begin() as connection:
        await audit.record(
            connection,
            org_id=row.org_id,
            actor=audit.TOLLGATE,
            action="subscription.end_duplicate",
            target=f"subscription:{row.id}",
            after={"current": row.current_id},
        )
