"""The life of API keys: minted, listed, changed, rotated, revoked, reported as leaked.

A key exists in full only in the answer of whoever minted it. Every function takes the
organisation it works for, and a key of another one does not exist for it. The database
itself tells all processes of a change (see ``app.key_cache``); nothing here has to.
"""

import secrets
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Row, ScalarSelect, func, insert, select, text, tuple_, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from app import key_terms
from app.auth import KEY_PREFIX, generate_key, hash_key
from app.config import Settings
from app.errors import BadRequest, Conflict, NotFound
from app.key_terms import Terms
from app.tables import ApiKey, RateBucket, new_id

MAX_KEYS = 1000
"""Of an organisation, those that are revoked not counted."""
LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)
"""A rate bucket dated so is full at its first use, whatever the limits are then."""

_TOUCH = text(
    "UPDATE api_keys k SET last_used_at = b.updated_at FROM rate_buckets b WHERE b.key_id = k.id"
    " AND b.updated_at > COALESCE(k.last_used_at, k.created_at)"
)


_PLAYGROUND = Terms("Playground", ("generation", "classification"))


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key that has just been minted; ``key`` is it in full, for the only time."""

    id: UUID
    key: str


@dataclass(frozen=True, slots=True)
class KeyListing:
    """A key as it may be shown: never the key itself."""

    id: UUID
    org_id: UUID
    prefix: str
    last4: str
    terms: Terms
    created_at: datetime
    created_by: UUID | None
    revoked_at: datetime | None
    revoke_reason: str | None
    replaced_by: UUID | None
    last_used_at: datetime | None

    @property
    def name(self) -> str:
        """What it is for, in its owner's words."""
        return self.terms.name

    @property
    def label(self) -> str:
        """The name and the end of the key; the playground's, which nobody is shown, has a name only."""
        return f"{self.name} …{self.last4}" if self.last4 else self.name

    @property
    def scopes(self) -> tuple[str, ...]:
        """What it may be used for."""
        return self.terms.scopes

    def is_active(self, now: datetime) -> bool:
        """Whether it would be accepted at ``now``."""
        return self.state(now) == "active"

    def state(self, now: datetime) -> str:
        """``active``, ``expired`` or ``revoked`` at ``now``."""
        if self.revoked_at is not None:
            return "revoked"
        ends_at = self.terms.expires_at
        return "expired" if ends_at is not None and ends_at <= now else "active"


async def mint_key(
    connection: AsyncConnection, settings: Settings, org_id: UUID, terms: Terms, *, created_by: UUID | None = None
) -> NewKey:
    """A new key of ``org_id`` with full rate buckets.

    Raises:
        BadRequest: Terms that no key can have.
        NotFound: No such organisation.
        Conflict: It has 1,000 keys already.
    """
    checked = key_terms.checked(terms)
    if checked.expires_at is not None:
        key_terms.require_future(checked.expires_at)
    await _check_room(connection, org_id)
    return await _insert_key(connection, settings, org_id, checked, created_by)


async def list_keys(
    connection: AsyncConnection, org_id: UUID, *, limit: int | None = None, after: UUID | None = None
) -> list[KeyListing]:
    """The organisation's keys, newest first, revoked ones included.

    Args:
        connection: An open transaction.
        org_id: Whose.
        limit: At most so many.
        after: Only those that follow this key.

    Raises:
        BadRequest: ``after`` is none of its keys.
    """
    statement = select(ApiKey).where(ApiKey.org_id == org_id)
    if after is not None:
        row = await _row(connection, after, org_id)
        if row is None:
            raise BadRequest("'after' is not the id of one of your keys.", param="after")
        statement = statement.where(tuple_(ApiKey.created_at, ApiKey.id) < tuple_(row.created_at, row.id))
    rows = await connection.execute(statement.order_by(ApiKey.created_at.desc(), ApiKey.id.desc()).limit(limit))
    return [_listing(row) for row in rows]


async def find_keys(connection: AsyncConnection, org_id: UUID, key_ids: Collection[UUID]) -> list[KeyListing]:
    """Those of the keys that the organisation has; asks nothing where there is nothing to find."""
    if not key_ids:
        return []
    rows = await connection.execute(select(ApiKey).where(ApiKey.org_id == org_id, ApiKey.id.in_(key_ids)))
    return [_listing(row) for row in rows]


async def get_key(connection: AsyncConnection, key_id: UUID, org_id: UUID | None = None) -> KeyListing:
    """One key.

    Raises:
        NotFound: No such key, or it belongs to another organisation than ``org_id``.
    """
    row = await _row(connection, key_id, org_id)
    if row is None:
        raise _no_key(key_id)
    return _listing(row)


async def update_key(
    connection: AsyncConnection, key_id: UUID, changes: Mapping[str, Any], org_id: UUID | None = None
) -> KeyListing:
    """Changes terms of a key; every process goes by the new ones within a second.

    Args:
        connection: An open transaction.
        key_id: The key.
        changes: Fields of ``Terms`` with their new values.
        org_id: Where given, only a key of this organisation.

    Raises:
        BadRequest: Terms that no key can have.
        NotFound: No such key, or it belongs to another organisation.
        Conflict: It is revoked.
    """
    found = await _locked(connection, key_id, org_id)
    if found.revoked_at is not None:
        raise Conflict("This key is revoked; a revoked key stays as it is.", code="key_revoked")
    terms = key_terms.checked(replace(found.terms, **changes))
    if terms.expires_at is not None and terms.expires_at != found.terms.expires_at:
        key_terms.require_future(terms.expires_at)
    await connection.execute(update(ApiKey).where(ApiKey.id == key_id).values(_columns(terms)))
    return replace(found, terms=terms)


async def rotate_key(
    connection: AsyncConnection,
    settings: Settings,
    key_id: UUID,
    *,
    old_ends_at: datetime,
    org_id: UUID | None = None,
    created_by: UUID | None = None,
) -> NewKey:
    """A successor on the same terms; the old key works until ``old_ends_at``, or its own end if earlier.

    Both draw from the same rates and count towards the same cap.

    Raises:
        NotFound: No such key, or it belongs to another organisation.
        Conflict: It is not active, has a successor that is not revoked, or is the playground's.
    """
    found, now = await _locked(connection, key_id, org_id), datetime.now(UTC)
    if not found.last4:
        raise Conflict("Nobody has the playground's key, so there is nothing to exchange.", code="key_not_shown")
    if not found.is_active(now):
        raise Conflict("This key has ended; only an active key can be rotated.", code="key_not_active")
    if found.replaced_by is not None and (await get_key(connection, found.replaced_by)).revoked_at is None:
        raise Conflict("This key has a successor already; revoke that one first.", code="key_replaced")
    await _check_room(connection, found.org_id)
    new = await _insert_key(connection, settings, found.org_id, found.terms, created_by, shared_with=key_id)
    if old_ends_at <= now:
        end: dict[str, object] = {"revoked_at": func.now(), "revoke_reason": "rotated"}
    else:
        end = {"expires_at": min(old_ends_at, found.terms.expires_at or old_ends_at)}
    await connection.execute(update(ApiKey).where(ApiKey.id == key_id).values(replaced_by=new.id, **end))
    return new


async def revoke_key(connection: AsyncConnection, key_id: UUID, org_id: UUID | None = None) -> KeyListing:
    """Ends a key at once; revoking it again changes nothing.

    Args:
        connection: An open transaction.
        key_id: The key.
        org_id: Where given, only a key of this organisation.

    Raises:
        NotFound: No such key, or it belongs to another organisation.
    """
    await _revoke(connection, [ApiKey.id == key_id, *_owned_by(org_id)], "revoked")
    return await get_key(connection, key_id, org_id)


async def playground_key(connection: AsyncConnection, org_id: UUID) -> bytes:
    """The hash of the key that an organisation's playground is billed to; made where there is none.

    There is no such key in full: the hash is random.

    Raises:
        Conflict: The organisation has 1,000 keys already.
    """
    living = select(ApiKey.id, ApiKey.key_hash, ApiKey.expires_at).where(
        ApiKey.org_id == org_id, ApiKey.is_playground, ApiKey.revoked_at.is_(None)
    )
    found = (await connection.execute(living)).one_or_none()
    if found is not None and (found.expires_at is None or found.expires_at > datetime.now(UTC)):
        return bytes(found.key_hash)
    if found is not None:  # somebody gave it an end; it makes room for the next
        await _revoke(connection, [ApiKey.id == found.id], "revoked")
    await _check_room(connection, org_id)
    values = {
        **_columns(_PLAYGROUND),
        "id": new_id(),
        "org_id": org_id,
        "key_hash": secrets.token_bytes(32),
        "prefix": KEY_PREFIX,
        "last4": "",
        "is_playground": True,
    }
    added = upsert(ApiKey).values(values).on_conflict_do_nothing().returning(ApiKey.id)
    key_id: UUID | None = (await connection.execute(added)).scalar_one_or_none()
    if key_id is not None:
        await connection.execute(insert(RateBucket).values(_full_bucket(key_id)))
    return bytes((await connection.execute(living)).one().key_hash)


async def report_leak(connection: AsyncConnection, settings: Settings, key: str) -> UUID | None:
    """Ends a key that somebody has found where it should not be; whoever holds a key may end it.

    Returns:
        The id of the key, or None where it is unknown or revoked already. The two must
        look the same to whoever reports.
    """
    key_hash = hash_key(key, settings.key_pepper.get_secret_value())
    return await _revoke(connection, [ApiKey.key_hash == key_hash], "leaked")


async def touch_used_keys(connection: AsyncConnection) -> int:
    """Copies the time of each key's last admission to ``last_used_at``; returns how many changed.

    Admission already dates the key's rate bucket, so a request pays nothing for this.
    """
    return (await connection.execute(_TOUCH)).rowcount


async def _insert_key(
    connection: AsyncConnection,
    settings: Settings,
    org_id: UUID,
    terms: Terms,
    created_by: UUID | None,
    *,
    shared_with: UUID | None = None,
) -> NewKey:
    """Args as of the callers; ``shared_with``: the key whose bucket it draws from, in place of one of its own."""
    new = NewKey(new_id(), generate_key())
    values = {
        **_columns(terms),
        "id": new.id,
        "org_id": org_id,
        "key_hash": hash_key(new.key, settings.key_pepper.get_secret_value()),
        "prefix": KEY_PREFIX,
        "last4": new.key[-4:],
        "created_by": created_by,
        "bucket_id": None if shared_with is None else _bucket_of(shared_with),
    }
    try:
        await connection.execute(insert(ApiKey).values(values))
    except IntegrityError:
        raise NotFound(
            "There is no organisation %(id)s.", values={"id": org_id}, code="org_not_found", param="org"
        ) from None
    # Of a successor it only says when the key itself was used last.
    await connection.execute(insert(RateBucket).values(_full_bucket(new.id)))
    return new


def _full_bucket(key_id: UUID) -> dict[str, Any]:
    return {"key_id": key_id, "requests_level": 0.0, "tokens_level": 0.0, "updated_at": LONG_AGO}


async def _revoke(connection: AsyncConnection, which: list[ColumnElement[bool]], reason: str) -> UUID | None:
    statement = update(ApiKey).where(*which, ApiKey.revoked_at.is_(None))
    revoked = statement.values(revoked_at=func.now(), revoke_reason=reason).returning(ApiKey.id)
    return (await connection.execute(revoked)).scalar_one_or_none()


async def _row(
    connection: AsyncConnection, key_id: UUID, org_id: UUID | None, *, lock: bool = False
) -> Row[Any] | None:
    statement = select(ApiKey).where(ApiKey.id == key_id, *_owned_by(org_id))
    if lock:
        statement = statement.with_for_update()
    return (await connection.execute(statement)).one_or_none()


async def _locked(connection: AsyncConnection, key_id: UUID, org_id: UUID | None) -> KeyListing:
    row = await _row(connection, key_id, org_id, lock=True)
    if row is None:
        raise _no_key(key_id)
    return _listing(row)


async def _check_room(connection: AsyncConnection, org_id: UUID) -> None:
    statement = select(func.count()).where(ApiKey.org_id == org_id, ApiKey.revoked_at.is_(None))
    if (await connection.execute(statement)).scalar_one() >= MAX_KEYS:
        raise Conflict(
            "An organisation has at most %(most)s keys; revoke some first.",
            values={"most": MAX_KEYS},
            code="too_many_keys",
        )


def _bucket_of(key_id: UUID) -> ScalarSelect[UUID]:
    return select(func.coalesce(ApiKey.bucket_id, ApiKey.id)).where(ApiKey.id == key_id).scalar_subquery()


def _owned_by(org_id: UUID | None) -> list[ColumnElement[bool]]:
    return [] if org_id is None else [ApiKey.org_id == org_id]


def _listing(row: Row[Any]) -> KeyListing:
    terms = Terms(
        name=row.name,
        scopes=tuple(row.scopes),
        allowed_models=None if row.allowed_models is None else tuple(row.allowed_models),
        ip_allow=None if row.ip_allow is None else tuple(row.ip_allow),
        requests_per_minute=row.requests_per_minute,
        tokens_per_minute=row.tokens_per_minute,
        monthly_cap=row.monthly_cap,
        expires_at=row.expires_at,
    )
    return KeyListing(
        id=row.id,
        org_id=row.org_id,
        prefix=row.prefix,
        last4=row.last4,
        terms=terms,
        created_at=row.created_at,
        created_by=row.created_by,
        revoked_at=row.revoked_at,
        revoke_reason=row.revoke_reason,
        replaced_by=row.replaced_by,
        last_used_at=row.last_used_at,
    )


def _columns(terms: Terms) -> dict[str, Any]:
    """The terms as columns of ``api_keys``, which have the same names."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(terms).items()}


def _no_key(key_id: UUID) -> NotFound:
    return NotFound("There is no key %(id)s.", values={"id": key_id}, code="key_not_found", param="key_id")
