"""Answers kept for whoever sends the same request again, from any process.

A request with an ``Idempotency-Key`` claims the key for its organisation. Whoever has the
claim runs and writes the answer down, part by part, as it is made; whoever comes later
reads the parts, also while they are still being written. A claim is a lease that its
holder extends: of a process that was killed it ends by itself, and the next caller runs
the request again under the same id. A usage row is written once an id, so however often
it runs, it is billed once.

A claim is on the disk before the request runs. What is written of its answer does not wait
for the disk: what a crash of the database loses is run again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Row, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql import bindparam

from app.errors import Conflict
from app.tables import new_id

LEASE_S = 15.0
"""A claim that is not extended for so long is free."""
KEPT_HOURS = 24
_MAX_PARTS = 64

_NO_WAIT = text("SET LOCAL synchronous_commit = off")
_UNTIL = "lease_until = now() + make_interval(secs => :lease_s), expires_at = now() + make_interval(hours => :kept_h)"
_CLAIM = text(
    "INSERT INTO idempotency_keys (org_id, key, fingerprint, run_id, request_id, started_at, lease_until, expires_at)"
    " VALUES (:org_id, :key, :fingerprint, :run_id, :request_id, :started_at,"
    " now() + make_interval(secs => :lease_s), now() + make_interval(hours => :kept_h)) ON CONFLICT DO NOTHING"
)
_FIND = text(
    "SELECT fingerprint, run_id, request_id, started_at, expires_at <= now() AS is_expired,"
    " NOT is_complete AND lease_until <= now() AS is_lost FROM idempotency_keys"
    " WHERE org_id = :org_id AND key = :key FOR UPDATE"
)
_FORGET_PARTS = text("DELETE FROM answer_parts WHERE run_id = :run_id")
_TAKE_OVER = text(
    "UPDATE idempotency_keys SET fingerprint = :fingerprint, run_id = :run_id, request_id = :request_id,"  # noqa: S608
    f" started_at = :started_at, status = NULL, headers = NULL, is_complete = false, {_UNTIL}"
    " WHERE org_id = :org_id AND key = :key"
)
# A holder that has lost its claim changes nothing. A part that is there stays: it was sent twice.
_WRITE = text(
    "WITH mine AS (UPDATE idempotency_keys SET lease_until = now() + make_interval(secs => :lease_s),"
    " status = COALESCE(:status, status), headers = COALESCE(:headers, headers), is_complete = :is_complete"
    " WHERE run_id = :run_id RETURNING run_id),"
    " kept AS (INSERT INTO answer_parts (run_id, position, body) SELECT mine.run_id, part.position, part.body"
    " FROM mine, unnest(CAST(:positions AS integer[]), CAST(:bodies AS bytea[])) AS part (position, body)"
    " ON CONFLICT DO NOTHING) SELECT count(*) FROM mine"
).bindparams(bindparam("headers", type_=JSONB(none_as_null=True)))
_LET_GO = text("UPDATE idempotency_keys SET lease_until = now() WHERE run_id = :run_id AND NOT is_complete")
_FORGET = text("DELETE FROM idempotency_keys WHERE run_id = :run_id")
_READ = text(
    "SELECT status, headers, is_complete, NOT is_complete AND lease_until <= now() AS is_lost"
    " FROM idempotency_keys WHERE run_id = :run_id"
)
_READ_PARTS = text(
    "SELECT body FROM answer_parts WHERE run_id = :run_id AND position >= :position ORDER BY position LIMIT :limit"
)
_DELETE_EXPIRED = text("DELETE FROM idempotency_keys WHERE expires_at <= now()")


@dataclass(frozen=True, slots=True)
class Asked:
    """A request with an ``Idempotency-Key``.

    Attributes:
        key: In the caller's words; each organisation has its own.
        fingerprint: 32 bytes; the same for the same request only.
        request_id: It runs under this id, unless an earlier one was cut off.
        started_at: When it came in, aware.
    """

    org_id: UUID
    key: str
    fingerprint: bytes
    request_id: UUID
    started_at: datetime


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to run a request and to write its answer.

    Attributes:
        run_id: Of this run.
        request_id: To run under.
        started_at: Of the request with this id.
        is_repeated: An earlier run of it was cut off; what it held may still be held.
    """

    run_id: UUID
    request_id: UUID
    started_at: datetime
    is_repeated: bool = False


@dataclass(frozen=True, slots=True)
class Known:
    """A request that somebody runs or has run; its answer is read under ``run_id``."""

    run_id: UUID
    request_id: UUID


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes of an answer's body, and the how-manieth they are."""

    position: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Progress:
    """What is there of an answer.

    Attributes:
        status: None: nothing has been sent yet.
        headers: Of the answer.
        bodies: The next parts, at most 64.
        is_complete: Nothing follows the parts that are there.
        is_lost: Whoever ran it is gone.
    """

    status: int | None
    headers: Mapping[str, str]
    bodies: Sequence[bytes]
    is_complete: bool
    is_lost: bool


async def claim(connection: AsyncConnection, asked: Asked) -> Claim | Known:
    """The right to run the request, or where its answer is.

    Raises:
        Conflict: The key belongs to another request.
    """
    mine = Claim(new_id(), asked.request_id, asked.started_at)
    while not (await connection.execute(_CLAIM, _values(asked, mine))).rowcount:
        row = (await connection.execute(_FIND, {"org_id": asked.org_id, "key": asked.key})).one_or_none()
        if row is not None:  # or it was freed between the two statements
            return await _join(connection, asked, row, mine)
    return mine


async def write(
    connection: AsyncConnection,
    run_id: UUID,
    parts: Sequence[Part] = (),
    *,
    status: int | None = None,
    headers: Mapping[str, str] | None = None,
    is_complete: bool = False,
) -> bool:
    """Adds to an answer and extends the lease; a part that is there already stays as it is.

    Args:
        connection: An open transaction.
        run_id: Of the claim.
        parts: Of the body.
        status: Once it is known.
        headers: With it.
        is_complete: Nothing will follow.

    Returns:
        Whether the claim still holds; where it does not, nothing was written.
    """
    await connection.execute(_NO_WAIT)
    values = {
        "run_id": run_id,
        "lease_s": LEASE_S,
        "status": status,
        "headers": None if headers is None else dict(headers),
        "is_complete": is_complete,
        "positions": [part.position for part in parts],
        "bodies": [part.body for part in parts],
    }
    return bool((await connection.execute(_WRITE, values)).scalar_one())


async def read(connection: AsyncConnection, run_id: UUID, position: int) -> Progress | None:
    """The answer from its part ``position`` on; None: it was freed, or is run anew by somebody else."""
    row = (await connection.execute(_READ, {"run_id": run_id})).one_or_none()
    if row is None:
        return None
    bind = {"run_id": run_id, "position": position, "limit": _MAX_PARTS}
    bodies = list((await connection.execute(_READ_PARTS, bind)).scalars())
    if row.status is None:
        bodies = []  # they came after the row was read
    is_complete = row.is_complete and len(bodies) < _MAX_PARTS
    return Progress(row.status, row.headers or {}, bodies, is_complete, row.is_lost)


async def let_go(connection: AsyncConnection, run_id: UUID) -> None:
    """Ends the lease: the next caller runs the request again, under the same id."""
    await connection.execute(_LET_GO, {"run_id": run_id})


async def forget(connection: AsyncConnection, run_id: UUID) -> None:
    """Frees the key, as if nobody had asked."""
    await connection.execute(_FORGET, {"run_id": run_id})


async def delete_expired(connection: AsyncConnection) -> int:
    """Deletes answers older than 24 hours; returns how many."""
    return (await connection.execute(_DELETE_EXPIRED)).rowcount


async def _join(connection: AsyncConnection, asked: Asked, row: Row[Any], mine: Claim) -> Claim | Known:
    if row.is_expired:
        return await _take_over(connection, asked, row.run_id, mine)
    if row.fingerprint != asked.fingerprint:
        raise Conflict(
            "This Idempotency-Key was used with another request; each request needs a key of its own.",
            param="Idempotency-Key",
            code="idempotency_key_reused",
        )
    if row.is_lost:
        again = Claim(mine.run_id, row.request_id, row.started_at, is_repeated=True)
        return await _take_over(connection, asked, row.run_id, again)
    return Known(row.run_id, row.request_id)


async def _take_over(connection: AsyncConnection, asked: Asked, former_run: UUID, mine: Claim) -> Claim:
    await connection.execute(_FORGET_PARTS, {"run_id": former_run})
    await connection.execute(_TAKE_OVER, _values(asked, mine))
    return mine


def _values(asked: Asked, mine: Claim) -> dict[str, object]:
    return {
        "org_id": asked.org_id,
        "key": asked.key,
        "fingerprint": asked.fingerprint,
        "run_id": mine.run_id,
        "request_id": mine.request_id,
        "started_at": mine.started_at,
        "lease_s": LEASE_S,
        "kept_h": KEPT_HOURS,
    }
