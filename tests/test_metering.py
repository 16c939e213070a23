"""One request, one row."""

import asyncio
from datetime import UTC, date, datetime
from uuid import UUID

import pytest
from sqlalchemy import select
from sqlalchemy.exc import DBAPIError

from app.auth import Key
from app.db import Database
from app.metering import Meter, ensure_partitions
from app.tables import UsageEvent, new_id

ORG, KEY = new_id(), new_id()


def make_meter(
    request_id: UUID | None = None, started_at: datetime | None = None, parameters: dict[str, object] | None = None
) -> Meter:
    now = datetime.now(UTC)
    key = Key(KEY, ORG, frozenset(), None, None, 0, 0, now)
    return Meter(
        request_id or new_id(),
        key,
        kind="generation",
        model="m",
        model_digest="d",
        input_tokens=5,
        price_version=1,
        started_at=started_at or now,
        parameters=parameters,
    )


async def rows(database: Database) -> list[tuple[object, ...]]:
    async with database.begin() as connection:
        result = await connection.exec_driver_sql(
            "SELECT id, org_id, key_id, input_tokens, cached_tokens, output_tokens, finish_reason, engine_ms"
            " FROM usage_events"
        )
        return [tuple(row) for row in result]


async def test_the_row_holds_what_was_delivered(database: Database) -> None:
    meter = make_meter()
    meter.deliver(3)
    meter.deliver(4)
    meter.report(2, 1.5)
    await meter.settle(database, "stop")
    assert await rows(database) == [(meter.request_id, ORG, KEY, 5, 2, 7, "stop", 1.5)]


@pytest.mark.parametrize("parameters", [None, {"seed": 2**64 - 1, "temperature": 0.7, "stop": ["\n"]}])
async def test_the_row_holds_the_parameters_as_they_are(database: Database, parameters: dict[str, object]) -> None:
    await make_meter(parameters=parameters).settle(database, "stop")
    async with database.begin() as connection:
        row = (await connection.execute(select(UsageEvent.parameters, UsageEvent.parameters.is_(None)))).one()
    # Unknown is NULL, not JSON's null.
    assert tuple(row) == (parameters, parameters is None)


async def test_a_later_report_replaces_the_one_before(database: Database) -> None:
    meter = make_meter()
    meter.report(0, 1.5)
    meter.report(2, 2.0)
    await meter.settle(database, "aborted")
    assert (await rows(database))[0][4:] == (2, 0, "aborted", 2.0)


async def test_more_cannot_be_cached_than_was_sent(database: Database) -> None:
    meter = make_meter()
    meter.report(50, 0.0)
    await meter.settle(database, "stop")
    assert (await rows(database))[0][4] == 5


async def test_settling_twice_writes_one_row_and_keeps_the_first(database: Database) -> None:
    meter = make_meter()
    await meter.settle(database, "stop")
    meter.deliver(9)
    await meter.settle(database, "aborted")
    (row,) = await rows(database)
    assert row[5:7] == (0, "stop")


async def test_the_same_request_settled_from_two_places_has_one_row(database: Database) -> None:
    first = make_meter()
    meters = [first, *(make_meter(first.request_id, first.started_at) for _ in range(9))]
    await asyncio.gather(*(meter.settle(database, "stop") for meter in meters))
    assert len(await rows(database)) == 1


async def test_partitions_exist_for_this_month_and_those_ahead(database: Database) -> None:
    async with database.begin() as connection:
        names = await ensure_partitions(connection, date(2031, 11, 30), 2)
        again = await ensure_partitions(connection, date(2031, 11, 30), 2)
    assert names == again == ["usage_events_y2031m11", "usage_events_y2031m12", "usage_events_y2032m01"]


async def test_a_month_ends_where_the_next_begins(database: Database) -> None:
    async with database.begin() as connection:
        await ensure_partitions(connection, date(2033, 1, 1), 1)
    edge = datetime(2033, 2, 1, tzinfo=UTC)
    await make_meter(started_at=edge).settle(database, "stop")
    await make_meter(started_at=edge.replace(month=1, day=31, hour=23, minute=59)).settle(database, "stop")
    async with database.begin() as connection:
        for name in ("usage_events_y2033m01", "usage_events_y2033m02"):
            count = (await connection.exec_driver_sql(f"SELECT count(*) FROM {name}")).scalar_one()
            assert count == 1


async def test_a_row_without_a_partition_is_refused_and_can_be_settled_later(database: Database) -> None:
    meter = make_meter(started_at=datetime(2040, 1, 1, tzinfo=UTC))
    with pytest.raises(DBAPIError):
        await meter.settle(database, "stop")
    async with database.begin() as connection:
        await ensure_partitions(connection, date(2040, 1, 1), 0)
    await meter.settle(database, "stop")
    assert len(await rows(database)) == 1


async def test_two_processes_may_make_the_same_partitions_at_once(database: Database) -> None:
    async def make() -> None:
        async with database.begin() as connection:
            await ensure_partitions(connection, date(2050, 1, 1), 3)

    await asyncio.gather(*(make() for _ in range(5)))
