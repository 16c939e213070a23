"""What prepaid usage takes off the ledger of credit: an entry an hour, made of the rows it claims.

A settlement takes its cost off ``org_budgets.credit`` at once and marks its row ``is_prepaid``. The ledger
follows by the hour, so that a busy customer does not have an entry for each request:
credit = sum of the ledger - cost of prepaid rows that no burn has claimed.
"""

from datetime import UTC, datetime, timedelta
from uuid import UUID

from sqlalchemy import insert, text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.billing import claims
from app.billing.turns import Turns
from app.db import Database
from app.tables import CreditEntry, new_id

HOUR = timedelta(hours=1)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ORGS = text(
    "SELECT DISTINCT org_id FROM usage_events WHERE claim_id IS NULL AND is_prepaid AND billed_at < :end ORDER BY 1"
)
_LOCK = text("SELECT pg_advisory_xact_lock(hashtext('burns'), hashtext(CAST(CAST(:org_id AS uuid) AS text)))")


async def burn_due(database: Database, now: datetime) -> None:
    """Burns what was used in the hours that are over; a transaction for each organisation.

    Args:
        database: With the usage rows.
        now: As rows are billed by.

    Raises:
        DataError: An organisation's rows have no price; those of the others are burnt. Likewise ``DBAPIError``.
    """
    async with database.begin() as connection:
        until = await claims.horizon(connection, now)
        end = until - (until - _EPOCH) % HOUR
        org_ids = (await connection.execute(_ORGS, {"end": end})).scalars().all()
    turns = Turns("burn.failed")
    for org_id in org_ids:
        with turns.of(org_id=str(org_id)):
            async with database.begin() as connection:
                await burn(connection, org_id, end)
    turns.end()


async def burn(connection: AsyncConnection, org_id: UUID, end: datetime) -> None:
    """Takes what the organisation used before ``end``, and no entry has taken yet, off its ledger.

    The budget's credit is not touched: each settlement has moved it.

    Raises:
        DataError: A row has a price that is not in the list.
    """
    await connection.execute(_LOCK, {"org_id": org_id})
    entry_id = new_id()
    cost = await claims.mark(connection, entry_id, org_id, _EPOCH, end, is_prepaid=True)
    if cost:
        row = {"id": entry_id, "org_id": org_id, "kind": "burn", "amount": -cost}
        await connection.execute(insert(CreditEntry).values(**row, ref_type="usage", ref_id=str(entry_id)))
