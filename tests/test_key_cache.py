"""What is remembered of keys, and for how long, with a clock and pauses that the test turns."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from app import auth, keys
from app.config import Settings
from app.db import Database
from app.key_cache import HEARTBEAT_S, MAX_AGE_S, TRUST_S, UNHEARD_AGE_S, KeyCache
from tests.conftest import PEPPER
from tests.factories import make_key, make_org

KEY, OTHER = b"k" * 32, b"o" * 32


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Turns:
    """Pauses that end when the test says so."""

    def __init__(self) -> None:
        self.reached = asyncio.Semaphore(0)
        self.go_on = asyncio.Semaphore(0)

    async def __call__(self, seconds: float) -> None:
        assert seconds == HEARTBEAT_S
        self.reached.release()
        await self.go_on.acquire()

    async def next(self) -> None:
        self.go_on.release()
        async with asyncio.timeout(30):
            await self.reached.acquire()


async def forgotten(cache: KeyCache[Any], key_hash: bytes) -> None:
    """Returns once the key is not remembered any more."""
    async with asyncio.timeout(30):
        while True:
            if cache.get(key_hash) is None:
                return
            await asyncio.sleep(0)


def put(cache: KeyCache[str], key_hash: bytes = KEY, value: str = "found") -> None:
    cache.put(key_hash, value, cache.ticket())


def test_without_the_channel_a_key_is_forgotten_within_a_second() -> None:
    clock = Clock()
    cache = KeyCache[str](clock=clock)
    put(cache)
    assert not cache.is_heard
    clock.now += UNHEARD_AGE_S - 0.01
    assert cache.get(KEY) == "found"
    clock.now += 0.01
    assert cache.get(KEY) is None
    assert UNHEARD_AGE_S <= TRUST_S <= 1


def test_what_changed_while_it_was_looked_up_is_not_kept() -> None:
    cache = KeyCache[str]()
    ticket = cache.ticket()
    cache.forget(OTHER)
    cache.put(KEY, "outdated", ticket)
    assert cache.get(KEY) is None


def test_a_key_ages_from_before_its_look_up() -> None:
    clock = Clock()
    cache = KeyCache[str](clock=clock)
    ticket = cache.ticket()
    clock.now += UNHEARD_AGE_S
    cache.put(KEY, "slow", ticket)
    assert cache.get(KEY) is None


def test_one_key_or_all_are_forgotten() -> None:
    cache = KeyCache[str]()
    put(cache)
    put(cache, OTHER)
    cache.forget(KEY)
    assert (cache.get(KEY), cache.get(OTHER)) == (None, "found")
    cache.forget()
    assert cache.get(OTHER) is None


def test_the_oldest_goes_first() -> None:
    cache = KeyCache[str](max_keys=2)
    for key_hash in (KEY, OTHER, KEY, b"n" * 32):
        put(cache, key_hash)
    assert cache.get(OTHER) is None
    assert cache.get(KEY) == "found"


def is_heard(cache: KeyCache[str]) -> bool:
    return cache.is_heard


@asynccontextmanager
async def following(database: Database, cache: KeyCache[str]) -> AsyncIterator[Turns]:
    """The cache hears of changes; one heartbeat has passed."""
    turns = Turns()
    task = asyncio.create_task(cache.follow(database, pause=turns))
    async with asyncio.timeout(30):
        await turns.reached.acquire()
    yield turns
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_with_the_channel_a_key_is_kept_longer(database: Database) -> None:
    clock = Clock()
    cache = KeyCache[str](clock=clock)
    async with following(database, cache) as turns:
        put(cache)
        clock.now += MAX_AGE_S - 0.01
        await turns.next()
        assert cache.get(KEY) == "found"
        clock.now += 0.01
        assert cache.get(KEY) is None


async def test_what_was_remembered_before_the_channel_opened_is_forgotten(database: Database) -> None:
    cache = KeyCache[str]()
    put(cache)
    async with following(database, cache):
        assert cache.get(KEY) is None


async def test_a_silent_channel_is_not_trusted(database: Database) -> None:
    clock = Clock()
    cache = KeyCache[str](clock=clock)
    async with following(database, cache):
        put(cache)
        clock.now += TRUST_S
        assert not cache.is_heard
        assert cache.get(KEY) is None


async def test_a_broken_channel_is_not_trusted_and_opened_again(database: Database) -> None:
    cache = KeyCache[str](clock=Clock())
    async with following(database, cache) as turns:
        assert is_heard(cache)
        async with database.begin() as connection:
            await connection.exec_driver_sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        while is_heard(cache):
            await turns.next()
        put(cache)
        await turns.next()
        assert is_heard(cache)
        assert cache.get(KEY) is None


async def test_a_database_that_is_away_is_tried_again() -> None:
    away = Database.connect("postgresql://nobody@127.0.0.1:9/none", timeout_s=1)
    cache = KeyCache[str]()
    async with following(away, cache) as turns:
        await turns.next()
        assert not cache.is_heard
    await away.aclose()


CHANGES = {
    "revoked": "UPDATE api_keys SET revoked_at = now()",
    "expiry": "UPDATE api_keys SET expires_at = now()",
    "scopes": "UPDATE api_keys SET scopes = '{usage}'",
    "models": "UPDATE api_keys SET allowed_models = '{one}'",
    "networks": "UPDATE api_keys SET ip_allow = '{192.0.2.0/24}'",
    "requests": "UPDATE api_keys SET requests_per_minute = 1",
    "tokens": "UPDATE api_keys SET tokens_per_minute = 1",
    "cap": "UPDATE api_keys SET monthly_cap = 1",
    "deleted": "DELETE FROM api_keys",
    "suspended": "UPDATE orgs SET status = 'suspended'",
    "organisation gone": "DELETE FROM orgs",
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
async def test_every_change_that_matters_is_told(database: Database, settings: Settings, change: str) -> None:
    key_hash = auth.hash_key(await make_key(database, settings), PEPPER)
    cache = KeyCache[str](clock=Clock())
    async with following(database, cache):
        put(cache, key_hash)
        async with database.begin() as connection:
            await connection.exec_driver_sql(change)
        await forgotten(cache, key_hash)


async def test_the_date_of_last_use_is_not_news(database: Database, settings: Settings) -> None:
    org_id = await make_org(database)
    used, revoked = [auth.hash_key(await make_key(database, settings, org_id), PEPPER) for _ in range(2)]
    cache = KeyCache[str](clock=Clock())
    async with following(database, cache):
        put(cache, used)
        put(cache, revoked)
        async with database.begin() as connection:
            await connection.exec_driver_sql("UPDATE rate_buckets SET updated_at = now() + interval '1 second'")
            assert await keys.touch_used_keys(connection) == 2
        async with database.begin() as connection:
            newest, _ = await keys.list_keys(connection, org_id)
            await keys.revoke_key(connection, newest.id)
        await forgotten(cache, revoked)
        # News come in order: had there been any of the first, it would be gone.
        assert cache.get(used) == "found"
