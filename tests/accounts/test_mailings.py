"""The queue of mails about accounts."""

import asyncio
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import pairwise

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from app.accounts import mailings
from app.accounts.mailings import LIFETIME, Queued
from app.db import Database
from app.errors import MailUnavailable
from app.mail import REFUSED, Mail
from app.tables import AccountMail

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


class MailServer:
    """Takes mails, or not."""

    def __init__(self) -> None:
        self.taken: list[str] = []
        self.tried: list[str] = []
        self.is_away = False
        self.refuses: set[str] = set()

    async def send(self, mail: Mail) -> None:
        """Notes whom it is for."""
        self.tried.append(mail.to)
        if self.is_away:
            raise MailUnavailable("The mail could not be sent.")
        if mail.to in self.refuses:
            raise MailUnavailable("The mail could not be sent.", code=REFUSED)
        self.taken.append(mail.to)


async def compose(_: AsyncConnection, queued: Queued, __: datetime) -> Mail | None:
    """Words without a link; nobody tells what is over."""
    return None if queued.email.startswith("over") else Mail(queued.email, queued.kind, queued.language)


async def queue(database: Database, *emails: str) -> None:
    async with database.begin() as connection:
        for number, email in enumerate(emails):
            at = NOW - timedelta(microseconds=len(emails) - number)
            await mailings.queue(connection, "reset", email, "en", at)


async def left(database: Database) -> list[str]:
    async with database.begin() as connection:
        return [*(await connection.execute(select(AccountMail.email).order_by(AccountMail.created_at))).scalars()]


async def run(database: Database, server: MailServer, after: timedelta = timedelta()) -> int:
    return await mailings.send_due(database, compose, server.send, NOW + after)


async def test_what_is_queued_is_sent_once_and_forgotten(database: Database) -> None:
    server = MailServer()
    await queue(database, "a@x.example", "b@x.example")
    assert [await run(database, server), await run(database, server)] == [2, 0]
    assert server.taken == ["a@x.example", "b@x.example"]
    assert await left(database) == []


async def test_an_outage_loses_nothing_and_is_found_out_once_a_turn(database: Database) -> None:
    server = MailServer()
    server.is_away = True
    emails = [f"{number}@x.example" for number in range(4)]
    await queue(database, *emails)
    assert [await run(database, server), await run(database, server)] == [0, 0]
    assert server.tried == emails[:2]
    minutes = range(61)
    for minute in minutes:
        await run(database, server, timedelta(minutes=minute))
    assert await left(database) == emails
    server.is_away = False
    assert await run(database, server, timedelta(minutes=91)) == 4
    assert sorted(server.taken) == emails


async def test_attempts_become_rarer(database: Database) -> None:
    server = MailServer()
    server.is_away = True
    await queue(database, "a@x.example")
    tried_at = []
    for minute in range(24 * 60 + 10):
        before = len(server.tried)
        await run(database, server, timedelta(minutes=minute))
        tried_at += [minute] * (len(server.tried) - before)
    assert tried_at[:6] == [0, 4, 12, 28, 58, 88]
    assert {later - earlier for earlier, later in pairwise(tried_at[4:])} == {30}
    assert tried_at[-1] < LIFETIME.total_seconds() / 60


async def test_what_nobody_waits_for_any_more_is_given_up(database: Database) -> None:
    await queue(database, "a@x.example")
    async with database.begin() as connection:
        assert await mailings.delete_expired_mails(connection, NOW + LIFETIME - timedelta(minutes=1)) == 0
        assert await mailings.delete_expired_mails(connection, NOW + LIFETIME) == 1
    assert await left(database) == []


async def test_a_mailbox_that_does_not_exist_holds_nobody_up(database: Database) -> None:
    server = MailServer()
    server.refuses = {"a@x.example"}
    await queue(database, "a@x.example", "over@x.example", "b@x.example")
    assert await run(database, server) == 1
    assert server.tried == ["a@x.example", "b@x.example"]
    assert await left(database) == []


async def test_of_two_workers_one_sends(database: Database) -> None:
    server = MailServer()
    await queue(database, *(f"{number}@x.example" for number in range(10)))
    assert sum(await asyncio.gather(*(run(database, server) for _ in range(3)))) == 10
    assert len(server.taken) == 10


async def test_a_worker_that_dies_is_followed_by_another(database: Database) -> None:
    async def die(_: Mail) -> None:
        raise SystemExit

    await queue(database, "a@x.example")
    with suppress(SystemExit):
        await mailings.send_due(database, compose, die, NOW)
    server = MailServer()
    assert await run(database, server) == 0
    assert await run(database, server, timedelta(minutes=4)) == 1


async def test_what_cannot_be_written_holds_nobody_up(database: Database) -> None:
    async def broken(connection: AsyncConnection, queued: Queued, now: datetime) -> Mail | None:
        if queued.email == "a@x.example":
            raise LookupError
        return await compose(connection, queued, now)

    server = MailServer()
    await queue(database, "a@x.example", "b@x.example")
    for _ in range(2):
        with suppress(LookupError):
            await mailings.send_due(database, broken, server.send, NOW)
    assert server.taken == ["b@x.example"]


async def test_a_mail_of_an_unfinished_transaction_is_none(database: Database) -> None:
    server = MailServer()
    async with database.begin() as connection:
        await mailings.queue(connection, "reset", "a@x.example", "en", NOW)
        assert await run(database, server) == 0
    assert await run(database, server) == 1
