"""Logins."""

from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from sqlalchemy import delete, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from app.accounts import sessions
from app.accounts.sessions import (
    CODE_LIFETIME,
    IDLE_LIFETIME,
    SEEN_INTERVAL,
    SESSION_LIFETIME,
    Device,
    Person,
    PortalUser,
)
from app.db import Database
from app.errors import NotFound
from app.tables import Membership, PortalSession
from tests.factories import make_org, make_user

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


@pytest.fixture
async def org_id(database: Database) -> UUID:
    return await make_org(database)


@pytest.fixture
async def user_id(database: Database, org_id: UUID) -> UUID:
    return await make_user(database, org_id)


async def join(connection: AsyncConnection, org_id: UUID, user_id: UUID, role: str = "viewer") -> None:
    row = {"org_id": org_id, "user_id": user_id, "role": role, "created_at": NOW + timedelta(days=365)}
    await connection.execute(insert(Membership).values(row))


async def test_a_session_lasts_seven_days(user_id: UUID, org_id: UUID, connection: AsyncConnection) -> None:
    token = await sessions.open_session(connection, user_id, NOW)
    end = NOW + SESSION_LIFETIME
    for day in range(SESSION_LIFETIME.days):
        assert await sessions.find_session(connection, token, NOW + timedelta(days=day)) is not None
    found = await sessions.find_session(connection, token, end - timedelta(seconds=1))
    assert found is not None
    assert found == PortalUser(found.session_id, user_id, "someone@acme.example", org_id, "Acme", "owner")
    assert await sessions.find_session(connection, token, end) is None
    assert await sessions.find_session(connection, "guess", NOW) is None


async def test_a_session_ends_that_nobody_uses(user_id: UUID, connection: AsyncConnection) -> None:
    token = await sessions.open_session(connection, user_id, NOW)
    used = NOW + IDLE_LIFETIME - timedelta(seconds=1)
    assert await sessions.find_session(connection, token, used) is not None
    idle = used + IDLE_LIFETIME
    assert len(await sessions.list_sessions(connection, user_id, idle - timedelta(seconds=1))) == 1
    assert await sessions.delete_expired_sessions(connection, idle - timedelta(seconds=1)) == 0
    assert await sessions.find_session(connection, token, idle) is None
    assert await sessions.list_sessions(connection, user_id, idle) == []
    assert await sessions.delete_expired_sessions(connection, idle) == 1


async def test_the_token_is_not_in_the_database(user_id: UUID, connection: AsyncConnection) -> None:
    token = await sessions.open_session(connection, user_id, NOW)
    rows = (await connection.execute(select(PortalSession))).all()
    assert token not in str(rows)
    assert len(rows) == 1


async def test_logging_out_ends_the_session(user_id: UUID, connection: AsyncConnection) -> None:
    token = await sessions.open_session(connection, user_id, NOW)
    await sessions.close_session(connection, "guess")
    assert await sessions.find_session(connection, token, NOW) is not None
    await sessions.close_session(connection, token)
    assert await sessions.find_session(connection, token, NOW) is None


async def test_only_ended_sessions_are_deleted(user_id: UUID, connection: AsyncConnection) -> None:
    token = await sessions.open_session(connection, user_id, NOW)
    assert await sessions.delete_expired_sessions(connection, NOW) == 0
    assert await sessions.find_session(connection, token, NOW) is not None
    assert await sessions.delete_expired_sessions(connection, NOW + SESSION_LIFETIME) == 1


async def test_a_login_that_waits_for_its_code_opens_nothing(user_id: UUID, connection: AsyncConnection) -> None:
    token = await sessions.open_session(connection, user_id, NOW, awaits_code=True)
    assert await sessions.find_person(connection, token, NOW) is None
    assert await sessions.list_sessions(connection, user_id, NOW) == []
    assert await sessions.find_awaiting(connection, token, NOW) == user_id
    assert await sessions.find_awaiting(connection, token, NOW + CODE_LIFETIME) is None
    full = await sessions.open_session(connection, user_id, NOW)
    assert await sessions.find_awaiting(connection, full, NOW) is None


async def test_the_organisation_that_was_joined_first_is_looked_at(
    database: Database, user_id: UUID, org_id: UUID, connection: AsyncConnection
) -> None:
    second = await make_org(database, "Globex")
    await join(connection, second, user_id)
    token = await sessions.open_session(connection, user_id, NOW)
    found = await sessions.find_session(connection, token, NOW)
    assert found is not None
    assert found.org_id == org_id


async def test_another_organisation_is_looked_at_in_this_session_alone(
    database: Database, user_id: UUID, org_id: UUID, connection: AsyncConnection
) -> None:
    second = await make_org(database, "Globex")
    await join(connection, second, user_id)
    here, there = [await sessions.open_session(connection, user_id, NOW) for _ in range(2)]
    person = await sessions.find_person(connection, here, NOW)
    assert person is not None
    await sessions.choose_org(connection, person, second)
    found = await sessions.find_session(connection, here, NOW)
    assert found == await sessions.reload(connection, person)
    assert found is not None
    assert (found.org_id, found.org_name, found.role) == (second, "Globex", "viewer")
    other = await sessions.find_session(connection, there, NOW)
    assert other is not None
    assert other.org_id == org_id


async def test_a_login_begins_at_the_organisation_that_is_asked_for(
    database: Database, user_id: UUID, connection: AsyncConnection
) -> None:
    second = await make_org(database, "Globex")
    await join(connection, second, user_id)
    token = await sessions.open_session(connection, user_id, NOW, org_id=second)
    found = await sessions.find_session(connection, token, NOW)
    assert found is not None
    assert found.org_id == second


async def test_nobody_looks_at_an_organisation_of_others(
    database: Database, user_id: UUID, org_id: UUID, connection: AsyncConnection
) -> None:
    other = await make_org(database, "Globex")
    token = await sessions.open_session(connection, user_id, NOW, org_id=other)
    person = await sessions.find_person(connection, token, NOW)
    assert isinstance(person, PortalUser)
    assert person.org_id == org_id
    for foreign in (other, uuid4()):
        with pytest.raises(NotFound):
            await sessions.choose_org(connection, person, foreign)


async def test_who_belongs_nowhere_is_a_person_and_no_user(
    database: Database, user_id: UUID, org_id: UUID, connection: AsyncConnection
) -> None:
    await make_user(database, org_id, "second@acme.example")
    await connection.execute(delete(Membership).where(Membership.user_id == user_id))
    token = await sessions.open_session(connection, user_id, NOW)
    assert await sessions.find_session(connection, token, NOW) is None
    person = await sessions.find_person(connection, token, NOW)
    assert person is not None
    assert person == Person(person.session_id, user_id, "someone@acme.example")


async def test_a_role_that_changes_holds_at_once(user_id: UUID, org_id: UUID, database: Database) -> None:
    second = await make_user(database, org_id, "second@acme.example", "developer")
    async with database.begin() as connection:
        token = await sessions.open_session(connection, second, NOW)
        mine = (Membership.user_id == second, Membership.org_id == org_id)
        await connection.execute(Membership.__table__.update().where(*mine).values(role="viewer"))  # type: ignore[attr-defined]
        found = await sessions.find_session(connection, token, NOW)
    assert found is not None
    assert found.role == "viewer"


async def test_the_list_shows_where_a_login_came_from(user_id: UUID, connection: AsyncConnection) -> None:
    await sessions.open_session(connection, user_id, NOW, Device("192.0.2.1", "Firefox" * 100))
    await sessions.open_session(connection, user_id, NOW + timedelta(hours=1))
    newer, older = await sessions.list_sessions(connection, user_id, NOW + timedelta(hours=2))
    assert (newer.ip, newer.user_agent) == (None, None)
    assert (older.ip, len(older.user_agent or "")) == ("192.0.2.1", sessions.MAX_USER_AGENT)
    assert older.created_at == NOW
    assert older.expires_at == NOW + SESSION_LIFETIME
    assert await sessions.list_sessions(connection, user_id, NOW + timedelta(days=9)) == []


async def test_when_it_was_last_seen_is_dated_every_few_minutes(user_id: UUID, connection: AsyncConnection) -> None:
    token = await sessions.open_session(connection, user_id, NOW)
    soon, later = NOW + timedelta(minutes=1), NOW + SEEN_INTERVAL
    await sessions.find_person(connection, token, soon)
    assert (await sessions.list_sessions(connection, user_id, soon))[0].last_seen_at == NOW
    await sessions.find_person(connection, token, later)
    assert (await sessions.list_sessions(connection, user_id, later))[0].last_seen_at == later


async def test_a_session_from_before_it_was_dated_is_dated(user_id: UUID, connection: AsyncConnection) -> None:
    token = await sessions.open_session(connection, user_id, NOW)
    await connection.execute(PortalSession.__table__.update().values(last_seen_at=None))  # type: ignore[attr-defined]
    assert (await sessions.list_sessions(connection, user_id, NOW))[0].last_seen_at is None
    await sessions.find_person(connection, token, NOW)
    assert (await sessions.list_sessions(connection, user_id, NOW))[0].last_seen_at == NOW


async def test_one_session_or_all_others_are_ended(user_id: UUID, connection: AsyncConnection) -> None:
    tokens = [await sessions.open_session(connection, user_id, NOW) for _ in range(3)]
    people = [await sessions.find_person(connection, token, NOW) for token in tokens]
    assert all(people)
    first, second, third = [person.session_id for person in people if person]
    await sessions.end_session(connection, user_id, first)
    with pytest.raises(NotFound):
        await sessions.end_session(connection, user_id, first)
    assert await sessions.end_sessions(connection, user_id, keep=second) == 1
    assert [session.id for session in await sessions.list_sessions(connection, user_id, NOW)] == [second]
    assert third != second
    assert await sessions.end_sessions(connection, user_id) == 1


async def test_nobody_ends_a_session_of_others(
    database: Database, user_id: UUID, org_id: UUID, connection: AsyncConnection
) -> None:
    other = await make_user(database, org_id, "other@acme.example")
    token = await sessions.open_session(connection, user_id, NOW)
    person = await sessions.find_person(connection, token, NOW)
    assert person is not None
    with pytest.raises(NotFound):
        await sessions.end_session(connection, other, person.session_id)
    assert await sessions.end_sessions(connection, other) == 0
    assert await sessions.find_person(connection, token, NOW) is not None
