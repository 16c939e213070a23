"""Sums by the hour: the same numbers as the rows, whatever happens to the rows."""

import asyncio
import random
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import insert, text

from app.billing import rollups
from app.billing.statement import Bucket, Group, Line, Query, read_lines
from app.db import Database
from app.partitions import ensure_partitions
from app.tables import UsageEvent, new_id

ORG, OTHER, KEYS = new_id(), new_id(), (new_id(), new_id())
THIS_HOUR = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
START = THIS_HOUR - timedelta(hours=30)
EVERYTHING = Query(
    ORG, START - timedelta(days=2), THIS_HOUR + timedelta(hours=2), "hour", ("model", "key", "kind"), 1000
)
ROLLED = text("SELECT * FROM usage_rollup_hour ORDER BY org_id, hour, model, key_id, kind, price_version")


def event(at: datetime, **values: Any) -> dict[str, Any]:
    row = {
        "id": new_id(),
        "started_at": THIS_HOUR,
        "org_id": ORG,
        "key_id": KEYS[0],
        "model": "m",
        "model_digest": "d",
        "kind": "generation",
        "input_tokens": 7,
        "cached_tokens": 3,
        "output_tokens": 2,
        "billed_at": at,
        "price_version": 1,
    }
    return row | values


def some_events(count: int, seed: int = 1) -> list[dict[str, Any]]:
    """Over 30 hours, in two organisations, some at the very edges of an hour."""
    source, events = random.Random(seed), []
    for _ in range(count):
        edge = source.choice([timedelta(), timedelta(microseconds=-1), timedelta(minutes=source.randrange(60))])
        tokens = source.randrange(1, 10**9)
        events.append(
            event(
                START + timedelta(hours=source.randrange(1, 30)) + edge,
                org_id=source.choice([ORG, OTHER]),
                key_id=source.choice(KEYS),
                model=source.choice(["m", "n"]),
                kind=source.choice(["generation", "classification", "embedding"]),
                input_tokens=tokens,
                cached_tokens=source.randrange(tokens),
                output_tokens=source.randrange(10**9),
            )
        )
    return events


async def write(database: Database, *events: dict[str, Any]) -> None:
    async with database.begin() as connection:
        await connection.execute(insert(UsageEvent), list(events))


async def roll(database: Database) -> None:
    is_more = True
    while is_more:
        async with database.begin() as connection:
            is_more = await rollups.roll_next(connection)


async def read(database: Database, query: Query = EVERYTHING) -> list[Line]:
    async with database.begin() as connection:
        lines, _ = await read_lines(connection, query)
    return lines


async def sums(database: Database) -> list[Any]:
    async with database.begin() as connection:
        return list((await connection.execute(ROLLED)).all())


async def run(database: Database, statement: str) -> None:
    async with database.begin() as connection:
        await connection.exec_driver_sql(statement)


@pytest.fixture(autouse=True)
async def partitions(database: Database) -> None:
    """A run just after a month's first hours has rows in the month before."""
    async with database.begin() as connection:
        await ensure_partitions(connection, START.date())


@pytest.fixture
async def summed(database: Database) -> Database:
    """400 events, all of whose hours are summed."""
    await write(database, *some_events(400))
    await roll(database)
    return database


async def test_rebuilt_sums_are_identical(summed: Database) -> None:
    before = await sums(summed)
    assert len(before) > 200
    await run(summed, "UPDATE usage_rollup_hour SET requests = requests + 1 WHERE model = 'm'")
    assert await sums(summed) != before
    start: datetime | None = None
    while True:
        async with summed.begin() as connection:
            start = await rollups.rebuild_from(connection, start)
        if start is None:
            break
    assert await sums(summed) == before
    # From nothing at all, too.
    await run(summed, "TRUNCATE usage_rollup_hour, rolled_hours")
    await roll(summed)
    assert await sums(summed) == before


@pytest.mark.parametrize("bucket", ["hour", "day", "month"])
@pytest.mark.parametrize("group_by", [(), ("model",), ("key",), ("kind",), ("model", "key", "kind")])
async def test_a_statement_is_the_same_with_and_without_sums(
    summed: Database, bucket: Bucket, group_by: tuple[Group, ...]
) -> None:
    queries = [
        Query(ORG, start, end, bucket, group_by, 1000)
        for start, end in (
            (START, THIS_HOUR),
            (START + timedelta(minutes=20), THIS_HOUR - timedelta(hours=3, microseconds=1)),
            (START + timedelta(hours=5, minutes=1), START + timedelta(hours=5, minutes=2)),
            (START - timedelta(days=9), START),
        )
    ]
    with_sums = [await read(summed, query) for query in queries]
    await run(summed, "TRUNCATE usage_rollup_hour, rolled_hours")
    assert [await read(summed, query) for query in queries] == with_sums
    assert len(with_sums[0]) >= 1


async def test_sums_are_read_where_they_hold(summed: Database) -> None:
    """Or the tests above would compare the rows with themselves."""
    before = await read(summed)
    await run(summed, "UPDATE usage_rollup_hour SET requests = requests + 1")
    assert [line.requests for line in await read(summed)] != [line.requests for line in before]


CHANGES = {
    "late": None,
    "changed": "UPDATE usage_events SET output_tokens = output_tokens + 5",
    "moved": "UPDATE usage_events SET billed_at = billed_at + interval '1 hour'",
    "deleted": "DELETE FROM usage_events WHERE model = 'n'",
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
async def test_a_changed_past_is_read_from_the_rows_until_it_is_summed_anew(
    summed: Database, change: str | None
) -> None:
    before = await read(summed)
    if change is None:
        await write(summed, event(START + timedelta(hours=2)))
    else:
        await run(summed, change)
    at_once = await read(summed)
    assert at_once != before
    await roll(summed)
    assert await read(summed) == at_once
    await run(summed, "TRUNCATE usage_rollup_hour, rolled_hours")
    assert await read(summed) == at_once


async def test_the_running_hour_is_read_from_the_rows(summed: Database) -> None:
    before = sum(line.requests for line in await read(summed))
    async with summed.begin() as connection:
        row = event(THIS_HOUR)
        del row["billed_at"]  # the database's clock, as in production
        await connection.execute(insert(UsageEvent), [row])
        stale = await connection.exec_driver_sql("SELECT count(*) FROM rolled_hours WHERE NOT is_current")
        assert stale.scalar_one() == 0
    assert sum(line.requests for line in await read(summed)) == before + 1


async def test_an_hour_is_not_over_while_a_transaction_of_it_runs(summed: Database) -> None:
    """Its rows carry the time at which it began, and nobody sees them yet."""
    await run(summed, "TRUNCATE usage_rollup_hour, rolled_hours")
    begun = await summed.engine.connect()
    try:
        await begun.exec_driver_sql("SELECT 1")
        async with summed.begin() as connection:
            horizon = (await connection.execute(rollups._HORIZON)).scalar_one()
            began_at = (
                await connection.exec_driver_sql(
                    "SELECT min(xact_start) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            ).scalar_one()
        assert horizon <= began_at
        await roll(summed)
        async with summed.begin() as connection:
            last = (await connection.exec_driver_sql("SELECT max(hour) FROM rolled_hours")).scalar_one()
        assert last + timedelta(hours=1) <= began_at
    finally:
        await begun.close()


async def test_summing_waits_for_a_change_of_the_past_that_is_not_committed(summed: Database) -> None:
    await run(summed, "UPDATE rolled_hours SET is_current = false")
    late = await summed.engine.connect()
    try:
        await late.execute(insert(UsageEvent), [event(START + timedelta(hours=2), model="late")])
        rolling = asyncio.create_task(roll(summed))
        async with asyncio.timeout(30):
            waits = 0
            while not waits:
                async with summed.begin() as connection:
                    found = await connection.exec_driver_sql(
                        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
                    )
                    waits = found.scalar_one()
        await late.commit()
        await rolling
    finally:
        await late.close()
    assert "late" in {row.model for row in await sums(summed)}


async def test_nothing_to_sum_is_nothing_to_do(database: Database) -> None:
    async with database.begin() as connection:
        assert not await rollups.roll_next(connection)
        assert await rollups.rebuild_from(connection, None) is None


async def test_two_that_sum_at_once_sum_once(database: Database) -> None:
    await write(database, *some_events(60))
    await asyncio.gather(*(roll(database) for _ in range(4)))
    at_once = await sums(database)
    await run(database, "TRUNCATE usage_rollup_hour, rolled_hours")
    await roll(database)
    assert await sums(database) == at_once


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    spans=st.lists(st.tuples(st.integers(0, 30 * 60), st.integers(1, 30 * 60)), min_size=1, max_size=3),
    stale=st.sets(st.integers(0, 29)),
)
async def test_any_span_over_any_patchwork_of_sums_is_the_sum_of_its_rows(
    summed: Database, spans: list[tuple[int, int]], stale: set[int]
) -> None:
    hours = ", ".join(f"'{(START + timedelta(hours=hour)).isoformat()}'" for hour in stale)
    await run(summed, "UPDATE rolled_hours SET is_current = true")
    if hours:
        await run(summed, f"UPDATE rolled_hours SET is_current = false WHERE hour IN ({hours})")
    for begin, length in spans:
        start = START + timedelta(minutes=begin)
        query = Query(ORG, start, start + timedelta(minutes=length), "hour", ("model",), 1000)
        lines = await read(summed, query)
        async with summed.begin() as connection:
            expected = (
                await connection.execute(
                    text(
                        "SELECT count(*), sum(input_tokens), sum(output_tokens) FROM usage_events"
                        " WHERE org_id = :org AND billed_at >= :start AND billed_at < :end"
                    ),
                    {"org": ORG, "start": query.start, "end": query.end},
                )
            ).one()
        found = (
            sum(line.requests for line in lines),
            sum(line.input_tokens for line in lines) or None,
            sum(line.output_tokens for line in lines),
        )
        assert found == (expected[0], expected[1], expected[2] or 0)
