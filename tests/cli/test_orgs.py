"""``tollgate orgs``, against the database of the test."""

import asyncio
from typing import Any

import pytest

from app.config import Settings
from app.db import Database
from tests.cli.test_cli import call
from tests.factories import make_org

USD = 10**12


async def ask(settings: Settings, statement: str = "") -> tuple[Any, ...]:
    assert settings.database_url is not None
    database = Database.connect(settings.database_url)
    try:
        if not statement:
            return (str(await make_org(database)),)
        async with database.begin() as connection:
            return tuple((await connection.exec_driver_sql(statement)).one())
    finally:
        await database.aclose()


@pytest.fixture(autouse=True)
def environment(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands see the test's database."""
    monkeypatch.setenv("TOLLGATE_DATA_DIR", str(settings.data_dir))
    monkeypatch.setenv("TOLLGATE_DATABASE_URL", str(settings.database_url))


@pytest.fixture
def org(settings: Settings) -> str:
    """An organisation's id."""
    return str(asyncio.run(ask(settings))[0])


def budget(settings: Settings, org: str) -> tuple[Any, ...]:
    columns = "plan, spend_cap, credit, monthly_token_limit, max_concurrent"
    return asyncio.run(ask(settings, f"SELECT {columns} FROM org_budgets WHERE org_id = '{org}'"))


def test_limits_are_set_in_usd_and_lifted_again(monkeypatch: pytest.MonkeyPatch, settings: Settings, org: str) -> None:
    limits = ("--spend-cap", "2.50", "--monthly-token-limit", "7", "--max-concurrent", "3")
    assert call(monkeypatch, "orgs", "set", org, *limits) == 0
    assert budget(settings, org) == ("internal", 5 * USD // 2, None, 7, 3)
    assert call(monkeypatch, "orgs", "set", org, "--lift", "spend-cap", "--lift", "max-concurrent") == 0
    assert budget(settings, org) == ("internal", None, None, 7, None)


def test_whoever_is_given_credit_pays_from_it(monkeypatch: pytest.MonkeyPatch, settings: Settings, org: str) -> None:
    assert call(monkeypatch, "orgs", "set", org, "--credit", "1") == 0
    assert budget(settings, org)[:3] == ("prepaid", None, USD)
    assert call(monkeypatch, "orgs", "set", org, "--credit", "-0.25") == 0
    assert budget(settings, org)[2] == 3 * USD // 4


@pytest.mark.parametrize(("options", "plan"), [((), "free"), (("--plan", "internal"), "internal")])
def test_an_organisation_is_created_on_a_plan(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    settings: Settings,
    options: tuple[str, ...],
    plan: str,
) -> None:
    assert call(monkeypatch, "orgs", "create", "New Ltd", *options) == 0
    org = capsys.readouterr().out.strip()
    assert budget(settings, org)[0] == plan
    statement = f"""SELECT action, "after" FROM audit_log WHERE target = 'org:{org}'"""
    assert asyncio.run(ask(settings, statement)) == ("org.create", {"name": "New Ltd", "plan": plan})


def test_a_plan_that_has_to_be_paid_is_not_given(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "orgs", "create", "New Ltd", "--plan", "scale") == 1
    assert "'scale' comes with what is paid" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--spend-cap", "-1"),
        ("--spend-cap", "NaN"),
        ("--spend-cap", "1e999999"),
        ("--credit", "a lot"),
        ("--lift", "credit"),
    ],
)
def test_what_cannot_be_set_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], org: str, words: tuple[str, ...]
) -> None:
    assert call(monkeypatch, "orgs", "set", org, *words) == 1
    told = capsys.readouterr().err
    assert told.startswith("tollgate: ")
    assert told.count("\n") == 1
