"""Each notification reaches its recipient, signed, at least once, and nobody else."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import insert, text, update
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from app.alerts import calls, endpoints, notifications
from app.alerts.calls import Caller, is_public
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
        head = f"{location}set-cookie: who=acme\r\ncontent-length: 2\r\nconnection: close"
        writer.write(f"HTTP/1.1 {status} X\r\n{head}\r\n\r\nok".encode())
        await writer.drain()
        writer.close()
        await writer.wait_closed()


@asynccontextmanager
async def receiving(*statuses: int) -> AsyncIterator[Receiver]:
    async with listening(Receiver(*statuses)) as receiver:
        yield receiver


class Patient(Receiver):
    """Answers once as many were called as ``all_called`` waits for."""

    def __init__(self, all_called: asyncio.Barrier) -> None:
        super().__init__()
        self.all_called = all_called

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self.all_called.wait()
        await super().answer(reader, writer)


class Babbler(Receiver):
    """Never comes to the point: one provisional answer after another."""

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while True:
                writer.write(b"HTTP/1.1 103 Early Hints\r\n\r\n")
                await writer.drain()


@asynccontextmanager
async def listening(receiver: Receiver) -> AsyncIterator[Receiver]:
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


async def test_a_receiver_changes_over_to_a_new_secret_in_its_own_time(
    database: Database, settings: Settings, caller: Caller
) -> None:
    org_id, now = await make_org(database), datetime.now(UTC)
    verified = []
    async with receiving() as receiver:
        async with database.begin() as connection:
            endpoint = await endpoints.add_endpoint(connection, org_id, receiver.url)
        for _ in range(3):
            await queue(database, org_id, "webhook", str(endpoint), now)
            assert await notifications.send_due(database, Messenger(settings, caller, Post()), now) == 1
            headers, body = receiver.received[-1]
            for version in (1, 2, 3):
                with suppress(WebhookVerificationError):
                    Webhook(endpoints.secret_of(settings, endpoint, version)).verify(body, headers)
                    verified.append((len(receiver.received), version))
            async with database.begin() as connection:
                await endpoints.renew_secret(connection, org_id, endpoint)
    assert verified == [(1, 1), (2, 1), (2, 2), (3, 2), (3, 3)]


async def test_an_address_is_tried_out_by_its_organisation_alone(
    database: Database, settings: Settings, caller: Caller
) -> None:
    own, other, now = await make_org(database), await make_org(database, "Other"), datetime.now(UTC)
    async with receiving(500) as receiver:
        async with database.begin() as connection:
            endpoint = await endpoints.add_endpoint(connection, own, receiver.url)
            with pytest.raises(NotFound):
                await notifications.queue_test(connection, other, endpoint, now)
        messenger = Messenger(settings, caller, Post())
        for num_taken in (0, 1):
            async with database.begin() as connection:
                await notifications.queue_test(connection, own, endpoint, now)
                await notifications.queue_test(connection, own, endpoint, now)
            assert await notifications.send_due(database, messenger, now) == num_taken
    assert [json.loads(body)["type"] for _, body in receiver.received] == ["webhook.test"] * 2
    assert await states(database) == [("sent", 1, None)]


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
    # Others may be at the same address.
    assert [headers for headers, _ in receiver.received if "cookie" in headers] == []


async def test_after_two_days_nobody_tries_any_more(database: Database, settings: Settings, caller: Caller) -> None:
    org_id, now = await make_org(database), datetime.now(UTC)
    post = Post()
    post.refuses = 100
    await queue(database, org_id, "mail", "a@acme.example", now)
    for _ in range(len(RETRY_AFTER) + 2):
        await notifications.send_due(database, Messenger(settings, caller, post), now)
        now += max(RETRY_AFTER)
    assert await states(database) == [("failed", len(RETRY_AFTER) + 1, "the mail server is away")]


async def test_who_will_never_take_it_is_not_tried_again(
    database: Database, settings: Settings, caller: Caller
) -> None:
    org_id, now = await make_org(database), datetime.now(UTC)
    async with receiving(410) as receiver:
        async with database.begin() as connection:
            endpoint = await endpoints.add_endpoint(connection, org_id, receiver.url)
        for target in (endpoint, new_id()):
            await queue(database, org_id, "webhook", str(target), now)
        assert await notifications.send_due(database, Messenger(settings, caller, Post()), now) == 0
    assert await states(database) == [("failed", 1, "it answered 410"), ("failed", 1, "the address was removed")]


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


async def test_who_does_not_answer_keeps_nobody_else_waiting(
    database: Database, settings: Settings, caller: Caller
) -> None:
    org_id, now = await make_org(database), datetime.now(UTC)
    both = asyncio.Barrier(2)
    async with listening(Patient(both)) as one, listening(Patient(both)) as other:
        for receiver in (one, other):
            async with database.begin() as connection:
                endpoint = await endpoints.add_endpoint(connection, org_id, receiver.url)
            await queue(database, org_id, "webhook", str(endpoint), now)
        assert await notifications.send_due(database, Messenger(settings, caller, Post()), now) == 2


async def test_what_nobody_expected_of_one_keeps_nobody_else_from_being_told(
    database: Database, settings: Settings, caller: Caller
) -> None:
    tried = []

    async def mail(target: str, _: dict[str, Any]) -> None:
        tried.append(target)
        if len(tried) == 1:
            raise LookupError(target)

    org_id, now = await make_org(database), datetime.now(UTC)
    for name in ("a", "b", "c"):
        await queue(database, org_id, "mail", f"{name}@acme.example", now)
    with pytest.raises(LookupError):
        await notifications.send_due(database, Messenger(settings, caller, mail), now)
    assert sorted(tried) == [f"{name}@acme.example" for name in "abc"]
    assert sorted(state for state, *_ in await states(database)) == ["pending", "sent", "sent"]


async def test_what_is_over_is_forgotten_after_a_season(database: Database, settings: Settings) -> None:
    org_id, now = await make_org(database), datetime.now(UTC)
    for state in ("sent", "failed", "pending"):
        id = await queue(database, org_id, "mail", "a@acme.example", now)
        async with database.begin() as connection:
            await connection.execute(update(Notification).where(Notification.id == id).values(state=state))
    async with database.begin() as connection:
        assert await notifications.delete_old(connection, now) == 0
        assert await notifications.delete_old(connection, now + notifications.KEPT_FOR + timedelta(minutes=1)) == 2
    assert [state for state, *_ in await states(database)] == ["pending"]


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
    assert await notifications.send_due(database, Messenger(settings, caller, post), now + timedelta(minutes=6)) == 1


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "localhost", "10.0.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1", "2130706433"),
        *("[::1]", "[fd00:ec2::254]", "[fe80::1]", "[fec0::1]", "[ff02::1]", "[::ffff:10.0.0.1]", "[::10.0.0.1]"),
        *("[64:ff9b::10.0.0.1]", "[64:ff9b:1::1]", "[2002:a00:1::]"),
    ],
)
async def test_what_only_we_can_reach_is_not_called(host: str) -> None:
    caller = Caller()
    with pytest.raises(NotificationFailed, match="not a public one"):
        await caller.call(f"http://{host}:9/", ["whsec_YQ=="], new_id(), EVENT, datetime.now(UTC))
    await caller.aclose()


@pytest.mark.parametrize("address", ["93.184.215.14", "2606:4700::1111", "64:ff9b::93.184.215.14"])
def test_what_everybody_reaches_may_be_called(address: str) -> None:
    assert is_public(address)


async def test_a_name_with_one_private_address_among_others_is_not_called(monkeypatch: pytest.MonkeyPatch) -> None:
    def look_up(*_: object, **__: object) -> list[Any]:
        return [(0, 0, 0, "", (address, 80)) for address in ("93.184.215.14", "10.0.0.1")]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    caller = Caller()
    with pytest.raises(NotificationFailed, match="not a public one"):
        await caller.call("http://acme.example/", ["whsec_YQ=="], new_id(), EVENT, datetime.now(UTC))
    await caller.aclose()


async def test_what_was_looked_at_is_what_is_called(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that means something else each time it is looked up."""
    addresses = ["127.0.0.1", "192.0.2.1"]

    def look_up(*_: object, **__: object) -> list[Any]:
        return [(0, 0, 0, "", (addresses.pop(0), 80))]

    async with receiving() as receiver:
        monkeypatch.setattr(socket, "getaddrinfo", look_up)
        url = receiver.url.replace("localhost", "acme.example")
        await caller.call(url, ["whsec_YQ=="], new_id(), EVENT, datetime.now(UTC))
    assert addresses == ["192.0.2.1"]
    assert receiver.received[0][0]["host"].startswith("acme.example:")


async def test_a_call_has_its_time_however_much_is_answered(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "TIMEOUT_S", 0.2)
    async with listening(Babbler()) as receiver:
        with pytest.raises(NotificationFailed, match="no answer"):
            await caller.call(receiver.url, ["whsec_YQ=="], new_id(), EVENT, datetime.now(UTC))


async def test_an_address_that_is_nobodys_is_a_failure_like_any_other(caller: Caller) -> None:
    for url in ("http://127.0.0.1:9/", "https://127.0.0.1:9/", "http://nobody.invalid/", f"http://{'a' * 64}.example/"):
        with pytest.raises(NotificationFailed, match="no answer"):
            await caller.call(url, ["whsec_YQ=="], new_id(), EVENT, datetime.now(UTC))


@pytest.mark.parametrize(
    "url",
    [
        "",
        "acme.example",
        "ftp://acme.example/",
        "https://",
        "https://user:secret@acme.example/",
        "https://:secret@acme.example/",
        f"https://{'a' * 64}.example/",
        "https://acme..example/",
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


async def test_addresses_that_are_added_at_once_are_five_at_most(database: Database) -> None:
    org_id = await make_org(database)

    async def add(number: int) -> bool:
        with suppress(Conflict):
            async with database.begin() as connection:
                await endpoints.add_endpoint(connection, org_id, f"https://acme.example/{number}")
                return True
        return False

    assert sum(await asyncio.gather(*(add(number) for number in range(8)))) == endpoints.MAX_ENDPOINTS
