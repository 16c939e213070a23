"""What each role may do: one table that every page and every action asks.

A permission is ``noun.verb``. The table is in code, not in the database, so that a role
means the same everywhere and a change of it is reviewed.
"""

from typing import Protocol

from app.errors import PermissionDenied

_VIEWER = frozenset({"overview.read", "usage.read"})
_DEVELOPER = _VIEWER | {"keys.read", "keys.write", "playground.use"}
_BILLING = _VIEWER | {"billing.read", "billing.write", "limits.read", "limits.write", "members.read"}
_ADMIN = _DEVELOPER | _BILLING | {"members.write", "audit.read", "settings.read", "settings.write"}
_OWNER = _ADMIN | {"owners.write", "org.delete"}

PERMISSIONS: dict[str, frozenset[str]] = {
    "owner": _OWNER,
    "admin": _ADMIN,
    "billing": _BILLING,
    "developer": _DEVELOPER,
    "viewer": _VIEWER,
}
"""By role. ``owners.write`` makes and unmakes owners; ``org.delete`` ends the organisation."""


class Member(Protocol):
    """Somebody with a role in an organisation."""

    @property
    def role(self) -> str:
        """One of ``app.tables.ROLES``."""
        ...


def allows(role: str, permission: str) -> bool:
    """Whether people of this role have the permission; nobody has one that is in no role's list.

    Raises:
        KeyError: There is no such role.
    """
    return permission in PERMISSIONS[role]


def require(member: Member, permission: str) -> None:
    """Passes if the role of ``member`` has the permission.

    Raises:
        PermissionDenied: It has not.
    """
    if not allows(member.role, permission):
        raise role_not_allowed()


def role_not_allowed() -> PermissionDenied:
    """What somebody is told whose role lacks a permission."""
    return PermissionDenied("Your role in this organisation does not allow this.", code="role_not_allowed")
