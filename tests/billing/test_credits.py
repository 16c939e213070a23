"""Credit is the ledger less what was used since; a movement has one cause."""

import asyncio
from datetime import datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from app.billing import burns, credits
from app.billing.credits import Movement, remainders
from app.db import Database
from app.errors import DataError
from app.tables import new_id
from tests.billing.metered import START, rows_of, use
from tests.billing.test_burns import HOUR, TOKEN, burnt, credit_and_balance, make_prepaid, spend
from tests.factories import make_org

DAY = timedelta(days=1)


async def add(
    database: Database,
    org_id: UUID,
    kind: credits.Kind,
    amount: int,
    ref: str,
    expires_at: datetime | None = None,
) -> bool:
    async with database.begin() as connection:
        return await credits.add(connection, org_id, kind, amount, "test", ref, expires_at=expires_at)


async def switch(database: Database, org_id: UUID, is_prepaid: bool) -> None:
    async with database.begin() as connection:
        await credits.switch(connection, org_id, is_prepaid=is_prepaid)


async def credit_of(database: Database, org_id: UUID) -> int | None:
    (budget,) = await rows_of(database, "org_budgets", org_id)
    credit: int | None = budget.credit
    return credit


async def test_a_movement_moves_the_credit(database: Database) -> None:
    org_id = await make_prepaid(database)
    assert await add(database, org_id, "purchase", 50, "a")
    assert await add(database, org_id, "refund", -20, "a")
    assert await credit_and_balance(database, org_id) == (30, 30)


async def test_a_movement_of_one_cause_is_written_once(database: Database) -> None:
    org_id = await make_prepaid(database)
    found = await asyncio.gather(*(add(database, org_id, "purchase", 50, "a") for _ in range(8)))
    assert sorted(found) == [False] * 7 + [True]
    assert await credit_and_balance(database, org_id) == (50, 50)


async def test_the_credit_of_others_is_left_alone(database: Database) -> None:
    org_id, other = await make_prepaid(database), await make_prepaid(database)
    await add(database, org_id, "purchase", 50, "a")
    assert await credit_and_balance(database, other) == (0, 0)


async def test_without_a_prepaid_plan_the_ledger_alone_moves(database: Database) -> None:
    org_id = await make_org(database)
    await add(database, org_id, "purchase", 50, "a")
    assert await credit_and_balance(database, org_id) == (None, 50)


async def test_whoever_comes_back_finds_what_was_left(database: Database) -> None:
    org_id = await make_prepaid(database, 100 * TOKEN)
    await spend(database, org_id, START, tokens=30)
    await switch(database, org_id, False)
    assert await credit_of(database, org_id) is None
    await use(database, org_id, START)  # paid for by a subscription
    await add(database, org_id, "purchase", 5 * TOKEN, "a")
    await switch(database, org_id, True)
    assert await credit_and_balance(database, org_id) == (75 * TOKEN, 75 * TOKEN)
    await burns.burn_due(database, START + 2 * HOUR)
    assert await credit_and_balance(database, org_id) == (75 * TOKEN, 75 * TOKEN)


async def test_switching_to_what_is_changes_nothing(database: Database) -> None:
    org_id = await make_prepaid(database, 5)
    async with database.begin() as connection:
        await connection.execute(text("UPDATE org_budgets SET credit = 7"))
    await switch(database, org_id, True)
    assert await credit_of(database, org_id) == 7
    await switch(database, new_id(), True)  # nobody


async def test_entries_cannot_be_changed(database: Database) -> None:
    org_id = await make_prepaid(database, 5)
    for change in ("UPDATE credit_ledger SET amount = 6", "DELETE FROM credit_ledger"):
        with pytest.raises(DBAPIError, match="append-only"):
            async with database.begin() as connection:
                await connection.execute(text(change))
    assert await credit_and_balance(database, org_id) == (5, 5)


async def test_an_entry_of_nothing_is_refused(database: Database) -> None:
    org_id = await make_prepaid(database)
    with pytest.raises(DBAPIError, match="amount_present"):
        await add(database, org_id, "adjust", 0, "a")


async def test_what_is_left_of_a_grant_expires(database: Database) -> None:
    org_id = await make_prepaid(database)
    await add(database, org_id, "grant", 100 * TOKEN, "a", expires_at=START + DAY)
    await add(database, org_id, "purchase", 50 * TOKEN, "b")
    await spend(database, org_id, START, tokens=30)
    await burns.burn_due(database, START + 2 * HOUR)
    # Used since, and not burnt yet: that is no part of what is left either.
    await spend(database, org_id, START + DAY - HOUR, tokens=20)
    await credits.expire_due(database, START + DAY - timedelta(microseconds=1))
    assert await credit_and_balance(database, org_id) == (100 * TOKEN, 100 * TOKEN)
    for _ in range(2):
        await credits.expire_due(database, START + DAY)
        assert await credit_and_balance(database, org_id) == (50 * TOKEN, 50 * TOKEN)
    assert await burnt(database, org_id) == [30, 20]
    rows = await rows_of(database, "credit_ledger", org_id)
    assert [row.amount for row in rows if row.kind == "expire"] == [-50 * TOKEN]


async def test_nothing_expires_of_what_is_used_up(database: Database) -> None:
    org_id = await make_prepaid(database)
    await add(database, org_id, "grant", 5 * TOKEN, "a", expires_at=START + DAY)
    await spend(database, org_id, START, tokens=5)
    await credits.expire_due(database, START + 2 * DAY)
    assert await credit_and_balance(database, org_id) == (0, 0)


async def test_usage_without_a_price_keeps_nobody_elses_credit(database: Database) -> None:
    org_ids = [await make_prepaid(database) for _ in range(3)]
    for org_id in org_ids:
        await add(database, org_id, "grant", 5 * TOKEN, str(org_id), expires_at=START + DAY)
    broken = min(org_ids, key=str)
    await use(database, broken, START, is_prepaid=True, price_version=99)
    with pytest.raises(DataError):
        await credits.expire_due(database, START + DAY)
    balances = {org_id: await credit_and_balance(database, org_id) for org_id in org_ids}
    assert [balances.pop(broken), *balances.values()] == [(5 * TOKEN, 5 * TOKEN), (0, 0), (0, 0)]


def movement(amount: int, expires_in: int | None = None) -> Movement:
    return Movement(new_id(), amount, None if expires_in is None else START + expires_in * DAY)


def test_what_expires_first_is_used_first() -> None:
    later, sooner, never = movement(10, 9), movement(10, 3), movement(10)
    left = remainders([never, later, sooner, movement(-13)])
    assert [left[one.id] for one in (sooner, later, never)] == [0, 7, 10]


def test_what_was_used_before_is_not_taken_from_what_comes_later() -> None:
    first, second = movement(10, 9), movement(10, 1)
    assert remainders([first, movement(-4), second]) == {first.id: 6, second.id: 10}


def test_a_debt_is_paid_by_what_comes_next() -> None:
    first, second = movement(10), movement(10)
    assert remainders([first, movement(-14), second]) == {first.id: 0, second.id: 6}


@given(st.lists(st.tuples(st.integers(-50, 50).filter(bool), st.none() | st.integers(0, 5)), max_size=12))
def test_what_is_left_adds_up_to_the_balance(parts: list[tuple[int, int | None]]) -> None:
    movements = [movement(amount, expires) for amount, expires in parts]
    left = remainders(movements)
    assert all(0 <= left[one.id] <= one.amount for one in movements if one.amount > 0)
    assert sum(left.values()) == max(0, sum(one.amount for one in movements))
