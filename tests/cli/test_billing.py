"""``tollgate billing``, against the database of the test."""

import asyncio
from collections.abc import Iterator

import pytest
from sqlalchemy import insert

from app.billing import doctor
from app.config import Settings
from app.db import Database
from app.partitions import ensure_partitions
from app.tables import Base, UsageEvent
from tests.billing.test_rollups import START, some_events
from tests.cli.test_cli import call
from tests.simulators.stripe.simulator import API_KEY, Simulator, running


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
            tables = ", ".join(table.name for table in Base.metadata.sorted_tables)
            await connection.exec_driver_sql(f"TRUNCATE {tables}")
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


@pytest.fixture
def simulator(monkeypatch: pytest.MonkeyPatch) -> Iterator[Simulator]:
    """A Stripe for the commands."""
    with running() as simulator:
        monkeypatch.setenv("TOLLGATE_STRIPE_API_KEY", API_KEY)
        monkeypatch.setenv("TOLLGATE_STRIPE_API_BASE", simulator.url)
        yield simulator


def test_the_catalogue_is_pushed_and_compared(
    simulator: Simulator, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "billing", "sync-catalog", "--check") == 1
    assert "DRIFT     tollgate_usage: is missing" in capsys.readouterr().out
    assert call(monkeypatch, "billing", "sync-catalog") == 0
    assert "made      tollgate_growth_v1_flat_year" in capsys.readouterr().out
    for options in ((), ("--check",)):
        assert call(monkeypatch, "billing", "sync-catalog", *options) == 0
        assert capsys.readouterr().out == "Stripe has the catalogue as it is.\n"
    [price] = simulator.v1.prices.list({"lookup_keys": ["tollgate_scale_v1_flat_year"]})
    simulator.v1.prices.update(price.id, {"active": False})
    for options in ((), ("--check",)):
        assert call(monkeypatch, "billing", "sync-catalog", *options) == 1
        assert "DRIFT     tollgate_scale_v1_flat_year: active is False" in capsys.readouterr().out


def test_without_a_key_of_stripe_nothing_is_pushed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "billing", "sync-catalog") == 1
    assert capsys.readouterr().err.startswith("tollgate: Billing is not set up")


def test_the_plans_are_listed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "billing", "plans") == 0
    out = capsys.readouterr().out
    assert "growth     version 1  Growth\n           $99.00 a month, $990.00 a year\n" in out
    assert "up to $500 of usage: 100 % of list price\n           then: 90 % of list price" in out
    assert "1,000,000 tokens a month, no more" in out
    assert "credit     $10.00, $25.00" in out


def test_a_link_leads_to_a_checkout(
    simulator: Simulator, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "orgs", "create", "Acme Ltd") == 0
    org_id = capsys.readouterr().out.strip()
    assert call(monkeypatch, "billing", "sync-catalog") == 0
    capsys.readouterr()
    options = ("--interval", "year", "--email", "a@acme.example", "--coupon", "tollgate_startup")
    assert call(monkeypatch, "billing", "subscribe-link", org_id, "growth", *options) == 0
    [session] = simulator.v1.checkout.sessions.list().data
    assert capsys.readouterr().out == f"{session.url}\n"
    assert (session.amount_subtotal, session.client_reference_id) == (990_00, org_id)


def test_a_rehearsal_needs_a_key_of_the_test_mode(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "billing", "live-smoke") == 0
    assert capsys.readouterr().out == "Skipped: TOLLGATE_STRIPE_API_KEY is not set.\n"
    monkeypatch.setenv("TOLLGATE_STRIPE_API_KEY", "sk_live_1")
    assert call(monkeypatch, "billing", "live-smoke") == 1
    assert "nothing was done" in capsys.readouterr().err


def test_a_month_is_rehearsed(
    simulator: Simulator, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "billing", "live-smoke") == 0
    *steps, last = capsys.readouterr().out.splitlines()
    assert len(steps) == 8
    assert all(step.startswith("ok    ") for step in steps)
    assert last == "Stripe does what we think it does."
