"""Subscriptions as Stripe last told them, and the periods that their usage is metered in.

Whatever is written here was read from Stripe at ``synced_at``; what was read earlier never
replaces it, so snapshots may come twice, late and in any order.
"""

from datetime import datetime
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from app.billing.gateway import Gateway
from app.db import Database


async def project(
    connection: AsyncConnection, snapshot: dict[str, Any], synced_at: datetime, *, open_since: datetime | None = None
) -> None:
    """Writes what Stripe's subscription says: its row, its metering period, which of several is current.

    Args:
        connection: An open transaction.
        snapshot: Stripe's subscription, as ``Gateway.retrieve_subscription`` reads it.
        synced_at: By the database's clock, before it was read.
        open_since: When the oldest invoice was finalised that is attempted and still open.

    Raises:
        Conflict: It is of no organisation, or its prices are not of the catalogue.
    """
    raise NotImplementedError


async def refresh(database: Database, gateway: Gateway, subscription_id: str) -> None:
    """Reads a subscription from Stripe and projects it; for whoever has just changed it.

    Args:
        database: Where it is written, in a transaction of its own.
        gateway: To read it.
        subscription_id: Stripe's.

    Raises:
        StripeUnavailable: It cannot be read now; its webhook will say the same later.
        StripeRefused: There is none.
    """
    raise NotImplementedError
