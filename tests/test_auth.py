"""Keys, passwords and sessions."""

import re
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app import auth
from app.config import Settings
from app.db import Database
from app.errors import AuthenticationFailed, BadRequest, Conflict, NotFound, PermissionDenied
from tests.conftest import PEPPER
from tests.factories import PASSWORD, make_key, make_org, make_user

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


def test_a_key_has_the_published_form() -> None:
    key = auth.generate_key()
    assert re.fullmatch(r"tg_live_[0-9A-Za-z]{36}", key)
    assert auth.is_well_formed(key)
    assert auth.generate_key() != key


@given(st.integers(0, 43), st.characters(exclude_categories=["Cs"]))
def test_one_wrong_character_is_refused_without_the_database(position: int, wrong: str) -> None:
    key = auth.generate_key()
    changed = key[:position] + wrong + key[position + 1 :]
    assert auth.is_well_formed(changed) == (changed == key)


@pytest.mark.parametrize("key", ["", "tg_live_", "sk-abc", "tg_live_" + "0" * 35, "tg_live_" + "é" * 36])
def test_other_strings_are_no_keys(key: str) -> None:
    assert not auth.is_well_formed(key)


def test_the_hash_needs_the_pepper() -> None:
    key = auth.generate_key()
    assert auth.hash_key(key, "one") != auth.hash_key(key, "two")
    assert len(auth.hash_key(key, "one")) == 32


async def find(database: Database, key: str, now: datetime | None = None) -> auth.Key:
    async with database.begin() as connection:
        return await auth.find_key(connection, key, PEPPER, now)


async def test_a_minted_key_is_found_with_its_organisation_and_scopes(database: Database, settings: Settings) -> None:
    org_id = await make_org(database)
    key = await make_key(database, settings, org_id, scopes=("usage",), requests_per_minute=7, tokens_per_minute=9)
    found = await find(database, key)
    assert (found.org_id, found.scopes) == (org_id, frozenset({"usage"}))
    assert (found.requests_per_minute, found.tokens_per_minute) == (7, 9)
    found.require("usage")
    with pytest.raises(PermissionDenied):
        found.require("generation")


async def test_the_key_itself_is_nowhere_in_the_database(database: Database, settings: Settings) -> None:
    key = await make_key(database, settings)
    async with database.begin() as connection:
        rows = await connection.exec_driver_sql("SELECT row_to_json(api_keys)::text FROM api_keys")
        (stored,) = rows.scalars()
    assert key not in stored
    assert key[8:-4] not in stored


async def test_an_unknown_key_is_refused(database: Database) -> None:
    with pytest.raises(AuthenticationFailed):
        await find(database, auth.generate_key())


async def test_a_malformed_key_is_refused(database: Database) -> None:
    with pytest.raises(AuthenticationFailed):
        await find(database, "tg_live_nonsense")


async def test_a_key_ends_at_its_expiry(database: Database, settings: Settings) -> None:
    end = datetime.now(UTC) + timedelta(days=1)
    key = await make_key(database, settings, expires_at=end)
    await find(database, key, end - timedelta(microseconds=1))
    with pytest.raises(AuthenticationFailed):
        await find(database, key, end)


async def test_a_revoked_key_is_refused_at_once_and_stays_revoked(database: Database, settings: Settings) -> None:
    key = await make_key(database, settings)
    key_id = (await find(database, key)).id
    async with database.begin() as connection:
        await auth.revoke_key(connection, key_id)
    with pytest.raises(AuthenticationFailed):
        await find(database, key)
    async with database.begin() as connection:
        before = (await connection.exec_driver_sql("SELECT revoked_at FROM api_keys")).scalar_one()
    async with database.begin() as connection:
        await auth.revoke_key(connection, key_id)
        after = (await connection.exec_driver_sql("SELECT revoked_at FROM api_keys")).scalar_one()
    assert before == after


async def test_a_key_of_another_organisation_cannot_be_revoked(database: Database, settings: Settings) -> None:
    key = await make_key(database, settings)
    found = await find(database, key)
    stranger = await make_org(database, "Other")
    async with database.begin() as connection:
        with pytest.raises(NotFound):
            await auth.revoke_key(connection, found.id, stranger)
    async with database.begin() as connection:
        await auth.revoke_key(connection, found.id, found.org_id)
    with pytest.raises(AuthenticationFailed):
        await find(database, key)


async def test_an_unknown_key_cannot_be_revoked(database: Database) -> None:
    async with database.begin() as connection:
        with pytest.raises(NotFound):
            await auth.revoke_key(connection, uuid4())


async def test_keys_of_a_suspended_organisation_are_refused(database: Database, settings: Settings) -> None:
    key = await make_key(database, settings)
    async with database.begin() as connection:
        await connection.exec_driver_sql("UPDATE orgs SET status = 'suspended'")
    with pytest.raises(PermissionDenied) as refusal:
        await find(database, key)
    assert refusal.value.code == "organization_suspended"


async def test_keys_are_listed_newest_first_and_only_ones_own(database: Database, settings: Settings) -> None:
    org_id, other = await make_org(database), await make_org(database, "Other")
    first = await make_key(database, settings, org_id, name="first")
    await make_key(database, settings, org_id, name="second", expires_at=datetime.now(UTC) + timedelta(hours=1))
    await make_key(database, settings, other, name="foreign")
    async with database.begin() as connection:
        listed = await auth.list_keys(connection, org_id)
    assert [key.name for key in listed] == ["second", "first"]
    assert (listed[1].prefix, listed[1].last4) == ("tg_live_", first[-4:])
    assert listed[0].is_active(datetime.now(UTC))
    assert not listed[0].is_active(datetime.now(UTC) + timedelta(hours=2))
    assert not hasattr(listed[0], "key_hash")


async def test_organisations_are_listed_by_age(database: Database) -> None:
    first, second = await make_org(database, " One "), await make_org(database, "Two")
    async with database.begin() as connection:
        assert await auth.list_orgs(connection) == [(first, "One", "active"), (second, "Two", "active")]


@pytest.mark.parametrize("name", ["", "  ", "x" * 101, "a\nb"])
async def test_a_name_must_be_printable_and_short(database: Database, name: str) -> None:
    with pytest.raises(BadRequest):
        await make_org(database, name)


@pytest.mark.parametrize(
    "wrong",
    [
        {"scopes": ()},
        {"scopes": ("root",)},
        {"expires_at": datetime(2020, 1, 1, tzinfo=UTC)},
        {"requests_per_minute": 0},
        {"tokens_per_minute": -1},
    ],
)
async def test_an_impossible_key_is_not_minted(
    database: Database, settings: Settings, wrong: dict[str, object]
) -> None:
    org_id = await make_org(database)
    with pytest.raises(BadRequest):
        await make_key(database, settings, org_id, **wrong)  # type: ignore[arg-type]


async def test_no_key_without_an_organisation(database: Database, settings: Settings) -> None:
    with pytest.raises(NotFound) as missing:
        await make_key(database, settings, uuid4())
    assert missing.value.code == "org_not_found"


async def test_the_right_password_opens_the_login(database: Database) -> None:
    user_id = await make_user(database, await make_org(database), "Some.One@Acme.example")
    async with database.begin() as connection:
        found = await auth.find_login(connection, " some.one@acme.EXAMPLE ")
    assert found is not None
    assert found[0] == user_id
    assert auth.check_password(found[1], PASSWORD)
    assert not auth.check_password(found[1], "another password")
    assert PASSWORD not in found[1]


async def test_nobody_has_no_login(database: Database) -> None:
    async with database.begin() as connection:
        assert await auth.find_login(connection, "nobody@acme.example") is None
        assert await auth.find_login(connection, "nobody\0@acme.example") is None
    assert not auth.check_password(None, PASSWORD)
    assert not auth.check_password("damaged", PASSWORD)


async def test_an_address_is_used_once(database: Database) -> None:
    org_id = await make_org(database)
    await make_user(database, org_id)
    with pytest.raises(Conflict):
        await make_user(database, org_id)


@pytest.mark.parametrize(
    ("email", "password", "role"),
    [("nonsense", PASSWORD, "owner"), ("a@b.example", "short", "owner"), ("a@b.example", PASSWORD, "emperor")],
)
async def test_a_user_needs_an_address_a_password_and_a_role(
    database: Database, email: str, password: str, role: str
) -> None:
    org_id = await make_org(database)
    async with database.begin() as connection:
        with pytest.raises(BadRequest):
            await auth.create_user(connection, org_id, email, password, role)


async def open_session(database: Database, user_id: UUID) -> str:
    async with database.begin() as connection:
        return await auth.open_session(connection, user_id, NOW)


async def find_session(database: Database, token: str, now: datetime) -> auth.PortalUser | None:
    async with database.begin() as connection:
        return await auth.find_session(connection, token, now)


async def test_a_session_lasts_seven_days(database: Database) -> None:
    org_id = await make_org(database)
    user_id = await make_user(database, org_id)
    token = await open_session(database, user_id)
    end = NOW + auth.SESSION_LIFETIME
    found = await find_session(database, token, end - timedelta(seconds=1))
    assert found == auth.PortalUser(user_id, "someone@acme.example", org_id, "Acme", "owner")
    assert await find_session(database, token, end) is None
    assert await find_session(database, "guess", NOW) is None


async def test_logging_out_ends_the_session(database: Database) -> None:
    token = await open_session(database, await make_user(database, await make_org(database)))
    async with database.begin() as connection:
        await auth.close_session(connection, token)
    assert await find_session(database, token, NOW) is None


async def test_only_ended_sessions_are_deleted(database: Database) -> None:
    token = await open_session(database, await make_user(database, await make_org(database)))
    async with database.begin() as connection:
        assert await auth.delete_expired_sessions(connection, NOW) == 0
    assert await find_session(database, token, NOW) is not None
    async with database.begin() as connection:
        assert await auth.delete_expired_sessions(connection, NOW + auth.SESSION_LIFETIME) == 1


async def test_the_last_use_of_a_key_is_its_last_admission(database: Database, settings: Settings) -> None:
    org_id = await make_org(database)
    await make_key(database, settings, org_id)
    async with database.begin() as connection:
        assert await auth.touch_used_keys(connection) == 0
        await connection.exec_driver_sql("UPDATE rate_buckets SET updated_at = now() + interval '1 second'")
        assert await auth.touch_used_keys(connection) == 1
        assert await auth.touch_used_keys(connection) == 0
    async with database.begin() as connection:
        (listed,) = await auth.list_keys(connection, org_id)
    assert listed.last_used_at is not None
