"""``tollgate orgs set``."""

import asyncio

import pytest

from app.config import Settings
from app.db import Database
from tests.cli.test_cli import call
from tests.factories import make_org


async def ask(settings: Settings, statement: str = "") -> tuple[object, ...]:
    assert settings.database_url is not None
    database = Database.connect(settings.database_url)
    try:
        if not statement:
            return (str(await make_org(database)),)
        async with database.begin() as connection:
            return tuple((await connection.exec_driver_sql(statement)).one())
    finally:
        await database.aclose()


@pytest.fixture
def org(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> str:
    """An organisation's id; the commands see its database."""
    monkeypatch.setenv("TOLLGATE_DATA_DIR", str(settings.data_dir))
    monkeypatch.setenv("TOLLGATE_DATABASE_URL", str(settings.database_url))
    return str(asyncio.run(ask(settings))[0])


def test_limits_are_set_in_usd(monkeypatch: pytest.MonkeyPatch, settings: Settings, org: str) -> None:
    limits = ("--spend-cap", "2.50", "--credit", "1", "--monthly-token-limit", "7", "--max-concurrent", "3")
    assert call(monkeypatch, "orgs", "set", org, *limits) == 0
    columns = "spend_cap, credit, monthly_token_limit, max_concurrent"
    found = asyncio.run(ask(settings, f"SELECT {columns} FROM org_budgets WHERE org_id = '{org}'"))
    assert found == (2_500_000_000_000, 1_000_000_000_000, 7, 3)


@pytest.mark.parametrize(("words", "code"), [((), 1), (("--spend-cap", "-1"), 1), (("--credit", "a lot"), 2)])
def test_what_cannot_be_set_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], org: str, words: tuple[str, ...], code: int
) -> None:
    assert call(monkeypatch, "orgs", "set", org, *words) == code
    assert "Traceback" not in capsys.readouterr().err
