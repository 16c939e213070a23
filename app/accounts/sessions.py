"""Logins: which person a cookie stands for, until when, and which organisation they look at.

A session lives in the database and nowhere else, so it ends when its row does. Its token
is new at each login and after each step that raises what it is worth: a cookie that
somebody planted before is worth nothing afterwards.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Row, Select, and_, delete, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from app.accounts.tokens import hash_token, new_token
from app.errors import NotFound
from app.tables import Membership, Org, PortalSession, User, new_id

SESSION_COOKIE = "tollgate_session"
SESSION_LIFETIME = timedelta(days=7)
IDLE_LIFETIME = timedelta(days=3)
"""A session that nobody used for so long ends: a weekend signs nobody out, a forgotten browser does not stay in."""
CODE_LIFETIME = timedelta(minutes=10)
"""How long the second factor is waited for after the password."""
SEEN_INTERVAL = timedelta(minutes=5)
MAX_USER_AGENT = 200


@dataclass(frozen=True, slots=True)
class Device:
    """Where a login comes from, as far as the request tells."""

    ip: str | None = None
    user_agent: str | None = None


NOWHERE = Device()


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody who is logged in."""

    session_id: UUID
    user_id: UUID
    email: str


@dataclass(frozen=True, slots=True)
class PortalUser(Person):
    """A logged-in person and the organisation they are looking at."""

    org_id: UUID
    org_name: str
    role: str


@dataclass(frozen=True, slots=True)
class OpenSession:
    """A login as its owner is shown it."""

    id: UUID
    created_at: datetime
    last_seen_at: datetime | None
    expires_at: datetime
    ip: str | None
    user_agent: str | None


async def open_session(
    connection: AsyncConnection,
    user_id: UUID,
    now: datetime,
    device: Device = NOWHERE,
    *,
    org_id: UUID | None = None,
    awaits_code: bool = False,
) -> str:
    """Logs a person in for 7 days, less if they do not come back in 3; returns the cookie's token.

    Args:
        connection: An open transaction.
        user_id: Whose password was right.
        now: Aware.
        device: To be recognised by in the list of sessions.
        org_id: What to look at first; None: the organisation that was joined first.
        awaits_code: The second factor comes next: 10 minutes, and nothing but that is allowed.
    """
    token = new_token()
    values = {
        "id": new_id(),
        "token_hash": token.hash,
        "user_id": user_id,
        "created_at": now,
        "last_seen_at": now,
        "expires_at": now + (CODE_LIFETIME if awaits_code else SESSION_LIFETIME),
        "org_id": org_id,
        "ip": device.ip,
        "user_agent": device.user_agent and device.user_agent[:MAX_USER_AGENT],
        "awaits_code": awaits_code,
    }
    await connection.execute(insert(PortalSession).values(values))
    return token.text


async def find_session(connection: AsyncConnection, token: str, now: datetime) -> PortalUser | None:
    """The person behind a cookie's token and the organisation they look at; None also if they belong to none."""
    person = await find_person(connection, token, now)
    return person if isinstance(person, PortalUser) else None


async def find_person(connection: AsyncConnection, token: str, now: datetime) -> Person | None:
    """The person behind a cookie's token; a ``PortalUser`` if they belong to any organisation.

    Dates when the session was last seen, every few minutes.
    """
    statement = _found().where(PortalSession.token_hash == hash_token(token), ~_is_over(now))
    row = (await connection.execute(statement)).one_or_none()
    if row is None:
        return None
    if row.last_seen_at is None or row.last_seen_at <= now - SEEN_INTERVAL:
        seen = update(PortalSession).where(PortalSession.id == row.session_id).values(last_seen_at=now)
        await connection.execute(seen)
    return _person(row)


async def find_awaiting(connection: AsyncConnection, token: str, now: datetime) -> UUID | None:
    """The id of the person whose second factor this login waits for."""
    statement = select(PortalSession.user_id).where(
        PortalSession.token_hash == hash_token(token), PortalSession.awaits_code, PortalSession.expires_at > now
    )
    return (await connection.execute(statement)).scalar_one_or_none()


async def choose_org(connection: AsyncConnection, person: Person, org_id: UUID) -> None:
    """Lets the session look at another organisation.

    Raises:
        NotFound: The person does not belong to it, or it does not exist.
    """
    belongs = (
        select(Membership.org_id)
        .join(Org, Org.id == Membership.org_id)
        .where(Membership.org_id == org_id, Membership.user_id == person.user_id, Org.delete_at.is_(None))
    )
    if (await connection.execute(belongs)).one_or_none() is None:
        raise NotFound("You do not belong to this organisation.", code="organization_not_found")
    chosen = update(PortalSession).where(PortalSession.id == person.session_id).values(org_id=org_id)
    await connection.execute(chosen)


async def reload(connection: AsyncConnection, person: Person) -> PortalUser:
    """The same session as it is now, of a person who belongs to an organisation."""
    statement = _found().where(PortalSession.id == person.session_id)
    found = _person((await connection.execute(statement)).one())
    assert isinstance(found, PortalUser)
    return found


async def list_sessions(connection: AsyncConnection, user_id: UUID, now: datetime) -> list[OpenSession]:
    """A person's logins, the one seen last first."""
    columns = (
        PortalSession.id,
        PortalSession.created_at,
        PortalSession.last_seen_at,
        PortalSession.expires_at,
        PortalSession.ip,
        PortalSession.user_agent,
    )
    statement = (
        select(*columns)
        .where(PortalSession.user_id == user_id, ~_is_over(now), ~PortalSession.awaits_code)
        .order_by(PortalSession.last_seen_at.desc().nulls_last(), PortalSession.id)
    )
    rows = await connection.execute(statement)
    return [OpenSession(*row[:4], ip=row.ip and str(row.ip), user_agent=row.user_agent) for row in rows]


async def close_session(connection: AsyncConnection, token: str) -> None:
    """Logs out; a token that is not known changes nothing."""
    await connection.execute(delete(PortalSession).where(PortalSession.token_hash == hash_token(token)))


async def end_session(connection: AsyncConnection, user_id: UUID, session_id: UUID) -> None:
    """Ends one login of a person.

    Raises:
        NotFound: The person has no such login.
    """
    ended = delete(PortalSession).where(PortalSession.id == session_id, PortalSession.user_id == user_id)
    if not (await connection.execute(ended)).rowcount:
        raise NotFound("This session has ended already.", code="session_not_found")


async def end_sessions(connection: AsyncConnection, user_id: UUID, keep: UUID | None = None) -> int:
    """Ends every login of a person but ``keep``; returns how many."""
    ended = delete(PortalSession).where(PortalSession.user_id == user_id)
    if keep is not None:
        ended = ended.where(PortalSession.id != keep)
    return (await connection.execute(ended)).rowcount


async def delete_expired_sessions(connection: AsyncConnection, now: datetime) -> int:
    """Removes logins that have ended; returns how many."""
    result = await connection.execute(delete(PortalSession).where(_is_over(now)))
    return result.rowcount


def _is_over(now: datetime) -> ColumnElement[bool]:
    seen_at = func.coalesce(PortalSession.last_seen_at, PortalSession.created_at)
    return or_(PortalSession.expires_at <= now, seen_at <= now - IDLE_LIFETIME)


def _found() -> Select[*tuple[Any, ...]]:
    # The organisation that was chosen comes first, then the one that was joined first.
    return (
        select(
            PortalSession.id.label("session_id"),
            PortalSession.last_seen_at,
            User.id.label("user_id"),
            User.email,
            Org.id.label("org_id"),
            Org.name,
            Membership.role,
        )
        .join_from(PortalSession, User, User.id == PortalSession.user_id)
        .outerjoin(Membership, Membership.user_id == User.id)
        # One that is being deleted is nobody's any more.
        .outerjoin(Org, and_(Org.id == Membership.org_id, Org.delete_at.is_(None)))
        .where(~PortalSession.awaits_code)
        .order_by(Org.id.is_(None), (Org.id == PortalSession.org_id).desc().nulls_last(), Membership.created_at, Org.id)
        .limit(1)
    )


def _person(row: Row[*tuple[Any, ...]]) -> Person:
    if row.org_id is None:
        return Person(row.session_id, row.user_id, row.email)
    return PortalUser(row.session_id, row.user_id, row.email, row.org_id, row.name, row.role)
