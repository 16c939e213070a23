"""Organisations."""

import pytest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from app.accounts.orgs import Belonging, create_org, list_orgs, orgs_of
from app.accounts.users import create_user
from app.db import Database
from app.errors import BadRequest
from app.tables import Membership, OrgBudget
from tests.factories import PASSWORD, make_org, make_user


async def test_organisations_are_listed_by_age(database: Database) -> None:
    first, second = await make_org(database, " One "), await make_org(database, "Two")
    async with database.begin() as connection:
        assert await list_orgs(connection) == [(first, "One", "active"), (second, "Two", "active")]


@pytest.mark.parametrize("name", ["", "  ", "x" * 101, "a\nb", "a\0b"])
async def test_a_name_must_be_printable_and_short(connection: AsyncConnection, name: str) -> None:
    with pytest.raises(BadRequest):
        await create_org(connection, name)


async def test_an_organisation_has_a_budget_on_its_plan(connection: AsyncConnection) -> None:
    org_id = await create_org(connection, "Acme", "free")
    budget = select(OrgBudget.plan).where(OrgBudget.org_id == org_id)
    assert (await connection.execute(budget)).scalar_one() == "free"


async def test_a_persons_organisations_are_listed_in_the_order_of_joining(database: Database) -> None:
    first = await make_org(database, "One")
    user_id = await make_user(database, first)
    second = await make_org(database, "Two")
    async with database.begin() as connection:
        row = {"org_id": second, "user_id": user_id, "role": "viewer"}
        await connection.execute(Membership.__table__.insert().values(row))  # type: ignore[attr-defined]
        await create_user(connection, second, "else@acme.example", PASSWORD)
    async with database.begin() as connection:
        expected = [Belonging(first, "One", "owner"), Belonging(second, "Two", "viewer")]
        assert await orgs_of(connection, user_id) == expected
