"""Prepaid credit: a ledger of movements, and the balance that admission spends from."""

from datetime import datetime
from typing import Literal
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

Kind = Literal["grant", "purchase", "burn", "expire", "refund", "adjust"]


async def add(
    connection: AsyncConnection,
    org_id: UUID,
    kind: Kind,
    amount: int,
    ref_type: str,
    ref_id: str,
    *,
    expires_at: datetime | None = None,
    note: str | None = None,
) -> bool:
    """Writes a movement, once for each kind and cause, and moves the credit of a prepaid budget by it.

    Args:
        connection: An open transaction.
        org_id: Whose credit.
        kind: A burn is written by ``app.billing.claims`` only.
        amount: 10^-12 USD, not 0; below 0 it is taken away.
        ref_type: What caused it, with ``ref_id``.
        ref_id: Likewise.
        expires_at: What is left of it then is taken away.
        note: For people.

    Returns:
        Whether it is new.
    """
    raise NotImplementedError


async def balance(connection: AsyncConnection, org_id: UUID) -> int:
    """What may still be spent, in 10^-12 USD: the ledger less prepaid usage that it does not show yet."""
    raise NotImplementedError


async def was_bought(connection: AsyncConnection, org_id: UUID) -> bool:
    """Whether the organisation ever bought or was given credit."""
    raise NotImplementedError


async def switch(connection: AsyncConnection, org_id: UUID, *, is_prepaid: bool) -> None:
    """Makes the organisation's budget pay from credit, with the balance of the ledger, or not.

    Locks the organisation's budget until the transaction ends. Does nothing where it is so already.
    """
    raise NotImplementedError
