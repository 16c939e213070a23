"""New passwords, apart from their pages."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from app.accounts import passwords, sessions, users
from app.accounts.passwords import RESET_LIFETIME, Reset
from app.db import Database
from app.errors import NotFound
from app.tables import PasswordReset
from tests.factories import make_org, make_user

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
EMAIL = "someone@acme.example"


@pytest.fixture
async def user_id(database: Database) -> UUID:
    return await make_user(database, await make_org(database), EMAIL)


async def ask(connection: AsyncConnection) -> str:
    asked = await passwords.ask_reset(connection, f" {EMAIL.upper()}", NOW)
    assert asked is not None
    return asked.text


async def test_a_link_sets_a_password_once(user_id: UUID, connection: AsyncConnection) -> None:
    earlier, token = await ask(connection), await ask(connection)
    assert await passwords.find_reset(connection, token, NOW) == Reset(user_id, EMAIL)
    with pytest.raises(NotFound):  # the newer took its place
        await passwords.find_reset(connection, earlier, NOW)
    await passwords.use_reset(connection, token, "a hash", NOW)
    assert (await users.login_of(connection, user_id)).password_hash == "a hash"
    with pytest.raises(NotFound):
        await passwords.find_reset(connection, token, NOW)
    with pytest.raises(NotFound):
        await passwords.use_reset(connection, token, "another hash", NOW)


async def test_a_link_works_for_an_hour(user_id: UUID, connection: AsyncConnection) -> None:
    token, end = await ask(connection), NOW + RESET_LIFETIME
    await passwords.find_reset(connection, token, end - timedelta(seconds=1))
    with pytest.raises(NotFound):
        await passwords.use_reset(connection, token, "a hash", end)
    assert await passwords.delete_expired_resets(connection, end - timedelta(seconds=1)) == 0
    assert await passwords.delete_expired_resets(connection, end) == 1
    assert (await users.login_of(connection, user_id)).password_hash != "a hash"


async def test_nobody_gets_no_link(connection: AsyncConnection) -> None:
    assert await passwords.ask_reset(connection, "nobody@acme.example", NOW) is None
    assert (await connection.execute(select(PasswordReset))).all() == []


async def test_no_token_is_in_the_database(user_id: UUID, connection: AsyncConnection) -> None:
    token = await ask(connection)
    assert token not in str((await connection.execute(select(PasswordReset))).all())


async def test_a_new_password_ends_the_other_sessions(user_id: UUID, connection: AsyncConnection) -> None:
    mine, other = [await sessions.open_session(connection, user_id, NOW) for _ in range(2)]
    person = await sessions.find_person(connection, mine, NOW)
    assert person is not None
    await passwords.change_password(connection, user_id, "a hash", keep_session=person.session_id)
    assert await sessions.find_person(connection, mine, NOW) is not None
    assert await sessions.find_person(connection, other, NOW) is None
    await passwords.use_reset(connection, await ask(connection), "another hash", NOW)
    assert await sessions.find_person(connection, mine, NOW) is None
