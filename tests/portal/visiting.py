"""Somebody at a browser without JavaScript, signed in."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from uuid import UUID

import httpx

from app.accounts import sessions
from app.accounts.sessions import SESSION_COOKIE
from tests.api.world import World
from tests.factories import make_user


class Browser(httpx.AsyncClient):
    """A client with the session of one member."""

    async def send_form(self, path: str, page: str, **fields: str | list[str]) -> httpx.Response:
        """Sends the fields to ``path`` with the token that the form on ``page`` carries."""
        token = token_in((await self.get(page)).text)
        return await self.post(path, data={"token": token, **fields})

    async def page(self, path: str) -> str:
        """A page that is there, without the blanks between its words."""
        answer = await self.get(path)
        assert answer.status_code == 200, (path, answer.status_code, answer.headers.get("location"))
        return " ".join(answer.text.split())


def token_in(page: str) -> str:
    """The token of the page's forms; all are the same."""
    found = re.search(r'name="token" value="([0-9a-f]{64})"', page)
    assert found is not None
    return found[1]


@asynccontextmanager
async def visiting(
    world: World, org_id: UUID, role: str = "owner", email: str | None = None, **cookies: str
) -> AsyncIterator[Browser]:
    """A new member of the organisation at a browser; more ``cookies`` by name."""
    user_id = await make_user(world.database, org_id, email or f"{role}@{org_id.hex}.example", role)
    async with world.database.begin() as connection:
        token = await sessions.open_session(connection, user_id, datetime.now(UTC))
    async with Browser(base_url=world.url, cookies={SESSION_COOKIE: token, **cookies}, timeout=30) as browser:
        yield browser
