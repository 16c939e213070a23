"""Who looks at a page, and whether they may.

What a page shows belongs to the organisation of the session that it was asked with;
there is no id of an organisation in any address to guess.
"""

from datetime import UTC, datetime

from fastapi import Request

from app import auth
from app.auth import PortalUser
from app.config import Settings
from app.db import Database
from app.errors import AuthenticationFailed, PermissionDenied
from app.portal.forms import SESSION_COOKIE

_EVERYBODY = frozenset({"overview.read", "usage.read", "limits.read", "settings.read"})
_MONEY = frozenset({"billing.read", "billing.write", "limits.write", "members.read"})
_KEYS = frozenset({"keys.read", "keys.write"})
_ALL = _EVERYBODY | _MONEY | _KEYS | {"members.write", "audit.read", "settings.write"}
_PERMISSIONS = {
    "owner": _ALL | {"org.delete"},
    "admin": _ALL,
    "billing": _EVERYBODY | _MONEY,
    "developer": _EVERYBODY | _KEYS,
    "viewer": _EVERYBODY,
}


def permits(role: str, permission: str) -> bool:
    """Whether somebody of this role may do it; an unknown role may nothing."""
    return permission in _PERMISSIONS.get(role, ())


async def find_user(request: Request) -> PortalUser | None:
    """The person whose session the request carries; None: nobody is signed in."""
    token = request.cookies.get(SESSION_COOKIE)
    if token is None:
        return None
    async with database_of(request).begin() as connection:
        user = await auth.find_session(connection, token, datetime.now(UTC))
    request.state.user = user
    return user


async def require_user(request: Request, permission: str) -> PortalUser:
    """The person whose session the request carries, who may do what is asked.

    Raises:
        AuthenticationFailed: Nobody is signed in.
        PermissionDenied: Their role does not allow it.
    """
    user = await find_user(request)
    if user is None:
        raise AuthenticationFailed("Please sign in.", code="sign_in_required")
    if not permits(user.role, permission):
        raise PermissionDenied("Your role in this organisation does not allow this.", code="role_not_allowed")
    return user


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
