"""``tollgate billing``, against the database of the test."""

import asyncio

import pytest
from sqlalchemy import insert

from app.billing import doctor
from app.config import Settings
from app.db import Database
from app.metering import ensure_partitions
from app.tables import UsageEvent
from tests.billing.test_rollups import START, some_events
from tests.cli.test_cli import call


@pytest.fixture(autouse=True)
def books(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows over 30 hours, not summed; nothing else."""
    url = settings.database_url
    assert url is not None
    monkeypatch.setenv("TOLLGATE_DATABASE_URL", url)
    monkeypatch.setenv("TOLLGATE_DATA_DIR", str(settings.data_dir))

    async def fill() -> None:
        database = Database.connect(url)
        async with database.begin() as connection:
            await connection.exec_driver_sql("TRUNCATE usage_events, usage_rollup_hour, rolled_hours, orgs CASCADE")
            await ensure_partitions(connection, START.date())
            rows = [row | {"started_at": row["billed_at"]} for row in some_events(40)]
            await connection.execute(insert(UsageEvent), rows)
        await database.aclose()

    asyncio.run(fill())


def run(settings: Settings, statement: str) -> None:
    async def execute() -> None:
        assert settings.database_url is not None
        database = Database.connect(settings.database_url)
        async with database.begin() as connection:
            await connection.exec_driver_sql(statement)
        await database.aclose()

    asyncio.run(execute())


def test_the_doctor_fails_until_the_sums_are_made_anew(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "billing", "rebuild-rollups") == 0
    assert call(monkeypatch, "billing", "doctor") == 0
    out = capsys.readouterr().out
    assert f"{len(doctor.CHECKS)} of {len(doctor.CHECKS)} invariants hold." in out
    run(settings, "UPDATE usage_rollup_hour SET requests = requests + 1")
    assert call(monkeypatch, "billing", "doctor") == 1
    out = capsys.readouterr().out
    assert "BROKEN  sums are the rows" in out
    assert "… and more" in out
    assert call(monkeypatch, "billing", "rebuild-rollups") == 0
    assert call(monkeypatch, "billing", "doctor") == 0
