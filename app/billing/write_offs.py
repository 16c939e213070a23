"""Usage that will be on no invoice: what a person ends who can do no more about it.

Stripe refused a meter event for good, or the subscription ended before it was counted. Rows
keep their claim, and the outbox keeps what it would have said; only, nobody waits for it any
more, and invoices are not expected to have it.
"""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from app import audit
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
