"""Who is calling: API keys.

A key is ``tg_live_`` + 30 random base-62 characters + 6 that hold their CRC-32, so
that a mistyped key is refused without asking the database and a leaked one can be
recognised anywhere. The database holds an HMAC-SHA256 under the pepper, never a key.

A key that was looked up is remembered for a moment (``app.key_cache``) and forgotten
within a second of its revocation, in every process. What a key may spend is decided in
``app.admission``, keys are made and ended in ``app.keys``; people are the matter of ``app.accounts``.
"""

import hmac
import secrets
import string
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Annotated
from uuid import UUID

from fastapi import Depends, Request
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.config import Settings
from app.db import Database
from app.errors import AuthenticationFailed, PermissionDenied
from app.key_cache import KeyCache

Network = IPv4Network | IPv6Network

KEY_PREFIX = "tg_live_"
DEFAULT_SCOPES = ("generation", "classification", "embedding", "usage")
"""Those of a key without a choice."""
SCOPES = (*DEFAULT_SCOPES, "keys")
"""What a key may be limited to. ``keys`` manages every key of the organisation: only by choice."""

_ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase
_SECRET_LENGTH = 30
_CHECKSUM_LENGTH = 6
_KEY_LENGTH = len(KEY_PREFIX) + _SECRET_LENGTH + _CHECKSUM_LENGTH

_FIND_KEY = text(
    "SELECT k.id, k.org_id, k.scopes, k.requests_per_minute, k.tokens_per_minute, k.expires_at, k.revoked_at,"
    " k.allowed_models, k.ip_allow, o.status AS org_status, o.prompt_retention_days, COALESCE(ob.plan, '') AS plan,"
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
        prompt_retention_days: For how long its organisation lets requests be kept; None: not at all.
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
    prompt_retention_days: int | None = None

    def require(self, scope: str) -> None:
        """Passes if the key has ``scope``.

        Raises:
            PermissionDenied: It has not.
        """
        if scope not in self.scopes:
            raise PermissionDenied("This API key does not have the scope '%(scope)s'.", values={"scope": scope})

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
                "This API key may not use the model '%(model)s'.",
                values={"model": model},
                param="model",
                code="model_not_allowed",
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


def caller_ip(request: Request) -> str | None:
    """The address of the caller, if it is an IP address: through a careless proxy it can be anything."""
    try:
        return str(ip_address(request.client.host if request.client else ""))
    except ValueError:
        return None


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
    return await find_key_by_hash(connection, hash_key(key, pepper), now)


async def find_key_by_hash(connection: AsyncConnection, key_hash: bytes, now: datetime | None = None) -> Key:
    """As ``find_key``, of a key that nobody has to show.

    Raises:
        AuthenticationFailed: Unknown, expired or revoked.
        PermissionDenied: Its organisation is suspended.
    """
    row = (await connection.execute(_FIND_KEY, {"key_hash": key_hash})).one_or_none()
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
        prompt_retention_days=row.prompt_retention_days,
    )
    found.require_present(now or datetime.now(UTC))
    if row.org_status != "active":
        raise PermissionDenied("The organisation of this API key is suspended.", code="organization_suspended")
    return found


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
