"""Invitations: a role that waits in an organisation for whoever reads the mail of an address.

The link proves the address. It is of use only to the person of that address, who may
have to be made first.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import Select, delete, exists, func, select, true, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from app.accounts.members import OWNER, checked_role, require_hand_over
from app.accounts.permissions import allows, role_not_allowed
from app.accounts.sessions import PortalUser
from app.accounts.tokens import Token, hash_token, new_token
from app.accounts.users import checked_email
from app.errors import Conflict, NotFound, PermissionDenied
from app.tables import Invitation, Membership, Org, User, new_id

INVITATION_LIFETIME = timedelta(days=7)
_Select = Select[UUID, UUID, str, str, str, datetime]

MAX_OPEN = 100
"""Of an organisation; whoever needs more waits until some are accepted."""


@dataclass(frozen=True, slots=True)
class Invited:
    """An invitation that nobody has accepted."""

    id: UUID
    org_id: UUID
    org_name: str
    email: str
    role: str
    expires_at: datetime


async def invite(connection: AsyncConnection, by: PortalUser, email: str, role: str, now: datetime) -> Invited:
    """Invites an address into ``by``'s organisation for 7 days; a second time replaces the first.

    The link comes from ``make_link``.

    Raises:
        PermissionDenied: ``by`` may not give this role, or not take the one that waits there.
        BadRequest: It is no address or no role.
        Conflict: The person is a member already, or too many invitations are open.
    """
    require_hand_over(by, checked_role(role))
    address = checked_email(email)
    await _require_room(connection, by.org_id, address)
    values = {
        "id": new_id(),
        "org_id": by.org_id,
        "email": address,
        "role": role,
        "token_hash": new_token().hash,
        "invited_by": by.user_id,
        "created_at": now,
        "expires_at": now + INVITATION_LIFETIME,
    }
    made = insert(Invitation).values(values)
    renewed = {name: made.excluded[name] for name in values if name not in {"id", "org_id", "email"}}
    is_theirs_to_take = true() if allows(by.role, "owners.write") else Invitation.role != OWNER
    made = made.on_conflict_do_update(index_elements=["org_id", "email"], set_=renewed, where=is_theirs_to_take)
    id = (await connection.execute(made.returning(Invitation.id))).scalar_one_or_none()
    if id is None:
        raise role_not_allowed()
    return Invited(id, by.org_id, by.org_name, address, role, now + INVITATION_LIFETIME)


async def make_link(connection: AsyncConnection, id: UUID, now: datetime) -> tuple[Invited, str, Token]:
    """What a mail tells: the invitation, the name of who invites, and a token in the place of earlier ones.

    Raises:
        NotFound: It was accepted or withdrawn, or is too old.
    """
    token = new_token()
    renewed = update(Invitation).where(Invitation.id == id, Invitation.expires_at > now)
    inviter = select(User.email).where(User.id == Invitation.invited_by).scalar_subquery()
    renewed = renewed.values(token_hash=token.hash).returning(inviter)
    row = (await connection.execute(renewed)).one_or_none()
    if row is None:
        raise _used()
    invited = await find_invitation(connection, token.text, now)
    return invited, row[0] or invited.org_name, token


async def list_invitations(connection: AsyncConnection, org_id: UUID, now: datetime) -> list[Invited]:
    """The open invitations of an organisation, oldest first."""
    statement = _invited().where(Invitation.org_id == org_id, Invitation.expires_at > now)
    return [Invited(*row) for row in await connection.execute(statement.order_by(Invitation.id))]


async def withdraw(connection: AsyncConnection, by: PortalUser, id: UUID) -> Invited:
    """Takes an invitation of ``by``'s organisation back; its link is over.

    Raises:
        PermissionDenied: ``by`` may not take this role.
        NotFound: There is no such invitation.
    """
    row = (
        await connection.execute(_invited().where(Invitation.id == id, Invitation.org_id == by.org_id))
    ).one_or_none()
    if row is None:
        raise NotFound("This invitation was accepted or withdrawn already.", code="invitation_not_found")
    invited = Invited(*row)
    require_hand_over(by, invited.role)
    await connection.execute(delete(Invitation).where(Invitation.id == id))
    return invited


async def find_invitation(connection: AsyncConnection, token: str, now: datetime) -> Invited:
    """What a link invites to.

    Raises:
        NotFound: It was used, withdrawn, is too old, or never was.
    """
    return await _read(connection, _of_token(token, now))


async def accept(connection: AsyncConnection, user_id: UUID, email: str, token: str, now: datetime) -> Invited:
    """Makes the invited person a member; who is one already keeps their role.

    Args:
        connection: An open transaction.
        user_id: Who accepts.
        email: Their address.
        token: Of the link.
        now: Aware.

    Raises:
        NotFound: As ``find_invitation``; of two at once the second.
        PermissionDenied: The invitation is for another address.
    """
    # Locked: it is not accepted twice, nor while it is being withdrawn.
    invited = await _read(connection, _of_token(token, now).with_for_update(of=Invitation))
    if invited.email != email:
        raise PermissionDenied("This invitation is for another e-mail address.", code="other_address")
    await connection.execute(delete(Invitation).where(Invitation.id == invited.id))
    joined = insert(Membership).values(org_id=invited.org_id, user_id=user_id, role=invited.role)
    await connection.execute(joined.on_conflict_do_nothing())
    return invited


async def delete_expired_invitations(connection: AsyncConnection, now: datetime) -> int:
    """Forgets invitations that are over; returns how many."""
    return (await connection.execute(delete(Invitation).where(Invitation.expires_at <= now))).rowcount


async def _require_room(connection: AsyncConnection, org_id: UUID, email: str) -> None:
    is_member = exists().where(Membership.org_id == org_id, Membership.user_id == User.id, User.email == email)
    num_open = select(func.count()).where(Invitation.org_id == org_id, Invitation.email != email).scalar_subquery()
    row = (await connection.execute(select(is_member.label("is_member"), num_open.label("num_open")))).one()
    if row.is_member:
        raise Conflict("This person is a member already.", param="email", code="already_member")
    if row.num_open >= MAX_OPEN:
        raise Conflict("Too many invitations are open. Withdraw some first.", code="too_many_invitations")


def _invited() -> _Select:
    columns = (Invitation.id, Invitation.org_id, Org.name, Invitation.email, Invitation.role, Invitation.expires_at)
    return select(*columns).join_from(Invitation, Org, Org.id == Invitation.org_id)


def _of_token(token: str, now: datetime) -> _Select:
    # Nobody joins what is being deleted.
    found = _invited().where(Invitation.token_hash == hash_token(token), Invitation.expires_at > now)
    return found.where(Org.delete_at.is_(None))


async def _read(connection: AsyncConnection, statement: _Select) -> Invited:
    row = (await connection.execute(statement)).one_or_none()
    if row is None:
        raise _used()
    return Invited(*row)


def _used() -> NotFound:
    return NotFound("This link was used already, or it is too old.", code="link_expired")
