"""Who is calling: API keys, people's passwords and portal sessions.

A key is ``tg_live_`` + 30 random base-62 characters + 6 that hold their CRC-32, so
that a mistyped key is refused without asking the database and a leaked one can be
recognised anywhere. The database holds an HMAC-SHA256 under the pepper, never a key.

A key that was looked up is remembered for a moment (``app.key_cache``) and forgotten
within a second of its revocation, in every process. What a key may spend is decided in
``app.admission``, keys are made and ended in ``app.keys``.
"""

import hashlib
import hmac
import secrets
import string
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Annotated
from uuid import UUID

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from fastapi import Depends, Request
from sqlalchemy import delete, insert, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from app.config import Settings
from app.db import Database
from app.errors import AuthenticationFailed, BadRequest, Conflict, PermissionDenied
from app.key_cache import KeyCache
from app.tables import ROLES, Membership, Org, OrgBudget, PortalSession, User, new_id

Network = IPv4Network | IPv6Network

KEY_PREFIX = "tg_live_"
DEFAULT_SCOPES = ("generation", "classification", "embedding", "usage")
"""Those of a key without a choice."""
SCOPES = (*DEFAULT_SCOPES, "keys")
"""What a key may be limited to. ``keys`` manages every key of the organisation: only by choice."""
SESSION_LIFETIME = timedelta(days=7)
MAX_NAME_LENGTH = 100
MIN_PASSWORD_LENGTH = 10

_ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase
_SECRET_LENGTH = 30
_CHECKSUM_LENGTH = 6
_KEY_LENGTH = len(KEY_PREFIX) + _SECRET_LENGTH + _CHECKSUM_LENGTH
# argon2-cffi's defaults are RFC 9106's low-memory profile.
_PASSWORDS = PasswordHasher()

_FIND_KEY = text(
    "SELECT k.id, k.org_id, k.scopes, k.requests_per_minute, k.tokens_per_minute, k.expires_at, k.revoked_at,"
    " k.allowed_models, k.ip_allow, o.status AS org_status, COALESCE(ob.plan, '') AS plan,"
    " b.requests_level, b.tokens_level, b.updated_at AS bucket_updated_at"
    " FROM api_keys k JOIN orgs o ON o.id = k.org_id JOIN rate_buckets b ON b.key_id = COALESCE(k.bucket_id, k.id)"
    " LEFT JOIN org_budgets ob ON ob.org_id = k.org_id"
    " WHERE k.key_hash = :key_hash"
)


@dataclass(frozen=True, slots=True)
class Key:
    """The key behind a request, as the database held it a moment ago.

    Attributes:
        plan: The organisation's; empty where it has no budget, and then admission refuses it.
        requests_per_minute: The key's own limit; None: the plan's.
        tokens_per_minute: Likewise.
        requests_level: What its bucket of requests held at ``bucket_updated_at``.
        tokens_level: Likewise for tokens.
        expires_at: From then on it is refused; None: never.
        allowed_models: Names; None: every model.
        ip_allow: Where it may be used from; empty: from anywhere.
    """

    id: UUID
    org_id: UUID
    plan: str
    scopes: frozenset[str]
    requests_per_minute: int | None
    tokens_per_minute: int | None
    requests_level: float
    tokens_level: float
    bucket_updated_at: datetime
    expires_at: datetime | None = None
    allowed_models: frozenset[str] | None = None
    ip_allow: tuple[Network, ...] = ()

    def require(self, scope: str) -> None:
        """Passes if the key has ``scope``.

        Raises:
            PermissionDenied: It has not.
        """
        if scope not in self.scopes:
            raise PermissionDenied(f"This API key does not have the scope '{scope}'.")

    def may_use(self, model: str) -> bool:
        """Whether its list of models, if it has one, names ``model``."""
        return self.allowed_models is None or model in self.allowed_models

    def require_model(self, model: str) -> None:
        """Passes if the key may use ``model``, which need not exist.

        Raises:
            PermissionDenied: It may not.
        """
        if not self.may_use(model):
            raise PermissionDenied(
                f"This API key may not use the model '{model}'.", param="model", code="model_not_allowed"
            )

    def require_present(self, now: datetime) -> None:
        """Passes before the key's end.

        Raises:
            AuthenticationFailed: It has expired.
        """
        if self.expires_at is not None and self.expires_at <= now:
            raise _invalid_key()

    def require_host(self, host: str | None) -> None:
        """Passes if the key may be used from ``host``, an IP address; None where there is none.

        Raises:
            PermissionDenied: It may not.
        """
        if self.ip_allow and not _is_in(host, self.ip_allow):
            raise PermissionDenied("This API key may not be used from this address.", code="ip_not_allowed")


@dataclass(frozen=True, slots=True)
class PortalUser:
    """A logged-in person and the organisation they are looking at."""

    user_id: UUID
    email: str
    org_id: UUID
    org_name: str
    role: str


def generate_key() -> str:
    """A new key: 178 random bits and their checksum."""
    secret = "".join(secrets.choice(_ALPHABET) for _ in range(_SECRET_LENGTH))
    return KEY_PREFIX + secret + _checksum(secret)


def is_well_formed(key: str) -> bool:
    """Whether prefix, alphabet, length and checksum are those of a key."""
    if len(key) != _KEY_LENGTH or not key.isascii() or not key.startswith(KEY_PREFIX):
        return False
    secret, checksum = key[len(KEY_PREFIX) : -_CHECKSUM_LENGTH], key[-_CHECKSUM_LENGTH:]
    return hmac.compare_digest(checksum, _checksum(secret))


def hash_key(key: str, pepper: str) -> bytes:
    """HMAC-SHA256 of the key under the pepper, 32 bytes."""
    return hmac.digest(pepper.encode(), key.encode(), "sha256")


async def require_key(request: Request) -> Key:
    """The key that the request's ``Authorization`` header names.

    Raises:
        AuthenticationFailed: Missing, malformed, unknown, expired or revoked.
        PermissionDenied: Its organisation is suspended, or it is used from elsewhere than it may.
        DatabaseUnavailable: It cannot be looked up; never a 401.
    """
    token = _bearer_token(request.headers.get("authorization"))
    if not is_well_formed(token):
        raise _invalid_key()
    key = await _known_key(request, token)
    key.require_present(datetime.now(UTC))
    key.require_host(request.client.host if request.client else None)
    return key


RequiredKey = Annotated[Key, Depends(require_key)]


async def find_key(connection: AsyncConnection, key: str, pepper: str, now: datetime | None = None) -> Key:
    """The row of ``key`` if it may be used at ``now`` (default: the present).

    Raises:
        AuthenticationFailed: Unknown, expired or revoked.
        PermissionDenied: Its organisation is suspended.
    """
    row = (await connection.execute(_FIND_KEY, {"key_hash": hash_key(key, pepper)})).one_or_none()
    if row is None or row.revoked_at is not None:
        raise _invalid_key()
    found = Key(
        id=row.id,
        org_id=row.org_id,
        plan=row.plan,
        scopes=frozenset(row.scopes),
        requests_per_minute=row.requests_per_minute,
        tokens_per_minute=row.tokens_per_minute,
        requests_level=row.requests_level,
        tokens_level=row.tokens_level,
        bucket_updated_at=row.bucket_updated_at,
        expires_at=row.expires_at,
        allowed_models=None if row.allowed_models is None else frozenset(row.allowed_models),
        ip_allow=tuple(row.ip_allow or ()),
    )
    found.require_present(now or datetime.now(UTC))
    if row.org_status != "active":
        raise PermissionDenied("The organisation of this API key is suspended.", code="organization_suspended")
    return found


async def create_org(connection: AsyncConnection, name: str, plan: str = "free") -> UUID:
    """A new, active organisation with a budget that nothing limits but its plan.

    Args:
        connection: An open transaction.
        name: 1 to 100 printable characters.
        plan: Of the catalogue; ``internal`` for an organisation of the operator's own.

    Raises:
        BadRequest: The name is empty or longer than 100 characters.
    """
    org_id = new_id()
    await connection.execute(insert(Org).values(id=org_id, name=checked_name(name)))
    await connection.execute(insert(OrgBudget).values(org_id=org_id, plan=plan))
    return org_id


def checked_name(name: str) -> str:
    """The name without blanks around it.

    Raises:
        BadRequest: It is empty, longer than 100 characters, or not printable.
    """
    stripped = name.strip()
    if not stripped or len(stripped) > MAX_NAME_LENGTH or not stripped.isprintable():
        raise BadRequest(f"A name has 1 to {MAX_NAME_LENGTH} printable characters.", param="name")
    return stripped


async def list_orgs(connection: AsyncConnection) -> list[tuple[UUID, str, str]]:
    """Id, name and status of every organisation, oldest first."""
    rows = await connection.execute(select(Org.id, Org.name, Org.status).order_by(Org.created_at, Org.id))
    return [(row.id, row.name, row.status) for row in rows]


async def create_user(
    connection: AsyncConnection, org_id: UUID, email: str, password: str, role: str = "owner"
) -> UUID:
    """A person with a password, member of ``org_id``.

    Raises:
        BadRequest: The address has no ``@``, the password is shorter than 10
            characters, or the role is not one.
        Conflict: The address is taken.
    """
    address = email.strip().lower()
    if "@" not in address:
        raise BadRequest("An e-mail address has an '@'.", param="email")
    if len(password) < MIN_PASSWORD_LENGTH:
        raise BadRequest(f"A password has at least {MIN_PASSWORD_LENGTH} characters.", param="password")
    if role not in ROLES:
        raise BadRequest(f"The role must be one of {', '.join(ROLES)}.", param="role")
    user_id = new_id()
    values = {"id": user_id, "email": address, "password_hash": _PASSWORDS.hash(password)}
    try:
        await connection.execute(insert(User).values(values))
    except IntegrityError:
        raise Conflict("There is a login with this e-mail address already.", param="email") from None
    await connection.execute(insert(Membership).values(org_id=org_id, user_id=user_id, role=role))
    return user_id


async def find_login(connection: AsyncConnection, email: str) -> tuple[UUID, str] | None:
    """Id and password hash of the person with this address."""
    if "\0" in email:  # nobody's, and PostgreSQL refuses to look for it
        return None
    statement = select(User.id, User.password_hash).where(User.email == email.strip().lower())
    row = (await connection.execute(statement)).one_or_none()
    return None if row is None else (row.id, row.password_hash)


def check_password(password_hash: str | None, password: str) -> bool:
    """Whether the password fits; None (nobody has that address) costs the same time.

    Takes tens of milliseconds of CPU by design: call it outside the event loop.
    """
    try:
        _PASSWORDS.verify(password_hash or _nobodys_hash(), password)
    except (VerificationError, InvalidHashError):
        return False
    return password_hash is not None


async def open_session(connection: AsyncConnection, user_id: UUID, now: datetime) -> str:
    """Logs a person in for 7 days; returns the cookie's token."""
    token = secrets.token_urlsafe(32)
    values = {
        "id": new_id(),
        "token_hash": _hash_token(token),
        "user_id": user_id,
        "created_at": now,
        "expires_at": now + SESSION_LIFETIME,
    }
    await connection.execute(insert(PortalSession).values(values))
    return token


async def find_session(connection: AsyncConnection, token: str, now: datetime) -> PortalUser | None:
    """The person behind a cookie's token, with the first organisation they joined."""
    statement = (
        select(User.id, User.email, Org.id.label("org_id"), Org.name, Membership.role)
        .join_from(PortalSession, User, User.id == PortalSession.user_id)
        .join(Membership, Membership.user_id == User.id)
        .join(Org, Org.id == Membership.org_id)
        .where(PortalSession.token_hash == _hash_token(token), PortalSession.expires_at > now)
        .order_by(Membership.created_at, Org.id)
        .limit(1)
    )
    row = (await connection.execute(statement)).one_or_none()
    return None if row is None else PortalUser(row.id, row.email, row.org_id, row.name, row.role)


async def close_session(connection: AsyncConnection, token: str) -> None:
    """Logs out; a token that is not known changes nothing."""
    await connection.execute(delete(PortalSession).where(PortalSession.token_hash == _hash_token(token)))


async def delete_expired_sessions(connection: AsyncConnection, now: datetime) -> int:
    """Removes logins that have ended; returns how many."""
    result = await connection.execute(delete(PortalSession).where(PortalSession.expires_at <= now))
    return result.rowcount


async def _known_key(request: Request, token: str) -> Key:
    settings: Settings = request.app.state.settings
    cache: KeyCache[Key] = request.app.state.key_cache
    database: Database = request.app.state.database
    pepper = settings.key_pepper.get_secret_value()
    key_hash = hash_key(token, pepper)
    known = cache.get(key_hash)
    if known is not None:
        return known
    ticket = cache.ticket()
    async with database.begin() as connection:
        found = await find_key(connection, token, pepper)
    cache.put(key_hash, found, ticket)
    return found


def _is_in(host: str | None, networks: Sequence[Network]) -> bool:
    try:
        address = ip_address(host or "")
    except ValueError:
        return False
    # A socket for both families shows IPv4 as ::ffff:192.0.2.1.
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return any((mapped or address) in network for network in networks)


def _bearer_token(header: str | None) -> str:
    if not header:
        raise AuthenticationFailed(
            "You did not provide an API key. Send it in the header 'Authorization: Bearer YOUR_KEY'.",
            headers={"www-authenticate": "Bearer"},
        )
    scheme, _, token = header.partition(" ")
    if scheme.lower() != "bearer":
        raise _invalid_key()
    return token.strip()


def _invalid_key() -> AuthenticationFailed:
    return AuthenticationFailed("Incorrect API key provided.", headers={"www-authenticate": "Bearer"})


def _checksum(secret: str) -> str:
    value, digits = zlib.crc32(secret.encode()), ""
    for _ in range(_CHECKSUM_LENGTH):
        value, digit = divmod(value, len(_ALPHABET))
        digits = _ALPHABET[digit] + digits
    return digits


def _hash_token(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


@lru_cache(maxsize=1)
def _nobodys_hash() -> str:
    return _PASSWORDS.hash(secrets.token_urlsafe())
