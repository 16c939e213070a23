"""Prepaid credit: a ledger of movements, and the balance that admission spends from.

The ledger is append-only and each movement has one cause, so that a payment that is
told of twice is one purchase. ``org_budgets.credit`` is what admission judges and
settlements reduce: not null exactly while an organisation's plan is prepaid. It is always
the sum of the ledger less the prepaid usage that no ``burn`` shows yet, which
``tollgate billing doctor`` checks. On another plan the ledger keeps the balance, and coming back restores it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal
from uuid import UUID

from sqlalchemy import select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from app.billing.burns import burn
from app.billing.statement import COST, PRICED
from app.billing.turns import Turns
from app.db import Database
from app.tables import CreditEntry, new_id

Kind = Literal["grant", "purchase", "expire", "refund", "adjust"]
"""All but a burn, whose usage rows have moved the credit already; ``app.billing.burns`` writes it."""

_MOVE = text("UPDATE org_budgets SET credit = credit + :amount WHERE org_id = :org_id AND credit IS NOT NULL")
_LOCK_BUDGET = text("SELECT credit FROM org_budgets WHERE org_id = :org_id FOR UPDATE")
_SET = text("UPDATE org_budgets SET credit = :credit WHERE org_id = :org_id")
# One statement, so that a burn counts on one side of the difference or on the other.
_BALANCE = text(
    "SELECT (SELECT COALESCE(sum(amount), 0) FROM credit_ledger WHERE org_id = :org_id) - (SELECT"  # noqa: S608 - constants
    f" COALESCE(sum({COST}), 0) FROM usage_events u {PRICED}"
    " WHERE u.org_id = :org_id AND u.claim_id IS NULL AND u.is_prepaid)"
)
_EXPIRED = text(
    "SELECT DISTINCT e.org_id FROM credit_ledger e WHERE e.expires_at <= :now AND e.amount > 0 AND NOT EXISTS"
    " (SELECT 1 FROM credit_ledger x WHERE x.kind = 'expire' AND x.ref_type = 'entry' AND x.ref_id = e.id::text)"
    " ORDER BY 1"
)


@dataclass(frozen=True, slots=True)
class Movement:
    """An entry of the ledger, as far as it says what is left of which.

    Attributes:
        amount: 10^-12 USD, signed.
        expires_at: Of one above 0; None: never.
    """

    id: UUID
    amount: int
    expires_at: datetime | None


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
        kind: What it is.
        amount: 10^-12 USD, not 0; below 0 it is taken away.
        ref_type: What caused it, with ``ref_id``.
        ref_id: Likewise.
        expires_at: What is left of it then is taken away.
        note: For people.

    Returns:
        Whether it is new.
    """
    # As settlements do: the budget first, so that no two transactions wait for each other.
    await connection.execute(_LOCK_BUDGET, {"org_id": org_id})
    row = {"id": new_id(), "org_id": org_id, "kind": kind, "amount": amount, "ref_type": ref_type, "ref_id": ref_id}
    statement = insert(CreditEntry).values(**row, expires_at=expires_at, note=note).on_conflict_do_nothing()
    if not (await connection.execute(statement)).rowcount:
        return False
    await connection.execute(_MOVE, {"org_id": org_id, "amount": amount})
    return True


async def balance(connection: AsyncConnection, org_id: UUID) -> int:
    """What may still be spent, in 10^-12 USD: the ledger less prepaid usage that it does not show yet."""
    return int((await connection.execute(_BALANCE, {"org_id": org_id})).scalar_one())


async def switch(connection: AsyncConnection, org_id: UUID, *, is_prepaid: bool) -> None:
    """Makes the organisation's budget pay from credit, with the balance of the ledger, or no more.

    Locks the organisation's budget until the transaction ends. Does nothing where it is so already.

    Args:
        connection: An open transaction.
        org_id: The organisation.
        is_prepaid: Whether its plan is the prepaid one now.
    """
    found = (await connection.execute(_LOCK_BUDGET, {"org_id": org_id})).one_or_none()
    if found is None or (found.credit is not None) is is_prepaid:
        return
    credit = await balance(connection, org_id) if is_prepaid else None
    await connection.execute(_SET, {"org_id": org_id, "credit": credit})


async def expire_due(database: Database, now: datetime) -> None:
    """Takes away what is left of grants and purchases whose time is over; a transaction for each organisation.

    Raises:
        DataError: An organisation's usage has no price; the credit of the others expires. Likewise ``DBAPIError``.
    """
    async with database.begin() as connection:
        org_ids = (await connection.execute(_EXPIRED, {"now": now})).scalars().all()
    turns = Turns("credit.expiry_failed")
    for org_id in org_ids:
        with turns.of(org_id=str(org_id)):
            async with database.begin() as connection:
                await _expire(connection, org_id, now)
    turns.end()


def remainders(movements: Sequence[Movement]) -> dict[UUID, int]:
    """What is left of each movement above 0, in 10^-12 USD.

    What is taken away comes off what expires first of what was there; if nothing was, off
    what comes next.

    Args:
        movements: Of one organisation, oldest first.
    """
    left: dict[UUID, int] = {}
    expiries: dict[UUID, datetime] = {}
    debt = 0
    for movement in movements:
        if movement.amount > 0:
            left[movement.id] = movement.amount
            expiries[movement.id] = movement.expires_at or datetime.max.replace(tzinfo=UTC)
        else:
            debt -= movement.amount
        # A dictionary keeps the order in which they came; sorting keeps it among equals.
        for movement_id in sorted(left, key=expiries.__getitem__):
            taken = min(debt, left[movement_id])
            left[movement_id] -= taken
            debt -= taken
    return left


async def _expire(connection: AsyncConnection, org_id: UUID, now: datetime) -> None:
    await connection.execute(_LOCK_BUDGET, {"org_id": org_id})
    # What was used up to now was not left.
    await burn(connection, org_id, now)
    columns = (CreditEntry.id, CreditEntry.amount, CreditEntry.expires_at)
    statement = select(*columns).where(CreditEntry.org_id == org_id).order_by(CreditEntry.created_at, CreditEntry.id)
    movements = [Movement(*row) for row in (await connection.execute(statement)).all()]
    left = remainders(movements)
    for movement in movements:
        is_over = movement.expires_at is not None and movement.expires_at <= now
        if is_over and left.get(movement.id):
            await add(connection, org_id, "expire", -left[movement.id], "entry", str(movement.id))
