"""Members, their roles, and the owner that always stays."""

import asyncio
from collections.abc import Awaitable, Callable
from uuid import UUID, uuid4

import pytest
from sqlalchemy import delete, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from app.accounts import members
from app.accounts.sessions import PortalUser
from app.db import Database
from app.errors import BadRequest, Conflict, NotFound, PermissionDenied
from app.tables import ROLES, Membership, Org, User
from tests.factories import make_org, make_user
from tests.fakes import until


@pytest.fixture
async def org_id(database: Database) -> UUID:
    return await make_org(database)


async def member(database: Database, org_id: UUID, role: str = "owner", email: str | None = None) -> PortalUser:
    address = email or f"{role}@acme.example"
    user_id = await make_user(database, org_id, address, role)
    return PortalUser(uuid4(), user_id, address, org_id, "Acme", role)


async def roles_of(database: Database, org_id: UUID) -> dict[str, str]:
    async with database.begin() as connection:
        return {member.email: member.role for member in await members.list_members(connection, org_id)}


async def test_members_are_listed_in_the_order_of_joining(database: Database, org_id: UUID) -> None:
    for role in ROLES:
        await member(database, org_id, role)
    await member(database, await make_org(database, "Globex"), email="else@globex.example")
    assert [*(await roles_of(database, org_id)).values()] == [*ROLES]


async def test_an_owner_gives_every_role(database: Database, org_id: UUID) -> None:
    owner, other = await member(database, org_id), await member(database, org_id, "viewer")
    old = "viewer"
    for role in ROLES:
        async with database.begin() as connection:
            assert await members.change_role(connection, owner, other.user_id, role) == old
        old = role
        assert (await roles_of(database, org_id))["viewer@acme.example"] == role


async def test_an_admin_makes_and_unmakes_no_owner(database: Database, org_id: UUID) -> None:
    owner, admin = await member(database, org_id), await member(database, org_id, "admin")
    viewer = await member(database, org_id, "viewer")
    async with database.begin() as connection:
        assert await members.change_role(connection, admin, viewer.user_id, "developer") == "viewer"
        for user_id, role in ((viewer.user_id, "owner"), (owner.user_id, "viewer"), (admin.user_id, "owner")):
            with pytest.raises(PermissionDenied):
                await members.change_role(connection, admin, user_id, role)
        with pytest.raises(PermissionDenied):
            await members.remove_member(connection, admin, owner.user_id)
        assert await members.remove_member(connection, admin, viewer.user_id) == "developer"


@pytest.mark.parametrize("role", ["billing", "developer", "viewer"])
async def test_the_others_change_nobody_but_may_leave(database: Database, org_id: UUID, role: str) -> None:
    await member(database, org_id)
    other, person = await member(database, org_id, "admin"), await member(database, org_id, role)
    async with database.begin() as connection:
        for user_id in (other.user_id, person.user_id):
            with pytest.raises(PermissionDenied):
                await members.change_role(connection, person, user_id, "admin")
        with pytest.raises(PermissionDenied):
            await members.remove_member(connection, person, other.user_id)
        assert await members.remove_member(connection, person, person.user_id) == role
    assert set(await roles_of(database, org_id)) == {"owner@acme.example", "admin@acme.example"}


async def test_the_last_owner_stays(database: Database, org_id: UUID) -> None:
    owner = await member(database, org_id)
    async with database.begin() as connection:
        with pytest.raises(Conflict):
            await members.change_role(connection, owner, owner.user_id, "admin")
        with pytest.raises(Conflict):
            await members.remove_member(connection, owner, owner.user_id)
        assert await members.change_role(connection, owner, owner.user_id, "owner") == "owner"
    second = await member(database, org_id, email="second@acme.example")
    async with database.begin() as connection:
        assert await members.remove_member(connection, owner, owner.user_id) == "owner"
        with pytest.raises(Conflict):
            await members.remove_member(connection, second, second.user_id)


async def test_there_is_no_other_role(database: Database, org_id: UUID) -> None:
    owner = await member(database, org_id)
    async with database.begin() as connection:
        with pytest.raises(BadRequest):
            await members.change_role(connection, owner, owner.user_id, "emperor")


async def test_members_of_others_are_not_there(database: Database, org_id: UUID) -> None:
    owner = await member(database, org_id)
    other = await member(database, await make_org(database, "Globex"), "viewer", "else@globex.example")
    async with database.begin() as connection:
        for foreign in (other.user_id, uuid4()):
            with pytest.raises(NotFound):
                await members.change_role(connection, owner, foreign, "viewer")
            with pytest.raises(NotFound):
                await members.remove_member(connection, owner, foreign)
    assert await roles_of(database, other.org_id) == {"else@globex.example": "viewer"}


async def test_of_two_owners_who_leave_at_once_one_stays(database: Database, org_id: UUID) -> None:
    owners = [await member(database, org_id, email=f"{number}@acme.example") for number in range(2)]

    async def leave(connection: AsyncConnection, number: int) -> None:
        await members.remove_member(connection, owners[number], owners[number].user_id)

    with pytest.raises(Conflict):
        await in_the_middle(database, leave)
    assert len(await roles_of(database, org_id)) == 1


async def in_the_middle(database: Database, change: Callable[[AsyncConnection, int], Awaitable[object]]) -> None:
    """Makes the second change while the first waits to commit, and commits it as soon as the second waits for it."""

    async def second() -> None:
        async with database.begin() as connection:
            await change(connection, 1)

    async def is_waiting() -> bool:
        statement = text(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        async with database.begin() as connection:
            return bool((await connection.execute(statement)).scalar_one()) or task.done()

    async with database.begin() as first:
        await change(first, 0)
        task = asyncio.create_task(second())
        await until(is_waiting)
    await task


Change = Callable[[AsyncConnection, UUID], Awaitable[object]]


async def _demote(connection: AsyncConnection, user_id: UUID) -> object:
    return await connection.execute(update(Membership).where(Membership.user_id == user_id).values(role="viewer"))


async def _remove(connection: AsyncConnection, user_id: UUID) -> object:
    return await connection.execute(delete(Membership).where(Membership.user_id == user_id))


async def _delete(connection: AsyncConnection, user_id: UUID) -> object:
    return await connection.execute(delete(User).where(User.id == user_id))


@pytest.mark.parametrize("change", [_demote, _remove, _delete])
async def test_the_database_itself_keeps_an_owner(database: Database, org_id: UUID, change: Change) -> None:
    owners = [await member(database, org_id, email=f"{number}@acme.example") for number in range(2)]

    async def attempt(connection: AsyncConnection, number: int) -> None:
        await change(connection, owners[number].user_id)

    with pytest.raises(IntegrityError, match="at least one owner"):
        await in_the_middle(database, attempt)
    assert "owner" in (await roles_of(database, org_id)).values()


async def test_an_organisation_is_deleted_with_its_owners(database: Database, org_id: UUID) -> None:
    owner = await member(database, org_id)
    async with database.begin() as connection:
        await connection.execute(delete(Org).where(Org.id == org_id))
        assert (await connection.execute(select(User.id))).scalar_one() == owner.user_id
        assert (await connection.execute(text("SELECT count(*) FROM memberships"))).scalar_one() == 0
