"""Who looks at a page, and whether they may.

What a page shows belongs to the organisation of the session that it was asked with;
there is no id of an organisation in any address to guess.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from fastapi import Request
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.datastructures import FormData

from app import audit
from app.accounts import permissions, sessions
from app.accounts.hashing import Hashing
from app.accounts.orgs import orgs_of
from app.accounts.sessions import SESSION_COOKIE, Device, Person, PortalUser
from app.auth import caller_ip
from app.config import Settings
from app.db import Database
from app.errors import AuthenticationFailed
from app.portal.forms import FORM_COOKIE, read_form
from app.telemetry import request_id


async def find_user(request: Request) -> PortalUser | None:
    """The person whose session the request carries; None: nobody is signed in, or they belong nowhere."""
    person = await find_person(request)
    return person if isinstance(person, PortalUser) else None


async def find_person(request: Request) -> Person | None:
    """The person whose session the request carries, whether they belong to an organisation or not."""
    token = request.cookies.get(SESSION_COOKIE)
    if token is None:
        return None
    async with database_of(request).begin() as connection:
        person = await sessions.find_person(connection, token, datetime.now(UTC))
    request.state.user = person if isinstance(person, PortalUser) else None
    return person


async def require_person(request: Request) -> Person:
    """The person whose session the request carries; they need not belong to an organisation.

    Raises:
        AuthenticationFailed: Nobody is signed in.
    """
    await _wait_for_form(request)
    person = await find_person(request)
    if person is None:
        raise AuthenticationFailed("Please sign in.", code="sign_in_required")
    return person


async def require_user(request: Request, permission: str | None) -> PortalUser:
    """The person whose session the request carries, who may do what is asked.

    Args:
        request: The request.
        permission: Of ``app.accounts.permissions``; None: every member may.

    Raises:
        AuthenticationFailed: Nobody is signed in.
        PermissionDenied: Their role does not allow it.
    """
    await _wait_for_form(request)
    user = await find_user(request)
    if user is None:
        raise AuthenticationFailed("Please sign in.", code="sign_in_required")
    if permission is not None:
        permissions.require(user, permission)
    return user


async def read_form_of(request: Request, person: Person | None) -> FormData:
    """As ``forms.read_form``, of a page that is shown to people with and without an organisation.

    Raises:
        PermissionDenied: The form is not genuine.
    """
    return await read_form(request, SESSION_COOKIE if isinstance(person, PortalUser) else FORM_COOKIE)


async def note(
    request: Request,
    connection: AsyncConnection,
    user: PortalUser,
    action: str,
    target: str,
    *,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
) -> None:
    """Writes into the audit log what a person does; the last step of its transaction (``audit.record``).

    Args:
        request: Whose address and id are kept with it.
        connection: The transaction of what is done.
        user: Who does it, in their organisation.
        action: ``noun.verb``.
        target: ``kind:id``.
        before: What was; never a secret.
        after: What is now, likewise.
    """
    await audit.record(
        connection,
        org_id=user.org_id,
        actor=f"user:{user.user_id}",
        action=action,
        target=target,
        before=before,
        after=after,
        ip=caller_ip(request),
        request_id=_request_id(),
    )


async def note_person(
    request: Request,
    connection: AsyncConnection,
    person_id: UUID,
    action: str,
    *,
    target: str | None = None,
    after: Mapping[str, Any] | None = None,
) -> None:
    """Writes what a person does with their own account into the log of every organisation they belong to.

    Args:
        request: Whose address and id are kept with it.
        connection: The transaction of what is done; this is its last step.
        person_id: Who does it.
        action: ``noun.verb``.
        target: ``kind:id``; None: the person.
        after: What is now; never a secret.
    """
    for belonging in await orgs_of(connection, person_id):
        await audit.record(
            connection,
            org_id=belonging.org_id,
            actor=f"user:{person_id}",
            action=action,
            target=target or f"user:{person_id}",
            after=after,
            ip=caller_ip(request),
            request_id=_request_id(),
        )


def settings_of(request: Request) -> Settings:
    """The settings of the process that answers."""
    settings: Settings = request.app.state.settings
    return settings


def database_of(request: Request) -> Database:
    """The database of the process that answers."""
    database: Database = request.app.state.database
    return database


def hashing_of(request: Request) -> Hashing:
    """What hashes passwords in the process that answers."""
    hashing: Hashing = request.app.state.hashing
    return hashing


def device_of(request: Request) -> Device:
    """What a login is recognised by later."""
    return Device(caller_ip(request), request.headers.get("user-agent"))


async def _wait_for_form(request: Request) -> None:
    # Whoever loses their role while their form is on its way, however slowly, has lost it.
    if request.method == "POST":
        await request.form()


def _request_id() -> UUID:
    current = request_id.get()
    assert current is not None  # RequestMiddleware is outermost
    return UUID(current)
