"""Which usage rows are reported to Stripe, and in which period."""

from datetime import datetime
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import Database


async def claim_due(database: Database, now: datetime) -> None:
    """Closes every window that is over, of every subscription; a transaction each."""
    raise NotImplementedError


async def flush(database: Database, org_id: UUID, now: datetime) -> None:
    """Claims what the organisation has used up to the last whole second before ``now``.

    Call it, and then ``outbox.drain`` with the same organisation, before anything at
    Stripe that ends a price: a change of the plan, a cancellation at once.
    """
    raise NotImplementedError


async def value_between(connection: AsyncConnection, subscription_id: UUID, start: datetime, end: datetime) -> int:
    """What has been claimed for a period and is Stripe's to bill in it, in 10^-9 USD.

    Args:
        connection: An open transaction.
        subscription_id: Ours.
        start: Inclusive, by the time that the meter events bear.
        end: Exclusive.
    """
    raise NotImplementedError
