"""/live: where the organisation stands, told while it changes, as server-sent events.

A page that follows it shows what a request costs as soon as it is billed. What requests hold
that still run is told apart. An answer ends after a few seconds, so that it never keeps a
server from stopping, and the browser asks again by itself. Each one looks twice a second, so
an organisation can have no more than a few at a time in one process.
"""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from uuid import UUID

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from sqlalchemy import text

from app.db import Database
from app.errors import DatabaseUnavailable
from app.portal.i18n import Language, language_of
from app.portal.page import PageRoute
from app.portal.session import database_of, require_user

Pause = Callable[[float], Awaitable[None]]

INTERVAL_S = 0.5
NUM_LOOKS = 12
MAX_FOLLOWERS = 50
"""Of one organisation, in each process."""
_RETRY_MS = 500
_LATER_MS = 30_000
_HEADERS = {"content-type": "text/event-stream", "cache-control": "no-store", "x-accel-buffering": "no"}

_STANDING = text(
    "SELECT CASE WHEN month = :month THEN cost_used ELSE 0 END AS spent, cost_held AS held, credit,"
    " CASE WHEN month = :month THEN tokens_used ELSE 0 END AS tokens, num_running AS running"
    " FROM org_budgets WHERE org_id = :org_id"
)

router = APIRouter(include_in_schema=False, route_class=PageRoute)


@router.get("/live")
async def live(request: Request) -> Response:
    """Events ``standing``, each a JSON object of texts by the names that elements of a page have in ``data-live``."""
    try:
        user = await require_user(request, "usage.read")
    except DatabaseUnavailable:
        # A browser that is refused asks no more, however soon the database is back.
        return Response(f"retry: {_LATER_MS}\n\n", headers=_HEADERS)
    events = standings(database_of(request), user.org_id, language_of(request))
    return StreamingResponse(followed(request.app.state.followers, user.org_id, events), headers=_HEADERS)


class Followers:
    """Who follows the figures of each organisation at present, by its id.

    Args:
        most: Of one organisation.
    """

    def __init__(self, most: int = MAX_FOLLOWERS) -> None:
        self._most = most
        self._following = Counter[UUID]()

    @contextmanager
    def one_more(self, org_id: UUID) -> Iterator[bool]:
        """Counts one in until the end of the block; False: there are enough."""
        if self._following[org_id] >= self._most:
            yield False
            return
        self._following[org_id] += 1
        try:
            yield True
        finally:
            self._following[org_id] -= 1
            if not self._following[org_id]:
                del self._following[org_id]


async def followed(followers: Followers, org_id: UUID, events: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
    """The events, while there is room for one more who follows; else the wish to ask again later."""
    # Counted here and not before: an answer that is never begun is never ended either.
    with followers.one_more(org_id) as has_room:
        if not has_room:
            yield f"retry: {_LATER_MS}\n\n"
            return
        async for event in events:
            yield event


async def standings(
    database: Database, org_id: UUID, language: Language, pause: Pause = asyncio.sleep
) -> AsyncGenerator[str, None]:
    """The organisation's standing, and again whenever it has changed, for some seconds.

    Args:
        database: With the budget.
        org_id: Whose.
        language: Writes the amounts.
        pause: Waits so many seconds between two looks.
    """
    yield f"retry: {_RETRY_MS}\n\n"
    told: dict[str, str] | None = None
    for look in range(NUM_LOOKS):
        if look:
            await pause(INTERVAL_S)
        try:
            found = await _read(database, org_id, language)
        except DatabaseUnavailable:
            return
        if found != told:
            told = found
            yield f"event: standing\ndata: {json.dumps(found, ensure_ascii=False)}\n\n"


async def _read(database: Database, org_id: UUID, language: Language) -> dict[str, str]:
    month = datetime.now(UTC).date().replace(day=1)
    async with database.begin() as connection:
        row = (await connection.execute(_STANDING, {"org_id": org_id, "month": month})).one_or_none()
    if row is None:
        return {}
    amounts = {"spent": language.money(row.spent), "held": language.money(row.held)}
    if row.credit is not None:
        amounts["credit"] = language.money(row.credit)
    return amounts | {"tokens": language.number(row.tokens), "running": language.number(row.running)}
