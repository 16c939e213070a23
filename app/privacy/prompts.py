"""Requests and answers as they were sent, kept for organisations that want it and as long as they say.

Off until an organisation turns it on. What is kept is no part of what is billed: it is
written after the answer has left, and where the database cannot take it in time it is
left out and counted. Turning it off deletes what there is.
"""

import asyncio
from dataclasses import asdict, dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import CursorResult, delete, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import Database
from app.errors import BadRequest, DatabaseUnavailable, NotFound
from app.tables import Org, StoredRequest
from app.telemetry import STORED_REQUESTS, get_logger

log = get_logger(__name__)

MAX_DAYS = 90
MAX_WAITING = 64
"""Requests of a process that wait to be written; one holds at most a body and an answer."""

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
        """Writes what waits, then ends."""
        await self._waiting.join()
        self._writing.cancel()
        await asyncio.gather(self._writing, return_exceptions=True)

    async def _write(self) -> None:
        while True:
            kept = await self._waiting.get()
            try:
                async with self._database.begin() as connection:
                    await _insert(connection, kept)
            except DatabaseUnavailable:
                STORED_REQUESTS.labels("left_out").inc()
            finally:
                self._waiting.task_done()


async def set_retention(connection: AsyncConnection, org_id: UUID, days: int | None) -> None:
    """Keeps requests from now on for so many days; None: not at all, and what there is is deleted.

    Raises:
        BadRequest: Days are not 1 to 90.
        NotFound: No such organisation.
    """
    if days is not None and not 1 <= days <= MAX_DAYS:
        raise BadRequest("Requests are kept for 1 to %(most)s days.", values={"most": MAX_DAYS}, param="days")
    statement = update(Org).where(Org.id == org_id).values(prompt_retention_days=days)
    if not (await connection.execute(statement)).rowcount:
        raise NotFound("There is no organisation %(id)s.", values={"id": org_id}, code="org_not_found", param="org")
    if days is None:
        await connection.execute(delete(StoredRequest).where(StoredRequest.org_id == org_id))


async def retention(connection: AsyncConnection, org_id: UUID) -> int | None:
    """For how many days an organisation's requests are kept; None: not at all."""
    found = select(Org.prompt_retention_days).where(Org.id == org_id)
    return (await connection.execute(found)).scalar_one_or_none()


async def find_stored(connection: AsyncConnection, org_id: UUID, request_id: UUID) -> Kept | None:
    """What is kept of a request of the organisation."""
    columns = StoredRequest.__table__.columns
    found = select(*columns).where(StoredRequest.org_id == org_id, StoredRequest.request_id == request_id)
    row = (await connection.execute(found)).one_or_none()
    return None if row is None else Kept(**row._mapping)


async def delete_expired(connection: AsyncConnection) -> int:
    """Deletes what was kept long enough; returns how many."""
    result: CursorResult[None] = await connection.execute(_EXPIRED)
    return result.rowcount


async def _insert(connection: AsyncConnection, kept: Kept) -> None:
    # It may have been turned off, or the organisation deleted, while this waited.
    if await retention(connection, kept.org_id) is None:
        return
    await connection.execute(insert(StoredRequest).values(asdict(kept)).on_conflict_do_nothing())
    STORED_REQUESTS.labels("kept").inc()
