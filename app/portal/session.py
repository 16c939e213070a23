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

from app import audit
from app.accounts import permissions, sessions
from app.accounts.sessions import PortalUser
from app.config import Settings
from app.db import Database
from app.errors import AuthenticationFailed
from app.portal.forms import SESSION_COOKIE
from app.telemetry import request_id


async def find_user(request: Request) -> PortalUser | None:
    """The person whose session the request carries; None: nobody is signed in."""
    token = request.cookies.get(SESSION_COOKIE)
    if token is None:
        return None
    async with database_of(request).begin() as connection:
        user = await sessions.find_session(connection, token, datetime.now(UTC))
    request.state.user = user
    return user


async def require_user(request: Request, permission: str | None) -> PortalUser:
    """The person whose session the request carries, who may do what is asked.

    Args:
        request: The request.
        permission: Of ``app.accounts.permissions``; None: every member may.

    Raises:
        AuthenticationFailed: Nobody is signed in.
        PermissionDenied: Their role does not allow it.
    """
    user = await find_user(request)
    if user is None:
        raise AuthenticationFailed("Please sign in.", code="sign_in_required")
    if permission is not None:
        permissions.require(user, permission)
    return user


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
    current = request_id.get()
    assert current is not None  # RequestMiddleware is outermost
    await audit.record(
        connection,
        org_id=user.org_id,
        actor=f"user:{user.user_id}",
        action=action,
        target=target,
        before=before,
        after=after,
        ip=host_of(request) or None,
        request_id=UUID(current),
    )


def settings_of(request: Request) -> Settings:
    """The settings of the process that answers."""
    settings: Settings = request.app.state.settings
    return settings


def database_of(request: Request) -> Database:
    """The database of the process that answers."""
    database: Database = request.app.state.database
    return database


def host_of(request: Request) -> str:
    """The address of the caller; empty where there is none."""
    return request.client.host if request.client else ""
