"""Keys, passwords and sessions."""

import re
from datetime import UTC, datetime, timedelta
from ipaddress import ip_network
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app import auth
from app.config import Settings
from app.db import Database
from app.errors import AuthenticationFailed, BadRequest, Conflict, PermissionDenied
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


async def test_keys_of_a_suspended_organisation_are_refused(database: Database, settings: Settings) -> None:
    key = await make_key(database, settings)
    async with database.begin() as connection:
        await connection.exec_driver_sql("UPDATE orgs SET status = 'suspended'")
    with pytest.raises(PermissionDenied) as refusal:
        await find(database, key)
    assert refusal.value.code == "organization_suspended"


async def test_organisations_are_listed_by_age(database: Database) -> None:
    first, second = await make_org(database, " One "), await make_org(database, "Two")
    async with database.begin() as connection:
        assert await auth.list_orgs(connection) == [(first, "One", "active"), (second, "Two", "active")]


@pytest.mark.parametrize("name", ["", "  ", "x" * 101, "a\nb"])
async def test_a_name_must_be_printable_and_short(database: Database, name: str) -> None:
    with pytest.raises(BadRequest):
        await make_org(database, name)


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


def key_with(**terms: object) -> auth.Key:
    return auth.Key(uuid4(), uuid4(), "free", frozenset(), None, None, 0, 0, NOW, **terms)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("host", "is_allowed"),
    [
        ("192.0.2.7", True),
        ("::ffff:192.0.2.7", True),
        ("2001:db8::1", True),
        ("192.0.3.7", False),
        ("2001:db9::1", False),
        ("testclient", False),
        (None, False),
    ],
)
def test_a_key_for_some_networks_is_refused_elsewhere(host: str | None, is_allowed: bool) -> None:
    key = key_with(ip_allow=(ip_network("192.0.2.0/24"), ip_network("2001:db8::/32")))
    if is_allowed:
        key.require_host(host)
        return
    with pytest.raises(PermissionDenied) as refusal:
        key.require_host(host)
    assert refusal.value.code == "ip_not_allowed"


def test_a_key_without_networks_works_from_anywhere() -> None:
    key_with().require_host(None)


def test_a_key_for_some_models_is_refused_for_others() -> None:
    key = key_with(allowed_models=frozenset({"one"}))
    key.require_model("one")
    with pytest.raises(PermissionDenied) as refusal:
        key.require_model("two")
    assert (refusal.value.code, refusal.value.param) == ("model_not_allowed", "model")
    key_with().require_model("two")


def test_a_remembered_key_ends_at_its_expiry() -> None:
    key = key_with(expires_at=NOW)
    key.require_present(NOW - timedelta(microseconds=1))
    with pytest.raises(AuthenticationFailed):
        key.require_present(NOW)
