"""``tollgate people``, against the database of the test."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TypeVar
from uuid import UUID, uuid4

import pytest
from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from app.accounts import second_factor, sessions
from app.accounts.users import login_of
from app.config import Settings
from app.db import Database
from app.tables import AccountMail, AuditEntry, SecondFactor
from tests.cli.test_cli import call
from tests.factories import make_org, make_user

T = TypeVar("T")


def ask(settings: Settings, what: Callable[[Database], Awaitable[T]]) -> T:
    """The answer of the test's database, in a loop of its own."""

    async def run() -> T:
        assert settings.database_url is not None
        database = Database.connect(settings.database_url)
        try:
            return await what(database)
        finally:
            await database.aclose()

    return asyncio.run(run())


@pytest.fixture(autouse=True)
def environment(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands see the test's database."""
    monkeypatch.setenv("TOLLGATE_DATA_DIR", str(settings.data_dir))
    monkeypatch.setenv("TOLLGATE_DATABASE_URL", str(settings.database_url))


@pytest.fixture
def email() -> str:
    """Of another person in each test."""
    return f"{uuid4().hex}@acme.example"


@pytest.fixture
def jane(settings: Settings, email: str) -> UUID:
    """Somebody with a second factor and an open session."""

    async def make(database: Database) -> UUID:
        user_id = await make_user(database, await make_org(database), email)
        async with database.begin() as connection:
            await second_factor.start(connection, user_id, datetime.now(UTC))
            await connection.execute(
                update(SecondFactor).where(SecondFactor.user_id == user_id).values(confirmed_at=datetime.now(UTC))
            )
            await second_factor.renew_recovery_codes(connection, user_id)
            await sessions.open_session(connection, user_id, datetime.now(UTC))
        return user_id

    return ask(settings, make)


async def num_sessions(connection: AsyncConnection, user_id: UUID) -> int:
    return len(await sessions.list_sessions(connection, user_id, datetime.now(UTC)))


def test_who_lost_their_second_factor_gets_in_again(
    monkeypatch: pytest.MonkeyPatch, settings: Settings, jane: UUID, email: str
) -> None:
    assert call(monkeypatch, "people", "second-factor-off", email.upper()) == 0

    async def check(database: Database) -> None:
        async with database.begin() as connection:
            assert not (await login_of(connection, jane)).has_second_factor
            assert await second_factor.num_recovery_codes(connection, jane) == 0
            assert await num_sessions(connection, jane) == 0
            mail = (await connection.execute(select(AccountMail).where(AccountMail.email == email))).one()
            entry = (await connection.execute(select(AuditEntry).where(AuditEntry.target == f"user:{jane}"))).one()
        assert mail.kind == "second_factor_off"
        assert (entry.actor, entry.action) == ("operator", "second_factor.off")

    ask(settings, check)


def test_somebody_is_signed_out_everywhere(
    monkeypatch: pytest.MonkeyPatch, settings: Settings, jane: UUID, email: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "people", "sign-out", email) == 0
    assert capsys.readouterr().out == "1\n"

    async def check(database: Database) -> None:
        async with database.begin() as connection:
            assert await num_sessions(connection, jane) == 0
            action = select(AuditEntry.action).where(AuditEntry.target == f"user:{jane}")
            assert (await connection.execute(action)).scalar_one() == "session.end_all"

    ask(settings, check)


@pytest.mark.parametrize("command", ["second-factor-off", "sign-out"])
def test_nobody_is_told_apart(
    monkeypatch: pytest.MonkeyPatch, settings: Settings, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ask(settings, make_org)
    assert call(monkeypatch, "people", command, "nobody@acme.example") == 1
    assert "nobody signs in as nobody@acme.example" in capsys.readouterr().err
