"""``tollgate billing meter-events``: what a person sees and ends of usage that does not get to Stripe."""

import asyncio
from uuid import UUID

import pytest

from app.config import Settings
from app.db import Database
from app.tables import new_id
from tests.billing.metered import START, make_customer, use
from tests.billing.test_write_offs import end_subscription, refuse
from tests.cli.test_cli import call


@pytest.fixture
def refused(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> UUID:
    """A meter event of one token that Stripe refused."""
    monkeypatch.setenv("TOLLGATE_DATABASE_URL", str(settings.database_url))

    async def make() -> UUID:
        assert settings.database_url is not None
        database = Database.connect(settings.database_url)
        async with database.begin() as connection:
            await connection.exec_driver_sql("TRUNCATE orgs, usage_events, stripe_meter_outbox CASCADE")
        outbox_id = await refuse(database, await make_customer(database))
        await database.aclose()
        return outbox_id

    return asyncio.run(make())


def test_what_was_refused_is_listed_and_written_off(
    refused: UUID, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "billing", "meter-events", "list") == 0
    line = capsys.readouterr().out
    assert line.startswith(f"rejected   {refused}  ")
    assert line.endswith("  0.000000150 USD   0  no such customer\n")
    arguments = ("billing", "meter-events", "write-off", str(refused), "--note", "gone")
    assert call(monkeypatch, *arguments) == 0
    assert capsys.readouterr().out.endswith("0.000000150 USD at list price are not charged.\n")
    assert call(monkeypatch, *arguments) == 1
    assert call(monkeypatch, "billing", "meter-events", "list") == 0
    assert call(monkeypatch, "billing", "meter-events", "list", "--waiting") == 0
    assert capsys.readouterr().out.endswith("Nothing was refused.\nNothing waits.\n")


def test_what_there_is_not_is_not_written_off(refused: UUID, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call(monkeypatch, "billing", "meter-events", "write-off", str(new_id()), "--note", "gone") == 1


def test_usage_that_came_too_late_is_written_off(
    refused: UUID, settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def come_too_late() -> UUID:
        assert settings.database_url is not None
        database = Database.connect(settings.database_url)
        customer = await make_customer(database)
        await end_subscription(database, customer)
        await use(database, customer.org_id, START)
        await database.aclose()
        return customer.org_id

    arguments = ("billing", "meter-events", "write-off-usage", str(asyncio.run(come_too_late())), "--note", "little")
    assert call(monkeypatch, *arguments) == 0
    assert capsys.readouterr().out.endswith("0.000000150 USD at list price are not charged.\n")
    assert call(monkeypatch, *arguments) == 1
