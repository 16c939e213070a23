"""Invitations, apart from their pages."""

import asyncio
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from sqlalchemy import delete, func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from app.accounts import invitations
from app.accounts.invitations import INVITATION_LIFETIME, Invited
from app.accounts.sessions import PortalUser
from app.accounts.tokens import new_token
from app.db import Database
from app.errors import BadRequest, Conflict, NotFound, PermissionDenied
from app.privacy.deletion import request_deletion
from app.tables import ROLES, Invitation, Membership, User
from tests.factories import make_org, make_user

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
EMAIL = "new@customer.example"


@pytest.fixture
async def owner(database: Database) -> PortalUser:
    return await member(database, await make_org(database))


async def member(database: Database, org_id: UUID, role: str = "owner") -> PortalUser:
    user_id = await make_user(database, org_id, f"{role}@{org_id.hex}.example", role)
    return PortalUser(uuid4(), user_id, f"{role}@{org_id.hex}.example", org_id, "Acme", role)


async def guest(database: Database, email: str = EMAIL) -> UUID:
    return await make_user(database, await make_org(database, "Home"), email)


async def invite(
    database: Database, by: PortalUser, role: str = "developer", email: str = EMAIL
) -> tuple[Invited, str]:
    async with database.begin() as connection:
        invited = await invitations.invite(connection, by, email, role, NOW)
        told, inviter, token = await invitations.make_link(connection, invited.id, NOW)
    assert (told.id, told.expires_at, inviter) == (invited.id, invited.expires_at, by.email)
    return invited, token.text


async def test_an_invitation_is_accepted_once(database: Database, owner: PortalUser) -> None:
    invited, token = await invite(database, owner, email=EMAIL.upper())
    user_id = await guest(database)
    async with database.begin() as connection:
        assert await invitations.find_invitation(connection, token, NOW) == invited
        assert await invitations.accept(connection, user_id, EMAIL, token, NOW) == invited
        role = select(Membership.role).where(Membership.org_id == owner.org_id, Membership.user_id == user_id)
        assert (await connection.execute(role)).scalar_one() == "developer"
        with pytest.raises(NotFound):
            await invitations.accept(connection, user_id, EMAIL, token, NOW)


async def test_it_is_of_no_use_to_another_address(database: Database, owner: PortalUser) -> None:
    _, token = await invite(database, owner)
    user_id = await guest(database, "else@customer.example")
    async with database.begin() as connection:
        with pytest.raises(PermissionDenied):
            await invitations.accept(connection, user_id, "else@customer.example", token, NOW)
        await invitations.find_invitation(connection, token, NOW)


async def test_it_lasts_a_week(database: Database, owner: PortalUser) -> None:
    _, token = await invite(database, owner)
    user_id, end = await guest(database), NOW + INVITATION_LIFETIME
    async with database.begin() as connection:
        await invitations.find_invitation(connection, token, end - timedelta(seconds=1))
        assert await invitations.list_invitations(connection, owner.org_id, end) == []
        with pytest.raises(NotFound):
            await invitations.accept(connection, user_id, EMAIL, token, end)
        assert await invitations.delete_expired_invitations(connection, end - timedelta(seconds=1)) == 0
        assert await invitations.delete_expired_invitations(connection, end) == 1


async def test_a_second_invitation_replaces_the_first(database: Database, owner: PortalUser) -> None:
    first, old = await invite(database, owner)
    second, new = await invite(database, owner, "viewer")
    assert first.id == second.id
    async with database.begin() as connection:
        assert await invitations.list_invitations(connection, owner.org_id, NOW) == [second]
        assert (await invitations.find_invitation(connection, new, NOW)).role == "viewer"
        with pytest.raises(NotFound):
            await invitations.find_invitation(connection, old, NOW)


async def test_a_second_mail_takes_the_place_of_the_first(database: Database, owner: PortalUser) -> None:
    invited, first = await invite(database, owner)
    async with database.begin() as connection:
        _, _, second = await invitations.make_link(connection, invited.id, NOW)
        with pytest.raises(NotFound):
            await invitations.find_invitation(connection, first, NOW)
        assert await invitations.find_invitation(connection, second.text, NOW) == invited
        with pytest.raises(NotFound):
            await invitations.make_link(connection, invited.id, NOW + INVITATION_LIFETIME)


async def test_the_inviter_may_be_gone(database: Database, owner: PortalUser) -> None:
    admin = await member(database, owner.org_id, "admin")
    invited, _ = await invite(database, admin)
    async with database.begin() as connection:
        await connection.execute(delete(User).where(User.id == admin.user_id))
        assert (await invitations.make_link(connection, invited.id, NOW))[1] == "Acme"


async def test_no_token_is_in_the_database(database: Database, owner: PortalUser) -> None:
    _, token = await invite(database, owner)
    async with database.begin() as connection:
        assert token not in str((await connection.execute(select(Invitation))).all())


@pytest.mark.parametrize("by", ROLES)
@pytest.mark.parametrize("role", ROLES)
async def test_only_who_may_give_a_role_invites_with_it(database: Database, by: str, role: str) -> None:
    inviter = await member(database, await make_org(database), by)
    if by == "owner" or (by == "admin" and role != "owner"):
        assert (await invite(database, inviter, role))[0].role == role
        return
    with pytest.raises(PermissionDenied):
        await invite(database, inviter, role)


async def test_an_admin_cannot_withdraw_an_owners_invitation(database: Database, owner: PortalUser) -> None:
    admin = await member(database, owner.org_id, "admin")
    invited, token = await invite(database, owner, "owner")
    async with database.begin() as connection:
        with pytest.raises(PermissionDenied):
            await invitations.withdraw(connection, admin, invited.id)
        assert await invitations.withdraw(connection, owner, invited.id) == invited
        with pytest.raises(NotFound):
            await invitations.withdraw(connection, owner, invited.id)
        with pytest.raises(NotFound):
            await invitations.find_invitation(connection, token, NOW)


async def test_an_admin_cannot_replace_an_owners_invitation(database: Database, owner: PortalUser) -> None:
    admin = await member(database, owner.org_id, "admin")
    invited, token = await invite(database, owner, "owner")
    with pytest.raises(PermissionDenied):
        await invite(database, admin, "viewer")
    async with database.begin() as connection:
        assert await invitations.find_invitation(connection, token, NOW) == invited
    assert (await invite(database, owner, "viewer"))[0].role == "viewer"
    assert (await invite(database, admin, "billing"))[0].role == "billing"


async def test_nobody_joins_an_organisation_that_is_being_deleted(database: Database, owner: PortalUser) -> None:
    _, token = await invite(database, owner)
    user_id = await guest(database)
    async with database.begin() as connection:
        await request_deletion(connection, owner.org_id, NOW)
        with pytest.raises(NotFound):
            await invitations.find_invitation(connection, token, NOW)
        with pytest.raises(NotFound):
            await invitations.accept(connection, user_id, EMAIL, token, NOW)


async def test_an_invitation_of_others_is_not_there(database: Database, owner: PortalUser) -> None:
    other = await member(database, await make_org(database, "Globex"))
    invited, _ = await invite(database, other)
    async with database.begin() as connection:
        with pytest.raises(NotFound):
            await invitations.withdraw(connection, owner, invited.id)
        assert await invitations.list_invitations(connection, owner.org_id, NOW) == []


@pytest.mark.parametrize(("email", "role"), [("nonsense", "viewer"), (EMAIL, "emperor")])
async def test_an_invitation_needs_an_address_and_a_role(
    database: Database, owner: PortalUser, email: str, role: str
) -> None:
    with pytest.raises(BadRequest):
        await invite(database, owner, role, email)


async def test_a_member_is_not_invited_again(database: Database, owner: PortalUser) -> None:
    with pytest.raises(Conflict):
        await invite(database, owner, email=owner.email)


async def test_who_became_a_member_otherwise_keeps_their_role(database: Database, owner: PortalUser) -> None:
    _, token = await invite(database, owner, "owner")
    user_id = await guest(database)
    async with database.begin() as connection:
        row = {"org_id": owner.org_id, "user_id": user_id, "role": "viewer"}
        await connection.execute(insert(Membership).values(row))
        await invitations.accept(connection, user_id, EMAIL, token, NOW)
        role = select(Membership.role).where(Membership.org_id == owner.org_id, Membership.user_id == user_id)
        assert (await connection.execute(role)).scalar_one() == "viewer"


async def test_open_invitations_are_limited(database: Database, owner: PortalUser) -> None:
    async with database.begin() as connection:
        for number in range(invitations.MAX_OPEN):
            await connection.execute(insert(Invitation).values(_row(owner, f"{number}@customer.example")))
    with pytest.raises(Conflict):
        await invite(database, owner)
    await invite(database, owner, email="7@customer.example")


async def test_of_two_who_accept_at_once_one_joins(database: Database, owner: PortalUser) -> None:
    _, token = await invite(database, owner)
    user_id = await guest(database)

    async def accept() -> Invited:
        async with database.begin() as connection:
            return await invitations.accept(connection, user_id, EMAIL, token, NOW)

    results = await asyncio.gather(accept(), accept(), return_exceptions=True)
    assert sorted(type(result).__name__ for result in results) == ["Invited", "NotFound"]
    async with database.begin() as connection:
        assert await _num_members(connection, owner.org_id) == 2


async def _num_members(connection: AsyncConnection, org_id: UUID) -> int:
    statement = select(func.count()).where(Membership.org_id == org_id)
    return (await connection.execute(statement)).scalar_one()


def _row(owner: PortalUser, email: str) -> dict[str, object]:
    return {
        "org_id": owner.org_id,
        "email": email,
        "role": "viewer",
        "token_hash": new_token().hash,
        "expires_at": NOW + INVITATION_LIFETIME,
    }
