"""The life of keys: what they may do, rotation, revocation, leaks."""

from datetime import UTC, datetime, timedelta
from ipaddress import ip_network
from typing import Any
from uuid import UUID, uuid4

import pytest

from app import auth, keys
from app.config import Settings
from app.db import Database
from app.errors import AuthenticationFailed, BadRequest, Conflict, NotFound
from app.key_terms import Terms, parse_networks
from app.keys import KeyListing
from tests.conftest import PEPPER
from tests.factories import make_key, make_org


async def find(database: Database, key: str, now: datetime | None = None) -> auth.Key:
    async with database.begin() as connection:
        return await auth.find_key(connection, key, PEPPER, now)


async def test_the_key_itself_is_nowhere_in_the_database(database: Database, settings: Settings) -> None:
    key = await make_key(database, settings)
    async with database.begin() as connection:
        rows = await connection.exec_driver_sql("SELECT row_to_json(api_keys)::text FROM api_keys")
        (stored,) = rows.scalars()
    assert key not in stored
    assert key[8:-4] not in stored


async def test_a_revoked_key_is_refused_at_once_and_stays_revoked(database: Database, settings: Settings) -> None:
    key = await make_key(database, settings)
    key_id = (await find(database, key)).id
    async with database.begin() as connection:
        await keys.revoke_key(connection, key_id)
    with pytest.raises(AuthenticationFailed):
        await find(database, key)
    async with database.begin() as connection:
        before = (await connection.exec_driver_sql("SELECT revoked_at FROM api_keys")).scalar_one()
    async with database.begin() as connection:
        await keys.revoke_key(connection, key_id)
        after = (await connection.exec_driver_sql("SELECT revoked_at FROM api_keys")).scalar_one()
    assert before == after


async def test_a_key_of_another_organisation_cannot_be_revoked(database: Database, settings: Settings) -> None:
    key = await make_key(database, settings)
    found = await find(database, key)
    stranger = await make_org(database, "Other")
    async with database.begin() as connection:
        with pytest.raises(NotFound):
            await keys.revoke_key(connection, found.id, stranger)
    async with database.begin() as connection:
        await keys.revoke_key(connection, found.id, found.org_id)
    with pytest.raises(AuthenticationFailed):
        await find(database, key)


async def test_an_unknown_key_cannot_be_revoked(database: Database) -> None:
    async with database.begin() as connection:
        with pytest.raises(NotFound):
            await keys.revoke_key(connection, uuid4())


async def test_keys_are_listed_newest_first_and_only_ones_own(database: Database, settings: Settings) -> None:
    org_id, other = await make_org(database), await make_org(database, "Other")
    first = await make_key(database, settings, org_id, name="first")
    await make_key(database, settings, org_id, name="second", expires_at=datetime.now(UTC) + timedelta(hours=1))
    await make_key(database, settings, other, name="foreign")
    async with database.begin() as connection:
        listed = await keys.list_keys(connection, org_id)
    assert [key.name for key in listed] == ["second", "first"]
    assert (listed[1].prefix, listed[1].last4) == ("tg_live_", first[-4:])
    assert listed[0].is_active(datetime.now(UTC))
    assert not listed[0].is_active(datetime.now(UTC) + timedelta(hours=2))
    assert not hasattr(listed[0], "key_hash")


@pytest.mark.parametrize(
    "wrong",
    [
        {"scopes": ()},
        {"scopes": ("root",)},
        {"expires_at": datetime(2020, 1, 1, tzinfo=UTC)},
        {"requests_per_minute": 0},
        {"tokens_per_minute": -1},
        {"tokens_per_minute": 2**31},
        {"allowed_models": ()},
        {"allowed_models": ("a\0",)},
        {"ip_allow": ()},
        {"monthly_cap": -1},
        {"monthly_cap": 2**63},
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


async def test_the_last_use_of_a_key_is_its_last_admission(database: Database, settings: Settings) -> None:
    org_id = await make_org(database)
    await make_key(database, settings, org_id)
    async with database.begin() as connection:
        assert await keys.touch_used_keys(connection) == 0
        await connection.exec_driver_sql("UPDATE rate_buckets SET updated_at = now() + interval '1 second'")
        assert await keys.touch_used_keys(connection) == 1
        assert await keys.touch_used_keys(connection) == 0
    async with database.begin() as connection:
        (listed,) = await keys.list_keys(connection, org_id)
    assert listed.last_used_at is not None


NETWORK = ip_network("192.0.2.0/24")
FULL = Terms("full", ("usage", "keys"), ("one", "two"), (NETWORK, ip_network("2001:db8::/32")), 5, 50, 7 * 10**12, None)


async def mint(database: Database, settings: Settings, terms: Terms = FULL, org_id: UUID | None = None) -> KeyListing:
    owner = org_id or await make_org(database)
    async with database.begin() as connection:
        new = await keys.mint_key(connection, settings, owner, terms)
        return await keys.get_key(connection, new.id)


async def rotate(database: Database, settings: Settings, key_id: UUID, old_ends_at: datetime) -> keys.NewKey:
    async with database.begin() as connection:
        return await keys.rotate_key(connection, settings, key_id, old_ends_at=old_ends_at)


async def get(database: Database, key_id: UUID) -> KeyListing:
    async with database.begin() as connection:
        return await keys.get_key(connection, key_id)


def soon(hours: float = 1) -> datetime:
    return datetime.now(UTC) + timedelta(hours=hours)


async def test_terms_are_kept_as_they_were_given(database: Database, settings: Settings) -> None:
    listed = await mint(database, settings)
    assert listed.terms == FULL
    assert (listed.revoke_reason, listed.replaced_by, listed.created_by) == (None, None, None)


async def test_the_key_of_a_request_knows_its_models_networks_and_end(database: Database, settings: Settings) -> None:
    end = soon()
    secret = await make_key(database, settings, allowed_models=("one", "one"), ip_allow=(NETWORK,), expires_at=end)
    found = await find(database, secret)
    assert (found.allowed_models, found.ip_allow, found.expires_at) == (frozenset({"one"}), (NETWORK,), end)


async def test_a_change_touches_what_it_names_and_nothing_else(database: Database, settings: Settings) -> None:
    listed = await mint(database, settings)
    changes: dict[str, Any] = {"name": " new ", "ip_allow": None, "monthly_cap": 0}
    async with database.begin() as connection:
        await keys.update_key(connection, listed.id, changes, listed.org_id)
    found = (await get(database, listed.id)).terms
    assert (found.name, found.ip_allow, found.monthly_cap) == ("new", None, 0)
    assert (found.scopes, found.allowed_models, found.requests_per_minute) == (("usage", "keys"), ("one", "two"), 5)


@pytest.mark.parametrize("wrong", [{"scopes": ()}, {"name": ""}, {"expires_at": datetime(2020, 1, 1, tzinfo=UTC)}])
async def test_a_change_to_what_cannot_be_is_refused(
    database: Database, settings: Settings, wrong: dict[str, Any]
) -> None:
    listed = await mint(database, settings)
    with pytest.raises(BadRequest):
        async with database.begin() as connection:
            await keys.update_key(connection, listed.id, wrong)
    assert (await get(database, listed.id)).terms == FULL


async def test_an_expired_key_may_be_renamed_without_being_prolonged(database: Database, settings: Settings) -> None:
    listed = await mint(database, settings)
    async with database.begin() as connection:
        await connection.exec_driver_sql("UPDATE api_keys SET expires_at = now() - interval '1 hour'")
        changed = await keys.update_key(connection, listed.id, {"name": "old"})
    assert changed.state(datetime.now(UTC)) == "expired"


async def test_a_revoked_key_stays_as_it_is(database: Database, settings: Settings) -> None:
    listed = await mint(database, settings)
    async with database.begin() as connection:
        assert (await keys.revoke_key(connection, listed.id)).revoke_reason == "revoked"
    with pytest.raises(Conflict) as refusal:
        async with database.begin() as connection:
            await keys.update_key(connection, listed.id, {"name": "again"})
    assert refusal.value.code == "key_revoked"


async def test_keys_of_others_cannot_be_read_changed_or_rotated(database: Database, settings: Settings) -> None:
    listed, stranger = await mint(database, settings), await make_org(database, "Other")
    async with database.begin() as connection:
        for attempt in (
            keys.get_key(connection, listed.id, stranger),
            keys.update_key(connection, listed.id, {"name": "mine"}, stranger),
            keys.rotate_key(connection, settings, listed.id, old_ends_at=soon(), org_id=stranger),
        ):
            with pytest.raises(NotFound):
                await attempt
    assert await get(database, listed.id) == listed


async def test_after_a_rotation_both_keys_work_until_the_chosen_time(database: Database, settings: Settings) -> None:
    org_id, end = await make_org(database), soon()
    secret = await make_key(database, settings, org_id, name="pair", requests_per_minute=3)
    old = await find(database, secret)
    new = await rotate(database, settings, old.id, end)
    successor = await find(database, new.key)
    assert (successor.id, successor.org_id, successor.requests_per_minute) == (new.id, org_id, 3)
    await find(database, secret, end - timedelta(microseconds=1))
    with pytest.raises(AuthenticationFailed):
        await find(database, secret, end)
    await find(database, new.key, end)
    listed = await get(database, old.id)
    assert (listed.replaced_by, (await get(database, new.id)).name) == (new.id, "pair")


async def test_a_successor_does_not_start_with_full_rates(database: Database, settings: Settings) -> None:
    old = await find(database, await make_key(database, settings))
    async with database.begin() as connection:
        await connection.exec_driver_sql("UPDATE rate_buckets SET requests_level = 2, updated_at = now()")
    new = await rotate(database, settings, old.id, soon())
    assert (await find(database, new.key)).requests_level == 2


async def test_a_rotation_without_overlap_ends_the_old_key_at_once(database: Database, settings: Settings) -> None:
    secret = await make_key(database, settings)
    old = await find(database, secret)
    new = await rotate(database, settings, old.id, datetime.now(UTC))
    with pytest.raises(AuthenticationFailed):
        await find(database, secret)
    await find(database, new.key)
    assert (await get(database, old.id)).revoke_reason == "rotated"


async def test_a_rotation_does_not_prolong_the_old_key(database: Database, settings: Settings) -> None:
    end = soon()
    old = await find(database, await make_key(database, settings, expires_at=end))
    await rotate(database, settings, old.id, soon(9))
    assert (await get(database, old.id)).terms.expires_at == end


async def test_a_second_rotation_needs_the_lost_successor_revoked(database: Database, settings: Settings) -> None:
    old = await find(database, await make_key(database, settings))
    lost = await rotate(database, settings, old.id, soon())
    with pytest.raises(Conflict) as refusal:
        await rotate(database, settings, old.id, soon())
    assert refusal.value.code == "key_replaced"
    async with database.begin() as connection:
        await keys.revoke_key(connection, lost.id)
    again = await rotate(database, settings, old.id, soon())
    assert (await get(database, old.id)).replaced_by == again.id


async def test_a_key_that_ended_cannot_be_rotated(database: Database, settings: Settings) -> None:
    listed = await mint(database, settings)
    async with database.begin() as connection:
        await keys.revoke_key(connection, listed.id)
    with pytest.raises(Conflict) as refusal:
        await rotate(database, settings, listed.id, soon())
    assert refusal.value.code == "key_not_active"


async def test_a_leaked_key_ends_and_an_unknown_one_changes_nothing(database: Database, settings: Settings) -> None:
    secret, other = await make_key(database, settings), await make_key(database, settings)
    key_id = (await find(database, secret)).id
    async with database.begin() as connection:
        assert await keys.report_leak(connection, settings, auth.generate_key()) is None
        assert await keys.report_leak(connection, settings, secret) == key_id
        assert await keys.report_leak(connection, settings, secret) is None
    assert (await get(database, key_id)).revoke_reason == "leaked"
    await find(database, other)


async def test_pages_of_keys_together_are_all(database: Database, settings: Settings) -> None:
    org_id = await make_org(database)
    for name in "abcde":
        await make_key(database, settings, org_id, name=name)
    names, after = list[str](), None
    for _ in range(3):
        async with database.begin() as connection:
            page = await keys.list_keys(connection, org_id, limit=2, after=after)
        names += [key.name for key in page]
        after = page[-1].id
    assert names == [*"edcba"]
    stranger = await make_org(database, "Other")
    with pytest.raises(BadRequest):
        async with database.begin() as connection:
            await keys.list_keys(connection, stranger, after=after)


async def test_an_organisation_has_a_bounded_number_of_live_keys(
    database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "MAX_KEYS", 2)
    org_id = await make_org(database)
    first = await mint(database, settings, FULL, org_id)
    await mint(database, settings, FULL, org_id)
    with pytest.raises(Conflict):
        await mint(database, settings, FULL, org_id)
    async with database.begin() as connection:
        await keys.revoke_key(connection, first.id)
    await mint(database, settings, FULL, org_id)


@pytest.mark.parametrize("value", ["nonsense", "192.0.2.1/24", "300.0.0.1"])
def test_what_is_no_network_is_refused(value: str) -> None:
    with pytest.raises(BadRequest):
        parse_networks(["192.0.2.0/24", value])


def test_a_lone_address_is_a_network_of_one() -> None:
    assert parse_networks(["192.0.2.1"]) == (ip_network("192.0.2.1/32"),)
