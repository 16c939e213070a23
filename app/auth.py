"""Who is calling: API keys, people's passwords and portal sessions.

A key is ``tg_live_`` + 30 random base-62 characters + 6 that hold their CRC-32, so
that a mistyped key is refused without asking the database and a leaked one can be
recognised anywhere. The database holds an HMAC-SHA256 under the pepper, never a key.

Every request looks its key up: one indexed row, and a revocation is seen by the next
request of every process. What a key may spend is decided in ``app.admission``.
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
from typing import Annotated
from uuid import UUID

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from fastapi import Depends, Request
from sqlalchemy import delete, insert, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from app.config import Settings
from app.db import Database
from app.errors import AuthenticationFailed, BadRequest, Conflict, NotFound, PermissionDenied
from app.tables import ROLES, ApiKey, Membership, Org, OrgBudget, PortalSession, RateBucket, User, new_id

KEY_PREFIX = "tg_live_"
SCOPES = ("generation", "classification", "embedding", "usage")
"""What a key may be limited to; a key without a choice has all of them."""
SESSION_LIFETIME = timedelta(days=7)
MAX_NAME_LENGTH = 100
MIN_PASSWORD_LENGTH = 10
LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)
"""A rate bucket dated so is full at its first use, whatever the limits are then."""

_ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase
_SECRET_LENGTH = 30
_CHECKSUM_LENGTH = 6
_KEY_LENGTH = len(KEY_PREFIX) + _SECRET_LENGTH + _CHECKSUM_LENGTH
# argon2-cffi's defaults are RFC 9106's low-memory profile.
_PASSWORDS = PasswordHasher()

_FIND_KEY = text(
    "SELECT k.id, k.org_id, k.scopes, k.requests_per_minute, k.tokens_per_minute, k.expires_at, k.revoked_at,"
    " o.status AS org_status, b.requests_level, b.tokens_level, b.updated_at AS bucket_updated_at"
    " FROM api_keys k JOIN orgs o ON o.id = k.org_id JOIN rate_buckets b ON b.key_id = k.id"
    " WHERE k.key_hash = :key_hash"
)


@dataclass(frozen=True, slots=True)
class Key:
    """The key behind a request, as the database held it a moment ago.

    Attributes:
        requests_per_minute: The key's own limit; None: the plan's.
        tokens_per_minute: Likewise.
        requests_level: What its bucket of requests held at ``bucket_updated_at``.
        tokens_level: Likewise for tokens.
    """

    id: UUID
    org_id: UUID
    scopes: frozenset[str]
    requests_per_minute: int | None
    tokens_per_minute: int | None
    requests_level: float
    tokens_level: float
    bucket_updated_at: datetime

    def require(self, scope: str) -> None:
        """Passes if the key has ``scope``.

        Raises:
            PermissionDenied: It has not.
        """
        if scope not in self.scopes:
            raise PermissionDenied(f"This API key does not have the scope '{scope}'.")


@dataclass(frozen=True, slots=True)
class KeyListing:
    """A key as it may be shown: never the key itself."""

    id: UUID
    name: str
    prefix: str
    last4: str
    scopes: tuple[str, ...]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None

    def is_active(self, now: datetime) -> bool:
        """Whether it would be accepted at ``now``."""
        return self.revoked_at is None and (self.expires_at is None or self.expires_at > now)


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
        PermissionDenied: Its organisation is suspended.
        DatabaseUnavailable: It cannot be looked up; never a 401.
    """
    settings: Settings = request.app.state.settings
    database: Database = request.app.state.database
    key = _bearer_token(request.headers.get("authorization"))
    if not is_well_formed(key):
        raise _invalid_key()
    async with database.begin() as connection:
        return await find_key(connection, key, settings.key_pepper.get_secret_value())


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
    if row.expires_at is not None and row.expires_at <= (now or datetime.now(UTC)):
        raise _invalid_key()
    if row.org_status != "active":
        raise PermissionDenied("The organisation of this API key is suspended.", code="organization_suspended")
    return Key(
        id=row.id,
        org_id=row.org_id,
        scopes=frozenset(row.scopes),
        requests_per_minute=row.requests_per_minute,
        tokens_per_minute=row.tokens_per_minute,
        requests_level=row.requests_level,
        tokens_level=row.tokens_level,
        bucket_updated_at=row.bucket_updated_at,
    )


async def create_org(connection: AsyncConnection, name: str) -> UUID:
    """A new, active organisation with a budget that nothing limits but its plan.

    Raises:
        BadRequest: The name is empty or longer than 100 characters.
    """
    org_id = new_id()
    await connection.execute(insert(Org).values(id=org_id, name=_checked_name(name)))
    await connection.execute(insert(OrgBudget).values(org_id=org_id))
    return org_id


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


async def mint_key(
    connection: AsyncConnection,
    settings: Settings,
    org_id: UUID,
    name: str,
    *,
    scopes: Sequence[str] = SCOPES,
    expires_at: datetime | None = None,
    requests_per_minute: int | None = None,
    tokens_per_minute: int | None = None,
) -> str:
    """A new key of ``org_id`` with full rate buckets; it exists in full only in this answer.

    Raises:
        BadRequest: A name, scope, limit or expiry that cannot be.
        NotFound: No such organisation.
    """
    _check_terms(scopes, expires_at, requests_per_minute, tokens_per_minute)
    key, key_id = generate_key(), new_id()
    values = {
        "id": key_id,
        "org_id": org_id,
        "name": _checked_name(name),
        "key_hash": hash_key(key, settings.key_pepper.get_secret_value()),
        "prefix": KEY_PREFIX,
        "last4": key[-4:],
        "scopes": list(dict.fromkeys(scopes)),
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "expires_at": expires_at,
    }
    try:
        await connection.execute(insert(ApiKey).values(values))
    except IntegrityError:
        raise NotFound(f"There is no organisation {org_id}.", code="org_not_found", param="org") from None
    bucket = {"key_id": key_id, "requests_level": 0.0, "tokens_level": 0.0, "updated_at": LONG_AGO}
    await connection.execute(insert(RateBucket).values(bucket))
    return key


async def revoke_key(connection: AsyncConnection, key_id: UUID, org_id: UUID | None = None) -> None:
    """Ends a key at once; revoking it again changes nothing.

    Args:
        connection: An open transaction.
        key_id: The key.
        org_id: Where given, only a key of this organisation.

    Raises:
        NotFound: No such key, or it belongs to another organisation.
    """
    statement = update(ApiKey).where(ApiKey.id == key_id)
    if org_id is not None:
        statement = statement.where(ApiKey.org_id == org_id)
    revoked_at = text("COALESCE(revoked_at, now())")
    result = await connection.execute(statement.values(revoked_at=revoked_at).returning(ApiKey.id))
    if result.one_or_none() is None:
        raise NotFound(f"There is no key {key_id}.", code="key_not_found")


async def list_keys(connection: AsyncConnection, org_id: UUID) -> list[KeyListing]:
    """The organisation's keys, newest first, revoked ones included."""
    statement = select(
        ApiKey.id,
        ApiKey.name,
        ApiKey.prefix,
        ApiKey.last4,
        ApiKey.scopes,
        ApiKey.created_at,
        ApiKey.expires_at,
        ApiKey.revoked_at,
        ApiKey.last_used_at,
    ).where(ApiKey.org_id == org_id)
    rows = await connection.execute(statement.order_by(ApiKey.created_at.desc(), ApiKey.id.desc()))
    return [KeyListing(**{**row._mapping, "scopes": tuple(row.scopes)}) for row in rows]


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


async def touch_used_keys(connection: AsyncConnection) -> int:
    """Copies the time of each key's last admission to ``last_used_at``; returns how many changed.

    Admission already dates the key's rate bucket, so a request pays nothing for this.
    """
    statement = text(
        "UPDATE api_keys k SET last_used_at = b.updated_at FROM rate_buckets b WHERE b.key_id = k.id"
        " AND b.updated_at > COALESCE(k.last_used_at, k.created_at)"
    )
    return (await connection.execute(statement)).rowcount


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


def _check_terms(scopes: Sequence[str], expires_at: datetime | None, *per_minute: int | None) -> None:
    """Refuse what no key can have: no scope, an end in the past, a limit below 1 a minute."""
    _check_scopes(scopes)
    if expires_at is not None and expires_at <= datetime.now(UTC):
        raise BadRequest("A key must expire in the future.", param="expires")
    if any(limit is not None and limit < 1 for limit in per_minute):
        raise BadRequest("A limit must be at least 1 a minute.")


def _check_scopes(scopes: Sequence[str]) -> None:
    if not scopes:
        raise BadRequest("A key needs at least one scope.", param="scope")
    for scope in scopes:
        if scope not in SCOPES:
            raise BadRequest(f"The scope '{scope}' is not one of {', '.join(SCOPES)}.", param="scope")


def _checked_name(name: str) -> str:
    stripped = name.strip()
    if not stripped or len(stripped) > MAX_NAME_LENGTH or not stripped.isprintable():
        raise BadRequest(f"A name has 1 to {MAX_NAME_LENGTH} printable characters.", param="name")
    return stripped


def _hash_token(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


@lru_cache(maxsize=1)
def _nobodys_hash() -> str:
    return _PASSWORDS.hash(secrets.token_urlsafe())
