"""Mails to people about their accounts, queued with what they tell of and sent by the worker.

What is queued says whom a mail is for and what about; the link in it is made when it is sent,
anew for each attempt, so the queue opens no account. An attempt first moves the time of the next
one: a worker that is killed, or a mail server that is away, needs no further word. A mail may so
arrive twice, and does not get lost before ``LIFETIME`` is over.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import delete, insert, text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import Database
from app.errors import MailUnavailable
from app.mail import REFUSED, Mail
from app.tables import AccountMail
from app.telemetry import get_logger

log = get_logger(__name__)

LIFETIME = timedelta(days=1)
"""Nobody waits longer for a mail."""
# Longer than a slow mail server takes for one, then twice as long each time.
_FIRST_WAIT = timedelta(minutes=4)
_LONGEST_WAIT = timedelta(minutes=30)
_TAKE = text(
    "UPDATE account_mails SET attempts = attempts + 1, due_at = CAST(:now AS timestamptz)"
    " + LEAST(CAST(:first AS interval) * power(2, LEAST(attempts, 10)), CAST(:longest AS interval))"
    " WHERE id = (SELECT id FROM account_mails WHERE due_at <= :now AND created_at > CAST(:oldest AS timestamptz)"
    " ORDER BY due_at LIMIT 1 FOR UPDATE SKIP LOCKED)"
    " RETURNING id, kind, email, language, reference"
)


@dataclass(frozen=True, slots=True)
class Queued:
    """A mail that is to be sent.

    Attributes:
        kind: One of ``app.tables.MAIL_KINDS``.
        reference: The sign-up or the invitation that it is about.
    """

    id: UUID
    kind: str
    email: str
    language: str
    reference: UUID | None


Compose = Callable[[AsyncConnection, Queued, datetime], Awaitable[Mail | None]]
"""The mail as it is sent; None: there is nothing to tell any more. In a transaction that keeps the link it makes."""
Send = Callable[[Mail], Awaitable[None]]
"""Raises ``MailUnavailable``."""


async def queue(
    connection: AsyncConnection, kind: str, email: str, language: str, now: datetime, reference: UUID | None = None
) -> None:
    """Has a mail sent soon, if the transaction commits; see ``Queued``."""
    values = {"kind": kind, "email": email, "language": language, "reference": reference}
    await connection.execute(insert(AccountMail).values(**values, created_at=now, due_at=now))


async def send_due(database: Database, compose: Compose, send: Send, now: datetime) -> int:
    """Sends what is due until the mail server fails; returns how many were taken."""
    num_sent = 0
    while True:
        async with database.begin() as connection:
            queued = await _take(connection, now)
        if queued is None:
            return num_sent
        async with database.begin() as connection:
            mail = await compose(connection, queued, now)
        try:
            if mail is not None:
                await send(mail)
                num_sent += 1
        except MailUnavailable as error:
            log.warning("account_mail.not_taken", id=str(queued.id), kind=queued.kind, code=error.code)
            if error.code != REFUSED:
                # The server is away: the others need not find that out one by one.
                return num_sent
        await _forget(database, queued)


async def delete_expired_mails(connection: AsyncConnection, now: datetime) -> int:
    """Gives up what nobody waits for any more; returns how many."""
    given_up = (await connection.execute(delete(AccountMail).where(AccountMail.created_at <= now - LIFETIME))).rowcount
    if given_up:
        log.error("account_mail.given_up", num_mails=given_up)
    return given_up


async def _take(connection: AsyncConnection, now: datetime) -> Queued | None:
    bind = {"now": now, "first": _FIRST_WAIT, "longest": _LONGEST_WAIT, "oldest": now - LIFETIME}
    row = (await connection.execute(_TAKE, bind)).one_or_none()
    return None if row is None else Queued(*row)


async def _forget(database: Database, queued: Queued) -> None:
    async with database.begin() as connection:
        await connection.execute(delete(AccountMail).where(AccountMail.id == queued.id))
