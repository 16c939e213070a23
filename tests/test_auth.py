"""Keys, passwords and sessions."""

import re
from datetime import UTC, datetime, timedelta
from ipaddress import ip_network
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app import auth
from app.config import Settings
from app.db import Database
from app.errors import AuthenticationFailed, PermissionDenied
from tests.conftest import PEPPER
from tests.factories import make_key, make_org

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
