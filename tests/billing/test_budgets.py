"""Limits as operators set them."""

from decimal import Decimal
from typing import Any

import pytest

from app.billing.budgets import set_budget
from app.billing.prices import pico_usd
from app.db import Database
from app.errors import BadRequest, NotFound
from app.tables import new_id
from tests.factories import make_org

USD = 10**12


async def budget(database: Database) -> tuple[Any, ...]:
    async with database.begin() as connection:
        statement = "SELECT monthly_token_limit, spend_cap, max_concurrent, credit FROM org_budgets"
        return tuple((await connection.exec_driver_sql(statement)).one())


async def test_what_is_given_is_set_and_the_rest_stays(database: Database) -> None:
    org_id = await make_org(database)
    assert await budget(database) == (None, None, None, None)
    async with database.begin() as connection:
        await set_budget(connection, org_id, monthly_token_limit=5, spend_cap=Decimal("0.000000000001"))
        await set_budget(connection, org_id, max_concurrent=3, spend_cap=Decimal(2))
    assert await budget(database) == (5, 2 * USD, 3, None)


async def test_credit_adds_up(database: Database) -> None:
    org_id = await make_org(database)
    async with database.begin() as connection:
        await set_budget(connection, org_id, credit=Decimal(10))
        await set_budget(connection, org_id, credit=Decimal("-2.5"))
    assert (await budget(database))[3] == 7_500_000_000_000


@pytest.mark.parametrize(
    "limits",
    [
        {},
        {"monthly_token_limit": -1},
        {"spend_cap": Decimal(-1)},
        {"max_concurrent": 0},
        {"credit": Decimal("Infinity")},
    ],
)
async def test_what_cannot_be_is_refused(database: Database, limits: dict[str, Any]) -> None:
    org_id = await make_org(database)
    with pytest.raises(BadRequest):
        async with database.begin() as connection:
            await set_budget(connection, org_id, **limits)


async def test_limits_of_nobody_cannot_be_set(database: Database) -> None:
    with pytest.raises(NotFound):
        async with database.begin() as connection:
            await set_budget(connection, new_id(), max_concurrent=1)


@pytest.mark.parametrize("amount", ["1e-13", "NaN", "9223373"])
def test_an_amount_that_cannot_be_held_is_refused(amount: str) -> None:
    with pytest.raises(BadRequest):
        pico_usd(Decimal(amount))
