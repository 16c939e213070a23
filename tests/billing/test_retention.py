"""Old months go as a whole, with everything that was made of them."""

from datetime import UTC, date, datetime, timedelta

import pytest
from sqlalchemy import insert
from sqlalchemy.exc import DBAPIError

from app.billing.retention import drop_old_usage
from app.billing.statement import Line, Query, read_lines
from app.db import Database
from app.partitions import ensure_partitions
from app.tables import UsageEvent
from tests.billing.test_rollups import ORG, event, roll

TODAY = date(2025, 6, 15)
JUNE = datetime(2025, 6, 1, tzinfo=UTC)


@pytest.fixture
async def months(database: Database) -> Database:
    """Rows in February to June 2025, summed; one began in February and was billed in March."""
    at = [datetime(2025, month, 10, 12, tzinfo=UTC) for month in (2, 3, 4, 5, 6)]
    late = datetime(2025, 3, 1, 0, 0, 5, tzinfo=UTC)
    async with database.begin() as connection:
        await ensure_partitions(connection, date(2025, 2, 1), 4)
        rows = [event(time, started_at=time) for time in at]
        rows.append(event(late, started_at=late - timedelta(seconds=10), model="late"))
        await connection.execute(insert(UsageEvent), rows)
    await roll(database)
    return database


async def drop(database: Database, keep_months: int) -> list[str]:
    async with database.begin() as connection:
        dropped = await drop_old_usage(connection, TODAY, keep_months)
    # Other tests may have left older months in this database.
    return [name for name in dropped if name >= "usage_events_y2025"]


async def lines_of(database: Database) -> list[Line]:
    query = Query(ORG, datetime(2025, 1, 1, tzinfo=UTC), datetime(2025, 7, 1, tzinfo=UTC), "month", ("model",))
    async with database.begin() as connection:
        lines, _ = await read_lines(connection, query)
    return lines


async def test_months_before_those_that_are_kept_are_dropped(months: Database) -> None:
    dropped = await drop(months, 3)
    assert dropped == ["usage_events_y2025m02"]
    assert [(line.start.month, line.model) for line in await lines_of(months)] == [
        (3, "m"),
        (4, "m"),
        (5, "m"),
        (6, "m"),
    ]
    assert await drop(months, 3) == []


async def test_sums_do_not_outlive_their_rows(months: Database) -> None:
    await drop(months, 3)
    at_once = await lines_of(months)
    await roll(months)
    assert await lines_of(months) == at_once
    async with months.begin() as connection:
        oldest = await connection.exec_driver_sql("SELECT min(hour) FROM usage_rollup_hour")
        assert oldest.scalar_one() == datetime(2025, 3, 10, 12, tzinfo=UTC)
        models = await connection.exec_driver_sql("SELECT DISTINCT model FROM usage_rollup_hour")
        assert models.scalars().all() == ["m"]


async def test_the_running_month_is_not_counted(months: Database) -> None:
    assert await drop(months, 1) == [f"usage_events_y2025m{month:02d}" for month in (2, 3, 4)]
    assert [line.start.month for line in await lines_of(months)] == [5, 6]


async def test_a_table_in_use_is_left_for_later(months: Database) -> None:
    reader = await months.engine.connect()
    try:
        await reader.exec_driver_sql("SELECT count(*) FROM usage_events")
        with pytest.raises(DBAPIError):
            await drop(months, 3)
    finally:
        await reader.close()
    assert len(await lines_of(months)) == 6
    assert await drop(months, 3)


async def test_a_year_may_lie_between(database: Database) -> None:
    async with database.begin() as connection:
        await ensure_partitions(connection, date(2023, 12, 1), 1)
        dropped = await drop_old_usage(connection, date(2026, 2, 3), 24)
        assert dropped[0] == "usage_events_y2023m12"
        assert all(name < "usage_events_y2024m02" for name in dropped)
