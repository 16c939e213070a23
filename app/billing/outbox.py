"""Meter events on their way to Stripe."""

from datetime import datetime
from typing import TYPE_CHECKING
from uuid import UUID

from app.db import Database

if TYPE_CHECKING:
    from app.billing.gateway import Gateway


async def drain(database: Database, gateway: "Gateway", *, now: datetime, org_id: UUID | None = None) -> None:
    """Sends what is due, one at a time per customer and meter.

    Args:
        database: With the outbox.
        gateway: To Stripe.
        now: By Stripe's clock.
        org_id: This organisation's only, whether it is due or waits after a failure.

    Raises:
        StripeUnavailable: ``org_id`` is given and something of it was not taken; do not
            change its prices now.
    """
    raise NotImplementedError


async def on_error_report(database: Database, gateway: "Gateway", event_id: str, now: datetime) -> None:
    """Doubts the meter events that a thin event says were not counted; may run twice.

    Args:
        database: With the outbox.
        gateway: To Stripe, to read the event in full.
        event_id: Of ``v1.billing.meter.error_report_triggered`` or ``….no_meter_found``.
        now: By Stripe's clock.

    Raises:
        StripeUnavailable: The event could not be read.
    """
    raise NotImplementedError
