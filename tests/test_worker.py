"""Periodic jobs, with a clock and pauses that the test turns."""

import asyncio
from datetime import UTC, date, datetime, timedelta
from uuid import uuid4

import pytest
from sqlalchemy import func, insert, select

from app import worker
from app.accounts import invitations, mailings, passwords, sessions, sign_ups
from app.config import Settings
from app.db import Database
from app.errors import ConfigError
from app.partitions import ensure_partitions
from app.tables import AccountMail, Invitation, PasswordReset, SignUp, UsageEvent
from app.telemetry import JOB_DONE_SECONDS, JOB_FAILURES, JOB_INTERVAL_SECONDS
from app.worker import Job
from tests.billing.test_rollups import event
from tests.factories import make_org, make_user

NOW = datetime(2035, 11, 23, 12, tzinfo=UTC)


class Turns:
    """Pauses that end when the test says so."""

    def __init__(self) -> None:
        self.asked: list[float] = []
        self.reached = asyncio.Event()
        self.go_on = asyncio.Event()

    async def __call__(self, seconds: float) -> None:
        self.asked.append(seconds)
        self.reached.set()
        await self.go_on.wait()
        self.go_on.clear()


async def test_a_job_runs_at_once_then_at_its_interval_until_stopped(database: Database) -> None:
    turns, stop = Turns(), asyncio.Event()
    times: list[datetime] = []

    async def note(_: Database, now: datetime) -> None:
        times.append(now)

    clock = iter([NOW, NOW + timedelta(seconds=5)])
    working = asyncio.create_task(
        worker.work(database, stop, jobs=[Job("note", 5.0, note)], clock=lambda: next(clock), pause=turns)
    )
    await turns.reached.wait()
    turns.reached.clear()
    turns.go_on.set()
    await turns.reached.wait()
    stop.set()
    await working
    assert times == [NOW, NOW + timedelta(seconds=5)]
    assert turns.asked == [5.0, 5.0]
    assert JOB_DONE_SECONDS.labels("note")._value.get() > 0
    assert JOB_INTERVAL_SECONDS.labels("note")._value.get() == 5


async def test_a_job_that_fails_is_counted_and_tried_again(database: Database) -> None:
    turns, stop = Turns(), asyncio.Event()
    attempts = 0

    async def fail(_: Database, __: datetime) -> None:
        nonlocal attempts
        attempts += 1
        raise RuntimeError("broken")

    before = JOB_FAILURES.labels("fail")._value.get()
    working = asyncio.create_task(worker.work(database, stop, jobs=[Job("fail", 1.0, fail)], pause=turns))
    await turns.reached.wait()
    turns.reached.clear()
    turns.go_on.set()
    await turns.reached.wait()
    stop.set()
    await working
    assert attempts == 2
    assert JOB_FAILURES.labels("fail")._value.get() == before + 2


async def test_partitions_are_made_ahead(database: Database) -> None:
    await worker.make_partitions(database, NOW)
    async with database.begin() as connection:
        found = await connection.exec_driver_sql(
            "SELECT relname FROM pg_class WHERE relname ~ '^usage_events_y203[56]m..$' ORDER BY relname"
        )
        names = [row.relname for row in found]
    assert names == [f"usage_events_y{month}" for month in ("2035m11", "2035m12", "2036m01", "2036m02")]


async def test_ended_logins_are_deleted(database: Database) -> None:
    user_id = await make_user(database, await make_org(database))
    async with database.begin() as connection:
        token = await sessions.open_session(connection, user_id, NOW)
    await worker.delete_expired_sessions(database, NOW + sessions.SESSION_LIFETIME)
    async with database.begin() as connection:
        assert await sessions.find_session(connection, token, NOW) is None


async def test_links_that_are_over_are_forgotten(database: Database) -> None:
    org_id = await make_org(database)
    user_id = await make_user(database, org_id)
    async with database.begin() as connection:
        await sign_ups.ask(connection, sign_ups.Wish("new@customer.example", "a hash", "Initech"), NOW)
        await passwords.ask_reset(connection, "someone@acme.example", NOW)
        owner = sessions.PortalUser(uuid4(), user_id, "someone@acme.example", org_id, "Acme", "owner")
        await invitations.invite(connection, owner, "new@customer.example", "viewer", NOW)
        await mailings.queue(connection, "reset", "someone@acme.example", "en", NOW)
    tables = (SignUp, PasswordReset, Invitation, AccountMail)
    for later, expected in ((timedelta(minutes=1), 1), (timedelta(days=8), 0)):
        await worker.delete_expired_sessions(database, NOW + later)
        async with database.begin() as connection:
            counts = [
                (await connection.execute(select(func.count()).select_from(table))).scalar_one() for table in tables
            ]
        assert counts == [expected] * len(tables)


async def test_a_mail_about_an_account_is_sent(settings: Settings, database: Database) -> None:
    job = worker.send_account_mails(settings)
    await job.run(database, NOW)
    async with database.begin() as connection:
        await mailings.queue(connection, "password_changed", "someone@acme.example", "en", NOW)
    await job.run(database, NOW)
    assert len([*settings.mail_dir.iterdir()]) == 1


async def test_every_job_may_run_twice(database: Database) -> None:
    for job in (*worker.JOBS, *worker.JOBS):
        await job.run(database, NOW)


async def test_old_usage_is_dropped_only_where_it_is_asked_for(database: Database) -> None:
    async with database.begin() as connection:
        await ensure_partitions(connection, date(2024, 1, 1), 0)

    async def is_there() -> bool:
        async with database.begin() as connection:
            found = await connection.exec_driver_sql("SELECT to_regclass('usage_events_y2024m01') IS NOT NULL")
            return bool(found.scalar_one())

    at = datetime(2024, 5, 1, tzinfo=UTC)
    for keep_months, remains in ((0, True), (4, True), (3, False), (3, False)):
        await worker.drop_old_usage(keep_months).run(database, at)
        assert await is_there() is remains


async def test_usage_is_rolled_up_until_nothing_is_left(database: Database) -> None:
    hours = [datetime.now(UTC) - timedelta(hours=age) for age in (60, 30, 5)]
    async with database.begin() as connection:
        await ensure_partitions(connection, hours[0].date(), 3)
        await connection.execute(insert(UsageEvent), [event(at, started_at=at) for at in hours])
    await worker.roll_up_usage(database, NOW)
    async with database.begin() as connection:
        rolled = await connection.exec_driver_sql("SELECT sum(requests) FROM usage_rollup_hour")
        assert rolled.scalar_one() == 3


def test_without_a_database_there_is_no_work() -> None:
    with pytest.raises(ConfigError):
        worker.run(Settings(database_url=None))
