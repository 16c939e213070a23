"""What an organisation is entitled to: a pure function of what it has paid for, and its one writer."""

from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection


async def apply(connection: AsyncConnection, org_id: UUID, now: datetime, grace: timedelta) -> None:
    """Writes into ``org_budgets`` what the organisation is entitled to at ``now``; its next admission sees it.

    Locks the budget. Takes what is written so far; asks Stripe nothing.

    Args:
        connection: An open transaction.
        org_id: The organisation.
        now: Aware.
        grace: How long it is served on after a payment has failed.
    """
    raise NotImplementedError
