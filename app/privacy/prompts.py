"""Requests and answers as they were sent, kept for organisations that want it and as long as they say.

Off until an organisation turns it on. What is kept is no part of what is billed: it is
written after the answer has left, and where the database cannot take it in time it is
left out and counted. Turning it off deletes what there is, and fewer days hold for what
there is, too.
"""

import asyncio
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import CursorResult, delete, func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import Database
from app.errors import BadRequest, DatabaseUnavailable, NotFound
from app.tables import Org, StoredRequest
from app.telemetry import STORED_REQUESTS, get_logger

log = get_logger(__name__)

MAX_DAYS = 90
MAX_WAITING = 64
"""Requests of a process that wait to be written; one holds at most a body and an answer."""
CLOSE_S = 10.0
"""A process that ends writes what waits for so long, and leaves the rest out."""

_EXPIRED = text("DELETE FROM stored_requests WHERE expires_at <= now()")


@dataclass(frozen=True, slots=True)
class Kept:
    """A request and its answer, as they were sent."""

    request_id: UUID
    org_id: UUID
    started_at: datetime
    route: str
    request: bytes
    answer: bytes
    expires_at: datetime


class PromptStore:
    """Writes what is kept, beside the answers; create it inside the event loop that uses it.

    Args:
        database: Where it goes.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: asyncio.Queue[Kept] = asyncio.Queue(MAX_WAITING)
        self._writing = asyncio.create_task(self._write(), name="prompt_store")

    def keep(self, kept: Kept) -> None:
        """Writes it soon; leaves it out where too many wait."""
        try:
            self._waiting.put_nowait(kept)
        except asyncio.QueueFull:
            STORED_REQUESTS.labels("left_out").inc()

    async def aclose(self) -> None:
        """Writes what waits, for a while, then ends."""
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await self._waiting.join()
        self._writing.cancel()
        await asyncio.gather(self._writing, return_exceptions=True)
        STORED_REQUESTS.labels("left_out").inc(self._waiting.qsize())

    async def _write(self) -> None:
        while True:
            kept = await self._waiting.get()
            try:
                async with self._database.begin() as connection:
                    await _insert(connection, kept)
            except (DatabaseUnavailable, SQLAlchemyError) as error:
                # What the database refuses of one must not end the others.
                log.warning("prompts.left_out", error=type(error).__name__)
                STORED_REQUESTS.labels("left_out").inc()
            finally:
                self._waiting.task_done()


async def set_retention(connection: AsyncConnection, org_id: UUID, days: int | None) -> None:
    """Keeps requests from now on for so many days, and none of those there are for longer.

    None: not at all, and what there is is deleted.

    Raises:
        BadRequest: Days are not 1 to 90.
        NotFound: No such organisation.
    """
    if days is not None and not 1 <= days <= MAX_DAYS:
        raise BadRequest("Requests are kept for 1 to %(most)s days.", values={"most": MAX_DAYS}, param="days")
    statement = update(Org).where(Org.id == org_id).values(prompt_retention_days=days)
    if not (await connection.execute(statement)).rowcount:
        raise NotFound("There is no organisation %(id)s.", values={"id": org_id}, code="org_not_found", param="org")
    stored = StoredRequest.org_id == org_id
    if days is None:
        await connection.execute(delete(StoredRequest).where(stored))
    else:
        expires_at = StoredRequest.started_at + timedelta(days=days)
        sooner = update(StoredRequest).where(stored, StoredRequest.expires_at > expires_at)
        await connection.execute(sooner.values(expires_at=expires_at))


async def retention(connection: AsyncConnection, org_id: UUID) -> int | None:
    """For how many days an organisation's requests are kept; None: not at all."""
    found = select(Org.prompt_retention_days).where(Org.id == org_id)
    return (await connection.execute(found)).scalar_one_or_none()


async def find_stored(connection: AsyncConnection, org_id: UUID, request_id: UUID) -> Kept | None:
    """What is kept of a request of the organisation; what has expired is not, though it may still be there."""
    columns = StoredRequest.__table__.columns
    found = select(*columns).where(StoredRequest.org_id == org_id, StoredRequest.request_id == request_id)
    found = found.where(StoredRequest.expires_at > func.now())
    row = (await connection.execute(found)).one_or_none()
    return None if row is None else Kept(**row._mapping)


async def delete_expired(connection: AsyncConnection) -> int:
    """Deletes what was kept long enough; returns how many."""
    result: CursorResult[None] = await connection.execute(_EXPIRED)
    return result.rowcount


async def _insert(connection: AsyncConnection, kept: Kept) -> None:
    # It may have been changed or turned off, or the organisation deleted, while this waited. The lock
    # makes whoever does that now wait for this row, which is then changed or deleted with the others.
    found = select(Org.prompt_retention_days).where(Org.id == kept.org_id).with_for_update(read=True)
    days = (await connection.execute(found)).scalar_one_or_none()
    if days is None:
        return
    expires_at = min(kept.expires_at, kept.started_at + timedelta(days=days))
    values = asdict(kept) | {"expires_at": expires_at}
    await connection.execute(insert(StoredRequest).values(values).on_conflict_do_nothing())
    STORED_REQUESTS.labels("kept").inc()
