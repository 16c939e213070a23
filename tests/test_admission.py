"""One guarded statement decides, exactly, under any concurrency."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from app import auth
from app.admission import Limits, Permit, admit, peek
from app.auth import Key
from app.config import Settings
from app.db import Database
from app.errors import AuthenticationFailed, RateLimited
from tests.conftest import PEPPER
from tests.factories import make_key

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
LIMITS = Limits(requests_per_minute=60, tokens_per_minute=600)


@pytest.fixture
async def key(database: Database, settings: Settings) -> Key:
    """A key whose buckets are full."""
    secret = await make_key(database, settings)
    async with database.begin() as connection:
        return await auth.find_key(connection, secret, PEPPER)


async def test_a_full_bucket_gives_and_says_what_is_left(database: Database, key: Key) -> None:
    permit = await admit(database, key, LIMITS, 100, now=NOW)
    assert permit.headers == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-limit-tokens": "600",
        "x-ratelimit-remaining-tokens": "500",
        "x-ratelimit-reset-tokens": "10s",
    }


async def test_the_request_after_the_last_is_refused_and_says_when_to_come_back(database: Database, key: Key) -> None:
    for _ in range(60):
        await admit(database, key, LIMITS, 0, now=NOW)
    with pytest.raises(RateLimited) as refusal:
        await admit(database, key, LIMITS, 0, requested="bytes", now=NOW)
    assert refusal.value.status == 429
    assert refusal.value.headers["retry-after-ms"] == "1000"
    assert refusal.value.headers["x-ratelimit-remaining-requests"] == "0"
    assert "for bytes" in refusal.value.message
    assert "60 requests per minute" in refusal.value.message


async def test_the_announced_wait_is_enough_and_no_longer_than_needed(database: Database, key: Key) -> None:
    await admit(database, key, LIMITS, 600, now=NOW)
    with pytest.raises(RateLimited) as refusal:
        await admit(database, key, LIMITS, 50, now=NOW)
    assert "600 tokens per minute" in refusal.value.message
    assert refusal.value.retry_after_s == pytest.approx(5)
    with pytest.raises(RateLimited):
        await admit(database, key, LIMITS, 50, now=NOW + timedelta(seconds=4.99))
    await admit(database, key, LIMITS, 50, now=NOW + timedelta(seconds=5.01))


async def test_a_refusal_draws_nothing(database: Database, key: Key) -> None:
    await admit(database, key, LIMITS, 590, now=NOW)
    with pytest.raises(RateLimited):
        await admit(database, key, LIMITS, 20, now=NOW)
    permit = await admit(database, key, LIMITS, 10, now=NOW)
    assert (permit.requests_left, permit.tokens_left) == (58, 0)


async def test_what_never_fits_is_not_to_be_tried_again(database: Database, key: Key) -> None:
    with pytest.raises(RateLimited) as refusal:
        await admit(database, key, LIMITS, 601, now=NOW)
    assert refusal.value.headers["x-should-retry"] == "false"
    assert "too large" in refusal.value.message


async def test_a_bucket_never_holds_more_than_its_limit(database: Database, key: Key) -> None:
    await admit(database, key, LIMITS, 0, now=NOW)
    permit = await admit(database, key, LIMITS, 0, now=NOW + timedelta(days=1))
    assert permit.requests_left == 59


async def test_an_older_clock_gives_nothing_back(database: Database, key: Key) -> None:
    await admit(database, key, LIMITS, 600, now=NOW)
    with pytest.raises(RateLimited):
        await admit(database, key, LIMITS, 1, now=NOW - timedelta(hours=1))


async def test_concurrent_requests_never_draw_more_than_there_is(database: Database, key: Key) -> None:
    async def attempt() -> bool:
        try:
            await admit(database, key, LIMITS, 60, now=NOW)
        except RateLimited:
            return False
        return True

    admitted = await asyncio.gather(*(attempt() for _ in range(40)))
    assert sum(admitted) == 10


async def test_the_databases_clock_refills(database: Database, key: Key) -> None:
    permit = await admit(database, key, LIMITS, 0)
    assert permit.requests_left == 59


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE api_keys SET revoked_at = now()",
        "UPDATE api_keys SET expires_at = now() - interval '1 second'",
        "UPDATE orgs SET status = 'suspended'",
        "DELETE FROM api_keys",
    ],
)
async def test_a_key_that_ended_after_it_was_looked_up_is_refused(database: Database, key: Key, change: str) -> None:
    async with database.begin() as connection:
        await connection.exec_driver_sql(change)
    with pytest.raises(AuthenticationFailed):
        await admit(database, key, LIMITS, 0)


async def test_peeking_shows_what_a_request_would_find(database: Database, settings: Settings) -> None:
    secret = await make_key(database, settings)
    async with database.begin() as connection:
        key = await auth.find_key(connection, secret, PEPPER)
    assert peek(key, LIMITS) == Permit(LIMITS, 60, 600)
    await admit(database, key, LIMITS, 300, now=NOW)
    async with database.begin() as connection:
        key = await auth.find_key(connection, secret, PEPPER)
    assert peek(key, LIMITS, NOW) == Permit(LIMITS, 59, 300)
    assert peek(key, LIMITS, NOW + timedelta(seconds=6)).tokens_left == pytest.approx(360)


@pytest.mark.parametrize(
    ("left", "reset"), [(60, "0ms"), (59.98, "20ms"), (58.5, "1.5s"), (0, "1m0s"), (-30.2, "1m31s")]
)
def test_durations_are_spelled_as_openai_does(left: float, reset: str) -> None:
    headers = Permit(LIMITS, left, 0).headers
    assert headers["x-ratelimit-reset-requests"] == reset
    assert int(headers["x-ratelimit-remaining-requests"]) >= 0
