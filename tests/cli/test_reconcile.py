"""``tollgate billing reconcile``: what a person does about usage that Stripe has lost."""

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from app.billing import claims, outbox
from app.billing.gateway import Gateway
from app.config import Settings
from app.db import Database
from app.tables import Base
from tests.billing.metered import MONTH, make_customer, use
from tests.cli.test_cli import call
from tests.simulators.stripe.simulator import API_KEY, Simulator, running

NOW = datetime.now(UTC).replace(microsecond=0)
HOURS_AGO = NOW - timedelta(hours=5)


@pytest.fixture
def simulator(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Simulator]:
    """A Stripe with the catalogue, and a customer whose usage it has taken."""
    with running() as simulator:
        for name, value in (
            ("DATABASE_URL", settings.database_url),
            ("DATA_DIR", str(settings.data_dir)),
            ("STRIPE_API_KEY", API_KEY),
            ("STRIPE_API_BASE", simulator.url),
        ):
            monkeypatch.setenv(f"TOLLGATE_{name}", str(value))
        assert call(monkeypatch, "billing", "sync-catalog") == 0
        asyncio.run(report(settings, simulator))
        yield simulator


async def report(settings: Settings, simulator: Simulator) -> None:
    assert settings.database_url is not None
    database = Database.connect(settings.database_url)
    gateway = Gateway(API_KEY, api_base=simulator.url)
    async with database.begin() as connection:
        tables = ", ".join(table.name for table in Base.metadata.sorted_tables if table.name != "catalog_prices")
        await connection.exec_driver_sql(f"TRUNCATE {tables}")
    stripe_id = simulator.v1.customers.create({"name": "Acme"}).id
    start = HOURS_AGO - timedelta(days=1)
    customer = await make_customer(database, start, start + MONTH, stripe_id=stripe_id)
    await use(database, customer.org_id, HOURS_AGO, tokens=5)
    await claims.claim_due(database, HOURS_AGO + timedelta(hours=1))
    await outbox.drain(database, gateway, now=HOURS_AGO + timedelta(hours=1))
    await gateway.aclose()
    await database.aclose()


def states(settings: Settings, change: str = "SELECT 1") -> list[str]:
    async def read() -> list[str]:
        assert settings.database_url is not None
        database = Database.connect(settings.database_url)
        async with database.begin() as connection:
            await connection.execute(text(change))
            found = await connection.execute(text("SELECT state FROM stripe_meter_outbox ORDER BY seq"))
            rows = list(found.scalars().all())
        await database.aclose()
        return rows

    return asyncio.run(read())


def test_what_stripe_has_lost_is_shown_and_sent_again(
    simulator: Simulator, settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "billing", "reconcile") == 0
    assert capsys.readouterr().out.endswith("0 hours differ.\n")
    (row,) = simulator.world.all("_usage")
    row["events"].clear()
    assert call(monkeypatch, "billing", "reconcile") == 1
    out = capsys.readouterr().out
    assert "taken 750, counted 0 (10^-9 USD)" in out
    assert out.endswith("1 hours differ.\n")
    assert states(settings) == ["acked"]
    assert call(monkeypatch, "billing", "reconcile", "--reissue") == 1
    assert "1 hours are settled by what Stripe has counted." in capsys.readouterr().out
    assert states(settings) == ["replaced", "acked"]
    assert [event["value"] for event in row["events"]] == [750]


def test_what_stripe_refused_is_sent_once_more(
    simulator: Simulator, settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    states(settings, "UPDATE stripe_meter_outbox SET state = 'rejected'")
    assert call(monkeypatch, "billing", "reconcile", "--retry", "--days", "1") == 0
    assert "1 events that were refused are sent once more." in capsys.readouterr().out
    assert states(settings) == ["acked"]
