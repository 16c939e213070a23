"""People at the portal: browsers with cookies that fill in forms, and the mails they get."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email import message_from_bytes, policy
from email.message import EmailMessage
from functools import partial
from urllib.parse import urlsplit
from uuid import UUID

import httpx

from app import mail
from app.accounts import mailings
from app.accounts.sessions import SESSION_COOKIE, open_session
from app.portal.account_mails import composer
from tests.api.world import World
from tests.factories import PASSWORD, make_user
from tests.portal.visiting import Browser


class Person(Browser):
    """A browser without JavaScript, whoever sits there."""

    world: World

    async def submit(self, page: str, action: str, **fields: str) -> httpx.Response:
        """Looks at a page and sends one of its forms."""
        return await self.send_form(action, page, **fields)

    async def sign_in(self, email: str, password: str = PASSWORD) -> httpx.Response:
        """Through the form."""
        return await self.submit("/login", "/login", email=email, password=password)

    async def is_signed_in(self) -> bool:
        """Whether the server takes this browser for a person's."""
        return (await self.get("/security")).status_code == 200

    def plant(self, name: str, value: str) -> None:
        """Puts a cookie where one of the server's would be."""
        self.cookies.set(name, value, domain="127.0.0.1", path="/")

    @property
    def session(self) -> str | None:
        """The cookie's token."""
        return self.cookies.get(SESSION_COOKIE)


@asynccontextmanager
async def browsing(world: World) -> AsyncIterator[Person]:
    """A browser without any cookie."""
    async with Person(base_url=world.url, timeout=30) as browser:
        browser.world = world
        yield browser


@asynccontextmanager
async def member(world: World, org_id: UUID, role: str = "owner", email: str | None = None) -> AsyncIterator[Person]:
    """A browser of a new member; its session was opened without the form, which costs nothing."""
    user_id = await make_user(world.database, org_id, email or f"{role}@acme.example", role)
    async with browsing(world) as browser:
        browser.plant(SESSION_COOKIE, await session_of(world, user_id))
        yield browser


async def session_of(world: World, user_id: UUID) -> str:
    """A new session of somebody."""
    async with world.database.begin() as connection:
        return await open_session(connection, user_id, datetime.now(UTC))


async def mails(world: World) -> list[EmailMessage]:
    """Everything that was sent, oldest first; what is queued is sent before."""
    send = partial(mail.send, world.settings)
    await mailings.send_due(world.database, composer(world.settings), send, datetime.now(UTC))
    folder = world.settings.mail_dir
    files = sorted(folder.glob("*.eml")) if folder.exists() else []
    return [message_from_bytes(file.read_bytes(), policy=policy.default) for file in files]


async def mail_to(world: World, address: str, subject: str = "") -> EmailMessage:
    """The newest mail to an address."""
    return [one for one in await mails(world) if one["to"] == address and subject in one["subject"]][-1]


def link_in(mail: EmailMessage) -> str:
    """Path and query of the first link in a mail."""
    found = re.search(r"https?://\S+", mail.get_content())
    assert found is not None
    parts = urlsplit(found[0])
    return f"{parts.path}?{parts.query}" if parts.query else parts.path


def query_of(path: str) -> str:
    """The token in the link of a mail."""
    return path.partition("token=")[2]
