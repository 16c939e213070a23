"""Who changed what: entries that are only ever added, each sealed with the one before.

An entry's hash covers what it says and the hash of its predecessor, so an entry that
was changed, put in between or taken out breaks the chain at that place; triggers refuse
the attempt to begin with. Whoever may replace the whole table can make a whole chain:
each new hash is therefore logged as well, and a log that is kept elsewhere tells.

The hash is made by the database, of the entry in the database's own spelling of JSON,
so that what is sealed is what is stored.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.telemetry import get_logger

log = get_logger(__name__)

OPERATOR = "operator"
"""Whoever has the command line."""
TOLLGATE = "tollgate"
"""Its own jobs."""
SOMEBODY = "somebody"
"""Whoever found a key where it should not be, and said so."""
STRIPE = "stripe"
"""What an event from there led to."""

_NOTHING = "'\\x" + "00" * 32 + "'::bytea"
# Its own statement: what is read next has to be a snapshot from after the lock.
_LOCK = text("SELECT pg_advisory_xact_lock(hashtext('audit_log'))")
_HASH = (
    "sha256({previous} || convert_to(jsonb_build_array((extract(epoch FROM at) * 1000000)::bigint, org_id, actor,"
    ' action, target, "before", "after", host(ip), request_id)::text, \'UTF8\'))'
)
_RECORD = text(
    f"WITH last AS (SELECT COALESCE((SELECT hash FROM audit_log ORDER BY id DESC LIMIT 1), {_NOTHING}) AS hash),"  # noqa: S608 - constants
    " entry AS MATERIALIZED (SELECT clock_timestamp() AS at, CAST(:org_id AS uuid) AS org_id, CAST(:actor AS text)"
    " AS actor, CAST(:action AS text) AS action, CAST(:target AS text) AS target,"
    ' CAST(:before AS jsonb) AS "before", CAST(:after AS jsonb) AS "after", CAST(CAST(:ip AS text) AS inet) AS ip,'
    " CAST(:request_id AS uuid) AS request_id)"
    ' INSERT INTO audit_log (at, org_id, actor, action, target, "before", "after", ip, request_id, previous_hash, hash)'
    f" SELECT entry.*, last.hash, {_HASH.format(previous='last.hash')} FROM entry, last RETURNING id, hash"
)
_LIST = text(
    'SELECT id, at, actor, action, target, "before", "after", host(ip) AS ip FROM audit_log WHERE org_id = :org_id'
    " AND (CAST(:before AS bigint) IS NULL OR id < :before) AND action NOT LIKE :pattern ORDER BY id DESC LIMIT :limit"
)
_BROKEN = text(
    "SELECT id, at, actor, action, target FROM (SELECT *,"  # noqa: S608 - constants
    f" COALESCE(lag(hash) OVER (ORDER BY id), {_NOTHING}) AS expected FROM audit_log) AS chained"
    f" WHERE previous_hash <> expected OR hash <> {_HASH.format(previous='previous_hash')} ORDER BY id LIMIT :limit"
)


async def record(
    connection: AsyncConnection,
    *,
    org_id: UUID | None,
    actor: str,
    action: str,
    target: str,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
    ip: str | None = None,
    request_id: UUID | None = None,
) -> None:
    """Adds an entry, in the transaction of what it tells.

    Until that transaction ends nobody else can add one, so this is its last step: whoever
    locked anything after it could wait for somebody who waits for this.

    Args:
        connection: An open transaction.
        org_id: Whose matter it is; None: the installation's.
        actor: ``user:ID``, ``key:ID``, or a constant of this module.
        action: ``noun.verb``.
        target: What it was done to, ``kind:id``.
        before: What was, as far as it changed; never a secret. What JSON has no type for becomes text.
        after: What is now, likewise.
        ip: Where the request came from.
        request_id: The request.
    """
    await connection.execute(_LOCK)
    bind = {
        "org_id": org_id,
        "actor": actor,
        "action": action,
        "target": target,
        "before": _json(before),
        "after": _json(after),
        "ip": ip,
        "request_id": request_id,
    }
    entry = (await connection.execute(_RECORD, bind)).one()
    log.info("audit.recorded", entry=entry.id, action=action, target=target, hash=entry.hash.hex())


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry as it is shown; its fields are those of ``record``."""

    id: int
    at: datetime
    actor: str
    action: str
    target: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    ip: str | None


async def list_entries(
    connection: AsyncConnection, org_id: UUID, *, before: int | None, limit: int, with_sessions: bool = True
) -> list[Entry]:
    """Entries of an organisation, newest first.

    Args:
        connection: An open transaction.
        org_id: Whose.
        before: Only those with a smaller id; None: from the newest on.
        limit: Entries at most.
        with_sessions: Those that tell of logins as well.
    """
    bind = {"org_id": org_id, "before": before, "limit": limit, "pattern": "" if with_sessions else "session.%"}
    return [Entry(*row) for row in await connection.execute(_LIST, bind)]


async def find_broken(connection: AsyncConnection, limit: int) -> list[str]:
    """Entries that are not what was recorded, or that do not follow their predecessor; one line each.

    Reads the whole log.

    Args:
        connection: An open transaction.
        limit: Lines at most.
    """
    rows = await connection.execute(_BROKEN, {"limit": limit})
    return [f"entry {row.id} of {row.at} ({row.action} {row.target} by {row.actor}) breaks the chain" for row in rows]


def _json(value: Mapping[str, Any] | None) -> str | None:
    return None if value is None else json.dumps(value, default=str, sort_keys=True)
