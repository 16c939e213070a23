"""Attempts counted by name, in the database."""

import asyncio
from datetime import UTC, datetime, timedelta

from sqlalchemy import text

from app import throttle
from app.db import Database
from app.throttle import Attempt, Limit

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
THREE = Limit(3, timedelta(seconds=30))


async def take(database: Database, *names: str, after_s: float = 0, limit: Limit = THREE) -> bool:
    async with database.begin() as connection:
        attempts = [Attempt(name, limit) for name in names]
        return await throttle.take(connection, attempts, NOW + timedelta(seconds=after_s))


async def test_one_more_is_allowed_after_each_step(database: Database) -> None:
    assert [await take(database, "a") for _ in range(4)] == [True, True, True, False]
    assert not await take(database, "a", after_s=9.999)
    assert await take(database, "a", after_s=10)
    assert not await take(database, "a", after_s=10)
    assert [await take(database, "a", after_s=1000) for _ in range(4)] == [True, True, True, False]


async def test_each_name_has_its_own_count(database: Database) -> None:
    assert [await take(database, "a") for _ in range(4)][-1] is False
    assert await take(database, "b")


async def test_whoever_is_stopped_uses_nothing_up(database: Database) -> None:
    """Or one place could lock the owner of an address out for everybody."""
    looser = Limit(4, THREE.window)

    async def take_from(place: str) -> bool:
        async with database.begin() as connection:
            return await throttle.take(connection, [Attempt(place, THREE), Attempt("address", looser)], NOW)

    assert [await take_from("a place") for _ in range(9)] == [True] * 3 + [False] * 6
    assert [await take_from("another") for _ in range(2)] == [True, False]


async def test_of_many_at_once_as_many_pass_as_may(database: Database) -> None:
    assert sum(await asyncio.gather(*(take(database, "a", "b") for _ in range(20)))) == 3


async def test_a_limit_that_divides_badly_is_exact(database: Database) -> None:
    seven = Limit(7, timedelta(microseconds=900_000_003))
    assert [await take(database, "a", limit=seven) for _ in range(8)] == [True] * 7 + [False]


async def test_what_is_given_back_was_not_tried(database: Database) -> None:
    for _ in range(10):
        assert await take(database, "a", "b")
        async with database.begin() as connection:
            await throttle.give_back(connection, [Attempt("a", THREE), Attempt("b", THREE), Attempt("c", THREE)])


async def test_names_are_forgotten_when_nothing_counts(database: Database) -> None:
    await take(database, "a")
    async with database.begin() as connection:
        assert await throttle.sweep(connection, NOW + timedelta(seconds=9)) == 0
        assert await throttle.sweep(connection, NOW + timedelta(seconds=10)) == 1


async def test_a_name_is_neither_long_nor_readable(database: Database) -> None:
    await take(database, "someone@acme.example" * 100_000, "\udfff\0")
    async with database.begin() as connection:
        rows = (await connection.execute(text("SELECT name_hash FROM throttled"))).scalars().all()
    assert {len(row) for row in rows} == {32}
