"""Usage that will be on no invoice: what a person ends who can do no more about it.

Stripe refused a meter event for good, the subscription ended before it was counted, or before
its last rows came. Rows have their claim all the same, and the outbox what it would have said;
only, nobody waits for it any more, and invoices are not expected to have it.
"""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from app import audit
from app.billing import claims
from app.errors import Conflict

_OPEN = text(
    "SELECT id, org_id, state, event_ts, value, attempts, last_error FROM stripe_meter_outbox"
    " WHERE state = 'rejected' OR (:waiting AND state IN ('pending', 'sending', 'reconcile'))"
    " ORDER BY event_ts, id LIMIT :limit"
)
_WRITE_OFF = text(
    "UPDATE stripe_meter_outbox SET state = 'written_off' WHERE id = :id AND state IN ('rejected', 'reconcile')"
    " RETURNING org_id, value, last_error"
)
# As the doctor finds them: what no subscription that goes on will take. Where a later one began, its own periods have
# what was used since.
_ENDED = text(
    "SELECT s.org_id, p.subscription_id, COALESCE(s.snapshot->>'customer', '') AS stripe_customer_id, p.period_start,"
    " LEAST(p.period_end, (SELECT min(f.period_start) FROM metering_periods f JOIN subscriptions t"
    " ON t.id = f.subscription_id WHERE t.org_id = s.org_id AND t.id <> s.id AND NOT f.is_trial"
    " AND f.period_start > p.period_start)) AS period_end"
    " FROM metering_periods p JOIN subscriptions s ON s.id = p.subscription_id"
    " WHERE s.org_id = :org_id AND s.ended_at IS NOT NULL AND NOT p.is_trial"
    " AND NOT EXISTS (SELECT 1 FROM metering_periods o WHERE o.subscription_id = s.id AND NOT o.is_trial"
    " AND o.claimed_until < o.period_end) ORDER BY p.period_start"
)


async def list_open(connection: AsyncConnection, *, with_waiting: bool, limit: int) -> Sequence[Row[Any]]:
    """Meter events that were refused, oldest first; with those that wait or are in doubt, too."""
    return (await connection.execute(_OPEN, {"waiting": with_waiting, "limit": limit})).all()


async def write_off(connection: AsyncConnection, outbox_id: UUID, note: str) -> int:
    """Ends a meter event that was refused or is in doubt.

    Writes into the audit log, as the last step of the transaction.

    Args:
        connection: An open transaction.
        outbox_id: Of the row.
        note: Why.

    Returns:
        What is not charged, in 10^-9 USD.

    Raises:
        Conflict: It is neither.
    """
    row = (await connection.execute(_WRITE_OFF, {"id": outbox_id})).one_or_none()
    if row is None:
        raise Conflict(f"{outbox_id} is no meter event that was refused or is in doubt.", code="not_refused")
    value = int(row.value)
    await audit.record(
        connection,
        org_id=row.org_id,
        actor=audit.OPERATOR,
        action="meter_event.write_off",
        target=f"meter_event:{outbox_id}",
        after={"value": value, "error": row.last_error, "note": note},
    )
    return value


async def write_off_usage(connection: AsyncConnection, org_id: UUID, note: str) -> int:
    """Ends what an organisation used under subscriptions that are over and that was too late for an invoice.

    Writes into the audit log, as the last step of the transaction.

    Args:
        connection: An open transaction.
        org_id: Whose.
        note: Why.

    Returns:
        What is not charged, in 10^-9 USD.

    Raises:
        Conflict: There is none.
        DataError: Rows have no price.
    """
    await claims.lock(connection, org_id)
    value = 0
    for period in (await connection.execute(_ENDED, {"org_id": org_id})).all():
        value += await claims.write_off_rest(connection, period)
    if not value:
        raise Conflict(f"Organisation {org_id} has no usage that is too late.", code="nothing_late")
    await audit.record(
        connection,
        org_id=org_id,
        actor=audit.OPERATOR,
        action="usage.write_off",
        target=f"org:{org_id}",
        after={"value": value, "note": note},
    )
    return value
