"""Each notification reaches its recipient, signed, at least once, and nobody else."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import insert, text
from standardwebhooks.webhooks import Webhook

from app.alerts import endpoints, notifications
from app.alerts.calls import Caller
from app.alerts.notifications import RETRY_AFTER, Messenger
from app.config import Settings
from app.db import Database
from app.errors import BadRequest, Conflict, NotFound, NotificationFailed
from app.tables import Notification, new_id
from tests.factories import make_org

EVENT = {"type": "alert.reached", "timestamp": "2026-11-27T00:00:00+00:00", "data": {"percent": 80}}
STATES = text("SELECT state, attempts, last_error FROM notifications ORDER BY id")


class Receiver:
    """A customer's server on this machine; answers with ``status``, in turn."""

    def __init__(self, *statuses: int) -> None:
        self.statuses = list(statuses)
        self.received: list[tuple[dict[str, str], str]] = []
        self.url = ""

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        pairs = (line.split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
        headers = {name.lower(): value for name, value in pairs}
        body = (await reader.readexactly(int(headers["content-length"]))).decode()
        self.received.append((headers, body))
        status = self.statuses.pop(0) if self.statuses else 200
        location = "location: http://127.0.0.1:1/\r\n" if status == 302 else ""
        writer.write(f"HTTP/1.1 {status} X\r\n{location}content-length: 2\r\nconnection: close\r\n\r\nok".encode())
        await writer.drain()
        writer.close()
        await writer.wait_closed()


@asynccontextmanager
async def receiving(*statuses: int) -> AsyncIterator[Receiver]:
    receiver = Receiver(*statuses)
    server = await asyncio.start_server(receiver.answer, "127.0.0.1", 0)
    receiver.url = f"http://localhost:{server.sockets[0].getsockname()[1]}/hook?from=tollgate"
    try:
        yield receiver
    finally:
        server.close()
        await server.wait_closed()


class Post:
    """A mail server that takes everything but what it is told to refuse."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, dict[str, Any]]] = []
        self.refuses = 0

    async def __call__(self, target: str, event: dict[str, Any]) -> None:
        if self.refuses:
            self.refuses -= 1
            raise NotificationFailed("the mail server is away")
        self.sent.append((target, event))


@pytest.fixture
async def caller() -> AsyncIterator[Caller]:
    caller = Caller(is_private_allowed=True)
    yield caller
    await caller.aclose()


async def queue(database: Database, org_id: UUID, channel: str, target: str, now: datetime) -> UUID:
    values = {"org_id": org_id, "channel": channel, "target": target, "event": EVENT, "due_at": now}
    async with database.begin() as connection:
        notification_id = new_id()
        await connection.execute(insert(Notification).values(values | {"id": notification_id}))
        return notification_id


async def states(database: Database) -> list[tuple[str, int, str | None]]:
    async with database.begin() as connection:
        return [tuple(row) for row in await connection.execute(STATES)]


async def test_a_receiver_can_verify_what_it_gets(database: Database, settings: Settings, caller: Caller) -> None:
    org_id, now = await make_org(database), datetime.now(UTC)
    async with receiving() as receiver:
        async with database.begin() as connection:
            endpoint = await endpoints.add_endpoint(connection, org_id, receiver.url)
        event_id = await queue(database, org_id, "webhook", str(endpoint), now)
        assert await notifications.send_due(database, Messenger(settings, caller, Post()), now) == 1
        assert await notifications.send_due(database, Messenger(settings, caller, Post()), now) == 0
    ((headers, body),) = receiver.received
    secret = endpoints.secret_of(settings, endpoint, 1)
    assert Webhook(secret).verify(body, headers) == EVENT
    assert headers["webhook-id"] == f"evt_{event_id.hex}"
    assert headers["host"].startswith("localhost:")
    assert await states(database) == [("sent", 1, None)]
    async with database.begin() as connection:
        assert [one.state for one in await notifications.list_notifications(connection, org_id)] == ["sent"]


async def test_what_is_not_taken_is_tried_again_under_the_same_id(
    database: Database, settings: Settings, caller: Caller
) -> None:
    org_id, now = await make_org(database), datetime.now(UTC)
    messenger = Messenger(settings, caller, Post())
    async with receiving(500, 302) as receiver:
        async with database.begin() as connection:
            endpoint = await endpoints.add_endpoint(connection, org_id, receiver.url)
        await queue(database, org_id, "webhook", str(endpoint), now)
        assert await notifications.send_due(database, messenger, now) == 0
        assert await states(database) == [("pending", 1, "it answered 500")]
        now += RETRY_AFTER[0]
        assert await notifications.send_due(database, messenger, now) == 0
        # A redirect leads nowhere.
        assert await states(database) == [("pending", 2, "it answered 302")]
        now += RETRY_AFTER[1]
        assert await notifications.send_due(database, messenger, now) == 1
    assert len({headers["webhook-id"] for headers, _ in receiver.received}) == 1
    assert len(receiver.received) == 3


async def test_after_two_days_nobody_tries_any_more(database: Database, settings: Settings, caller: Caller) -> None:
    org_id, now = await make_org(database), datetime.now(UTC)
    await queue(database, org_id, "webhook", str(new_id()), now)
    for _ in range(len(RETRY_AFTER) + 2):
        await notifications.send_due(database, Messenger(settings, caller, Post()), now)
        now += max(RETRY_AFTER)
    assert await states(database) == [("failed", len(RETRY_AFTER) + 1, "the address was removed")]


async def test_a_mail_that_fails_keeps_nobody_else_waiting(
    database: Database, settings: Settings, caller: Caller
) -> None:
    org_id, now, post = await make_org(database), datetime.now(UTC), Post()
    post.refuses = 1
    for name in ("a", "b"):
        await queue(database, org_id, "mail", f"{name}@acme.example", now)
    assert await notifications.send_due(database, Messenger(settings, caller, post), now) == 1
    assert await notifications.send_due(database, Messenger(settings, caller, post), now + timedelta(minutes=1)) == 1
    assert sorted(target for target, _ in post.sent) == ["a@acme.example", "b@acme.example"]


async def test_a_worker_that_was_killed_is_followed_by_another(
    database: Database, settings: Settings, caller: Caller
) -> None:
    class Killed(BaseException):
        pass

    async def die(_: str, __: dict[str, Any]) -> None:
        raise Killed

    org_id, now, post = await make_org(database), datetime.now(UTC), Post()
    await queue(database, org_id, "mail", "a@acme.example", now)
    with pytest.raises(Killed):
        await notifications.send_due(database, Messenger(settings, caller, die), now)
    assert await notifications.send_due(database, Messenger(settings, caller, post), now) == 0
    assert await notifications.send_due(database, Messenger(settings, caller, post), now + timedelta(minutes=3)) == 1


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "10.0.0.1", "169.254.169.254", "[::1]", "[::ffff:10.0.0.1]"]
)
async def test_what_only_we_can_reach_is_not_called(host: str) -> None:
    caller = Caller()
    with pytest.raises(NotificationFailed, match="not a public one"):
        await caller.call(f"http://{host}:9/", "whsec_YQ==", new_id(), EVENT, datetime.now(UTC))
    await caller.aclose()


async def test_an_address_that_is_nobodys_is_a_failure_like_any_other(caller: Caller) -> None:
    for url in ("http://127.0.0.1:9/", "https://127.0.0.1:9/", "http://nobody.invalid/"):
        with pytest.raises(NotificationFailed, match="no answer"):
            await caller.call(url, "whsec_YQ==", new_id(), EVENT, datetime.now(UTC))


@pytest.mark.parametrize(
    "url",
    [
        "",
        "acme.example",
        "ftp://acme.example/",
        "https://",
        "https://user:secret@acme.example/",
        "https://acme.example:0/",
        "https://acme.example:99999/",
        "https://[::1/",
        "https://acme.example/a b",
        "https://acmé.example/",
        f"https://acme.example/{'x' * 2000}",
    ],
)
async def test_an_address_that_cannot_be_called_is_refused(database: Database, url: str) -> None:
    org_id = await make_org(database)
    async with database.begin() as connection:
        with pytest.raises(BadRequest):
            await endpoints.add_endpoint(connection, org_id, url)


async def test_addresses_belong_to_their_organisation(database: Database, settings: Settings) -> None:
    own, other = await make_org(database), await make_org(database, "Other")
    async with database.begin() as connection:
        endpoint = await endpoints.add_endpoint(connection, own, " https://acme.example/hook ")
        for act in (endpoints.remove_endpoint, endpoints.renew_secret):
            with pytest.raises(NotFound):
                await act(connection, other, endpoint)
        assert [one.url for one in await endpoints.list_endpoints(connection, own)] == ["https://acme.example/hook"]
        assert await endpoints.list_endpoints(connection, other) == []
        version = await endpoints.renew_secret(connection, own, endpoint)
        secrets = {endpoints.secret_of(settings, one, number) for one in (endpoint, own) for number in (1, version)}
        assert len(secrets) == 4
        await endpoints.remove_endpoint(connection, own, endpoint)
        assert await endpoints.list_endpoints(connection, own) == []


async def test_there_are_five_addresses_at_most(database: Database) -> None:
    org_id = await make_org(database)
    async with database.begin() as connection:
        for number in range(endpoints.MAX_ENDPOINTS):
            await endpoints.add_endpoint(connection, org_id, f"https://acme.example/{number}")
        with pytest.raises(Conflict):
            await endpoints.add_endpoint(connection, org_id, "https://acme.example/more")
