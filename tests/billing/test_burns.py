"""The ledger of credit follows prepaid usage by the hour; each row is burnt once."""

import asyncio
from datetime import timedelta
from uuid import UUID

import pytest
from sqlalchemy import text

from app.billing import burns, credits
from app.db import Database
from app.errors import DataError
from tests.billing.metered import MICROSECOND, MINUTE, START, rows_of, use
from tests.factories import make_org

HOUR = timedelta(hours=1)
TOKEN = 150_000
"""What one of input costs, in 10^-12 USD."""


async def make_prepaid(database: Database, credit: int = 0) -> UUID:
    org_id = await make_org(database)
    async with database.begin() as connection:
        await credits.switch(connection, org_id, is_prepaid=True)
        if credit:
            await credits.add(connection, org_id, "grant", credit, "test", str(org_id))
    return org_id


async def spend(database: Database, org_id: UUID, *moments: object, tokens: int = 1) -> None:
    """As a settlement does: the row, and its cost off the credit."""
    await use(database, org_id, *moments, tokens=tokens, is_prepaid=True)  # type: ignore[arg-type]
    async with database.begin() as connection:
        await connection.execute(
            text("UPDATE org_budgets SET credit = credit - :cost WHERE org_id = :org_id"),
            {"cost": tokens * TOKEN * len(moments), "org_id": org_id},
        )


async def burnt(database: Database, org_id: UUID) -> list[int]:
    rows = await rows_of(database, "credit_ledger", org_id, "created_at, id")
    return [-row.amount // TOKEN for row in rows if row.kind == "burn"]


async def credit_and_balance(database: Database, org_id: UUID) -> tuple[int | None, int]:
    async with database.begin() as connection:
        statement = text("SELECT credit FROM org_budgets WHERE org_id = :org_id")
        credit: int | None = (await connection.execute(statement, {"org_id": org_id})).scalar_one()
        return credit, await credits.balance(connection, org_id)


async def test_an_hour_is_one_entry(database: Database) -> None:
    org_id = await make_prepaid(database, 100 * TOKEN)
    await spend(database, org_id, START, START + MINUTE, START + HOUR - MICROSECOND, tokens=2)
    await spend(database, org_id, START + HOUR)
    await burns.burn_due(database, START + HOUR + MINUTE)
    assert await burnt(database, org_id) == [6]
    assert await credit_and_balance(database, org_id) == (93 * TOKEN, 93 * TOKEN)
    usage = await rows_of(database, "usage_events", org_id, "billed_at")
    (entry,) = [row for row in await rows_of(database, "credit_ledger", org_id) if row.kind == "burn"]
    assert [row.claim_id for row in usage] == [entry.id] * 3 + [None]


async def test_an_hour_waits_for_who_may_still_write_into_it(database: Database) -> None:
    org_id = await make_prepaid(database)
    await spend(database, org_id, START)
    await burns.burn_due(database, START + HOUR + MINUTE - MICROSECOND)
    assert await burnt(database, org_id) == []


async def test_a_late_row_goes_with_the_next_entry(database: Database) -> None:
    org_id = await make_prepaid(database)
    await spend(database, org_id, START)
    await burns.burn_due(database, START + HOUR + MINUTE)
    await spend(database, org_id, START, tokens=3)
    await burns.burn_due(database, START + HOUR + 2 * MINUTE)
    assert await burnt(database, org_id) == [1, 3]


async def test_only_prepaid_usage_is_burnt(database: Database) -> None:
    org_id, other = await make_prepaid(database), await make_prepaid(database)
    await use(database, org_id, START)
    await spend(database, other, START)
    await burns.burn_due(database, START + 2 * HOUR)
    assert (await burnt(database, org_id), await burnt(database, other)) == ([], [1])


async def test_usage_that_costs_nothing_makes_no_entry(database: Database) -> None:
    org_id = await make_prepaid(database)
    await spend(database, org_id, START, tokens=0)
    await burns.burn_due(database, START + 2 * HOUR)
    assert await burnt(database, org_id) == []


async def test_burns_at_once_burn_each_row_once(database: Database) -> None:
    org_id = await make_prepaid(database)
    await spend(database, org_id, *(START + minute * MINUTE for minute in range(50)))
    await asyncio.gather(*(burns.burn_due(database, START + 2 * HOUR) for _ in range(6)))
    assert await burnt(database, org_id) == [50]


async def test_rows_without_a_price_stop_nobody_else(database: Database) -> None:
    broken, org_id = await make_prepaid(database), await make_prepaid(database)
    await use(database, broken, START, is_prepaid=True, price_version=99)
    await spend(database, org_id, START)
    with pytest.raises(DataError, match="price version 99"):
        await burns.burn_due(database, START + 2 * HOUR)
    assert (await burnt(database, broken), await burnt(database, org_id)) == ([], [1])
