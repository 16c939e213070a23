"""A meter event that takes the place of one that Stripe did not count and will not any more.

It carries the same value under a new identifier and the present as its time, so that it is on
the invoice of the period that runs. Usage rows keep the claim that they have; ``replaces`` leads from
what was counted back to it.
"""

from datetime import datetime
from uuid import UUID

from sqlalchemy import insert, text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.billing.claims import identifier
from app.tables import MeterOutbox, new_id
from app.telemetry import METER_EVENTS, get_logger

log = get_logger(__name__)

_OLD = text(
    "SELECT id, org_id, meter, window_start, window_end, value, event_ts FROM stripe_meter_outbox"
    " WHERE id = :id AND state <> 'replaced' FOR UPDATE"
)
_PERIOD = text(
    "SELECT p.subscription_id, o.stripe_customer_id FROM metering_periods p"
    " JOIN subscriptions s ON s.id = p.subscription_id JOIN orgs o ON o.id = s.org_id"
    " WHERE s.org_id = :org_id AND NOT p.is_trial AND p.period_start <= :event_ts AND p.period_end > :event_ts"
    " AND s.status NOT IN ('incomplete', 'incomplete_expired') AND o.stripe_customer_id IS NOT NULL"
    # Where Stripe's clock is ahead of ours, as one that was set forward, the period that runs may be invoiced there.
    " AND NOT EXISTS (SELECT 1 FROM invoices i WHERE i.stripe_subscription_id = s.stripe_subscription_id"
    " AND i.finalized_at IS NOT NULL AND i.created >= p.period_end)"
    " ORDER BY s.is_current DESC, p.period_start DESC LIMIT 1"
)
_SEQ = text(
    "SELECT max(seq) + 1 FROM stripe_meter_outbox"
    " WHERE org_id = :org_id AND meter = :meter AND window_start = :window_start"
)
_REPLACE = text("UPDATE stripe_meter_outbox SET state = 'replaced' WHERE id = :id")
_IS_OVER = text(
    "SELECT NOT EXISTS (SELECT 1 FROM subscriptions WHERE org_id = :org_id AND ended_at IS NULL"
    " AND status NOT IN ('incomplete', 'incomplete_expired', 'canceled'))"
)
_REJECT = text("UPDATE stripe_meter_outbox SET state = 'rejected', last_error = :problem WHERE id = :id")


async def reissue(connection: AsyncConnection, outbox_id: UUID, now: datetime) -> bool:
    """Lets a new row of the outbox carry the value of one that was not counted.

    Args:
        connection: An open transaction.
        outbox_id: The row that was not counted; it must not be sent again.
        now: By Stripe's clock.

    Returns:
        Whether it is replaced; False: the organisation has no period at present whose invoice
        could take it.
    """
    old = (await connection.execute(_OLD, {"id": outbox_id})).one()
    event_ts = now.replace(microsecond=0)
    period = (await connection.execute(_PERIOD, {"org_id": old.org_id, "event_ts": event_ts})).one_or_none()
    if period is None:
        return False
    bind = {"org_id": old.org_id, "meter": old.meter, "window_start": old.window_start}
    seq = int((await connection.execute(_SEQ, bind)).scalar_one())
    row = {
        **bind,
        "id": new_id(),
        "subscription_id": period.subscription_id,
        "stripe_customer_id": period.stripe_customer_id,
        "window_end": old.window_end,
        "seq": seq,
        "value": old.value,
        "event_ts": event_ts,
        "identifier": identifier(old.org_id, old.meter, old.window_start, seq),
        "due_at": event_ts,
        "replaces": old.id,
    }
    await connection.execute(insert(MeterOutbox).values(row))
    await connection.execute(_REPLACE, {"id": old.id})
    METER_EVENTS.labels("replaced").inc()
    log.warning("meter_event.replaced", outbox_id=str(old.id), by=str(row["id"]), org_id=str(old.org_id))
    return True


async def give_up(connection: AsyncConnection, outbox_id: UUID, org_id: UUID) -> bool:
    """Leaves an event that no invoice takes to a person, if there will be none: the subscription has ended.

    Args:
        connection: An open transaction.
        outbox_id: The row, which ``reissue`` could not replace.
        org_id: Whose it is.

    Returns:
        Whether it is given up; False: the next period will take it.
    """
    if not (await connection.execute(_IS_OVER, {"org_id": org_id})).scalar_one():
        return False
    problem = "Stripe has not counted it, and there is no invoice any more that it could be on"
    await connection.execute(_REJECT, {"id": outbox_id, "problem": problem})
    METER_EVENTS.labels("rejected").inc()
    log.error("meter_event.lost", outbox_id=str(outbox_id), org_id=str(org_id))
    return True
