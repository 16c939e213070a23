"""One request, one row."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import select

from app.auth import Key
from app.db import Database
from app.journal import Journal
from app.metering import Ledger, Meter, Price, ensure_partitions
from app.tables import UsageEvent, new_id

ORG, KEY = new_id(), new_id()


PRICE = Price(input=10, cached=5, output=20)


@pytest.fixture
async def ledger(database: Database, tmp_path: Path) -> AsyncIterator[Ledger]:
    """A ledger with a journal of its own."""
    ledger = Ledger(database, Journal(tmp_path / "journals"))
    yield ledger
    await ledger.aclose()


def make_meter(
    ledger: Ledger,
    request_id: UUID | None = None,
    started_at: datetime | None = None,
    parameters: dict[str, object] | None = None,
) -> Meter:
    now = datetime.now(UTC)
    key = Key(KEY, ORG, frozenset(), None, None, 0, 0, now)
    return Meter(
        ledger,
        request_id or new_id(),
        key,
        kind="generation",
        model="m",
        model_digest="d",
        input_tokens=5,
        price=PRICE,
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


async def test_the_row_holds_what_was_delivered(database: Database, ledger: Ledger) -> None:
    meter = make_meter(ledger)
    meter.deliver(3)
    meter.deliver(4)
    meter.report(2, 1.5)
    await meter.settle("stop")
    assert await rows(database) == [(meter.request_id, ORG, KEY, 5, 2, 7, "stop", 1.5)]


@pytest.mark.parametrize("parameters", [None, {"seed": 2**64 - 1, "temperature": 0.7, "stop": ["\n"]}])
async def test_the_row_holds_the_parameters_as_they_are(
    database: Database, ledger: Ledger, parameters: dict[str, object]
) -> None:
    await make_meter(ledger, parameters=parameters).settle("stop")
    async with database.begin() as connection:
        row = (await connection.execute(select(UsageEvent.parameters, UsageEvent.parameters.is_(None)))).one()
    # Unknown is NULL, not JSON's null.
    assert tuple(row) == (parameters, parameters is None)


async def test_a_later_report_replaces_the_one_before(database: Database, ledger: Ledger) -> None:
    meter = make_meter(ledger)
    meter.report(0, 1.5)
    meter.report(2, 2.0)
    await meter.settle("aborted")
    assert (await rows(database))[0][4:] == (2, 0, "aborted", 2.0)


async def test_more_cannot_be_cached_than_was_sent(database: Database, ledger: Ledger) -> None:
    meter = make_meter(ledger)
    meter.report(50, 0.0)
    await meter.settle("stop")
    assert (await rows(database))[0][4] == 5


async def test_settling_twice_writes_one_row_and_keeps_the_first(database: Database, ledger: Ledger) -> None:
    meter = make_meter(ledger)
    await meter.settle("stop")
    meter.deliver(9)
    await meter.settle("aborted")
    (row,) = await rows(database)
    assert row[5:7] == (0, "stop")


async def test_the_same_request_settled_from_two_places_has_one_row(database: Database, ledger: Ledger) -> None:
    first = make_meter(ledger)
    meters = [first, *(make_meter(ledger, first.request_id, first.started_at) for _ in range(9))]
    await asyncio.gather(*(meter.settle("stop") for meter in meters))
    assert len(await rows(database)) == 1


async def test_partitions_exist_for_this_month_and_those_ahead(database: Database, ledger: Ledger) -> None:
    async with database.begin() as connection:
        names = await ensure_partitions(connection, date(2031, 11, 30), 2)
        again = await ensure_partitions(connection, date(2031, 11, 30), 2)
    assert names == again == ["usage_events_y2031m11", "usage_events_y2031m12", "usage_events_y2032m01"]


async def test_a_month_ends_where_the_next_begins(database: Database, ledger: Ledger) -> None:
    async with database.begin() as connection:
        await ensure_partitions(connection, date(2033, 1, 1), 1)
    edge = datetime(2033, 2, 1, tzinfo=UTC)
    await make_meter(ledger, started_at=edge).settle("stop")
    await make_meter(ledger, started_at=edge.replace(month=1, day=31, hour=23, minute=59)).settle("stop")
    async with database.begin() as connection:
        for name in ("usage_events_y2033m01", "usage_events_y2033m02"):
            count = (await connection.exec_driver_sql(f"SELECT count(*) FROM {name}")).scalar_one()
            assert count == 1


async def test_a_row_without_a_partition_is_written_as_soon_as_there_is_one(database: Database, ledger: Ledger) -> None:
    meter = make_meter(ledger, started_at=datetime(2040, 1, 1, tzinfo=UTC))
    others = [make_meter(ledger) for _ in range(3)]
    await asyncio.gather(*(each.settle("stop") for each in (meter, *others)))
    assert len(await rows(database)) == 3  # nobody else suffers
    assert ledger.num_late == 1
    async with database.begin() as connection:
        await ensure_partitions(connection, date(2040, 1, 1), 0)
    await ledger.caught_up()
    assert len(await rows(database)) == 4


async def test_two_processes_may_make_the_same_partitions_at_once(database: Database, ledger: Ledger) -> None:
    async def make() -> None:
        async with database.begin() as connection:
            await ensure_partitions(connection, date(2050, 1, 1), 3)

    await asyncio.gather(*(make() for _ in range(5)))
