"""A storm of webhooks leaves what calm weather leaves; how fast, ``scripts/measure-storm.py`` says."""

from pathlib import Path

import pytest

from app.db import Database
from tests.billing.storm import blow, brew, endpoint_of
from tests.year.town import running


@pytest.mark.slow
async def test_nothing_is_lost_or_doubled_in_a_storm(database: Database, database_url: str, tmp_path: Path) -> None:
    async with running(database_url, tmp_path) as town:
        url = await endpoint_of(town)
        bodies = await brew(town, 6)
        storm = await blow(town, url, bodies, 3 * len(bodies), seed=7)
    assert storm.deliveries > 2 * storm.events > 200
    assert (storm.lost, storm.is_same) == (0, True)
    async with database.begin() as connection:
        rows = await connection.exec_driver_sql("SELECT count(*), min(attempts), max(attempts) FROM stripe_events")
        assert rows.one() == (storm.events, 1, 1)
