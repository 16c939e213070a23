"""Who belongs to an organisation, and as what. Each has at least one owner, whatever happens at once."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import delete, exists, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from app.accounts.permissions import require
from app.accounts.sessions import PortalUser
from app.errors import BadRequest, Conflict, NotFound
from app.tables import ROLES, Membership, Org, SecondFactor, User

OWNER = "owner"


@dataclass(frozen=True, slots=True)
class Member:
    """A person in an organisation.

    Attributes:
        has_second_factor: So that owners see whose account a password alone opens.
    """

    user_id: UUID
    email: str
    role: str
    joined_at: datetime
    has_second_factor: bool


async def list_members(connection: AsyncConnection, org_id: UUID) -> list[Member]:
    """The members of an organisation, in the order of joining."""
    has_factor = exists().where(SecondFactor.user_id == User.id, SecondFactor.confirmed_at.is_not(None))
    statement = (
        select(User.id, User.email, Membership.role, Membership.created_at, has_factor)
        .join_from(Membership, User, User.id == Membership.user_id)
        .where(Membership.org_id == org_id)
        .order_by(Membership.created_at, User.id)
    )
    return [Member(*row) for row in await connection.execute(statement)]


async def change_role(connection: AsyncConnection, by: PortalUser, user_id: UUID, role: str) -> str:
    """Gives a member of ``by``'s organisation another role; returns the one that it replaces.

    Raises:
        PermissionDenied: ``by`` may not change members, or it makes or unmakes an owner and ``by`` is none.
        BadRequest: There is no such role.
        NotFound: Nobody of this id is a member.
        Conflict: The organisation would be left without an owner.
    """
    checked_role(role)
    old = await _locked_role(connection, by.org_id, user_id)
    require_hand_over(by, old, role)
    if old == OWNER and role != OWNER:
        await _require_other_owner(connection, by.org_id)
    mine = (Membership.org_id == by.org_id, Membership.user_id == user_id)
    await connection.execute(update(Membership).where(*mine).values(role=role))
    return old


async def remove_member(connection: AsyncConnection, by: PortalUser, user_id: UUID) -> str:
    """Ends a membership in ``by``'s organisation; returns the role that it was. Everybody may leave.

    Raises:
        PermissionDenied: It is somebody else, and ``by`` may not change members or no owners.
        NotFound: Nobody of this id is a member.
        Conflict: The organisation would be left without an owner.
    """
    old = await _locked_role(connection, by.org_id, user_id)
    if user_id != by.user_id:
        require_hand_over(by, old)
    if old == OWNER:
        await _require_other_owner(connection, by.org_id)
    mine = (Membership.org_id == by.org_id, Membership.user_id == user_id)
    await connection.execute(delete(Membership).where(*mine))
    return old


def checked_role(role: str) -> str:
    """The role as it is.

    Raises:
        BadRequest: It is not one.
    """
    if role not in ROLES:
        raise BadRequest("There is no such role.", param="role")
    return role


def require_hand_over(by: PortalUser, *roles: str) -> None:
    """Passes if ``by`` may give and take these roles.

    Raises:
        PermissionDenied: Not, or not that of an owner.
    """
    require(by, "members.write")
    if OWNER in roles:
        require(by, "owners.write")


async def _locked_role(connection: AsyncConnection, org_id: UUID, user_id: UUID) -> str:
    # One change of an organisation's members at a time: two owners cannot unmake each other.
    await connection.execute(select(Org.id).where(Org.id == org_id).with_for_update(key_share=True))
    statement = select(Membership.role).where(Membership.org_id == org_id, Membership.user_id == user_id)
    role = (await connection.execute(statement)).scalar_one_or_none()
    if role is None:
        raise NotFound("There is no such member in this organisation.", code="member_not_found")
    return role


async def _require_other_owner(connection: AsyncConnection, org_id: UUID) -> None:
    statement = select(func.count()).where(Membership.org_id == org_id, Membership.role == OWNER)
    if (await connection.execute(statement)).scalar_one() < 2:
        raise Conflict("An organisation needs an owner. Make somebody else an owner first.", code="last_owner")
