"""``tollgate billing events``, against the database of the test."""

import asyncio

import pytest

from app.config import Settings
from app.db import Database
from tests.cli.test_cli import call


@pytest.fixture(autouse=True)
def inbox(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """One event given up, one that waits, one that is done with."""
    url = settings.database_url
    assert url is not None
    monkeypatch.setenv("TOLLGATE_DATABASE_URL", url)
    monkeypatch.setenv("TOLLGATE_DATA_DIR", str(settings.data_dir))

    asyncio.run(
        execute(
            settings,
            "TRUNCATE stripe_events",
            "INSERT INTO stripe_events (id, type, created, body, attempts, is_dead, processed_at, last_error,"
            " received_at) VALUES"
            " ('evt_dead', 'invoice.paid', now(), '', 12, true, NULL, E'no\\nprice', '2026-11-27 06:00+00'),"
            " ('evt_waits', 'invoice.paid', now(), '', 1, false, NULL, NULL, '2026-11-27 07:00+00'),"
            " ('evt_done', 'invoice.paid', now(), '', 1, false, now(), NULL, now())",
        )
    )


def test_what_was_given_up_is_listed_and_what_waits_on_demand(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "billing", "events", "list") == 0
    assert capsys.readouterr().out == "given up  evt_dead  invoice.paid  2026-11-27 06:00:00  12  no price\n"
    assert call(monkeypatch, "billing", "events", "list", "--waiting") == 0
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()] == [
        ["given", "up"],
        ["waiting", "evt_waits"],
    ]


def test_events_are_tried_again_by_name_or_all_of_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "billing", "events", "retry", "evt_waits") == 0
    assert call(monkeypatch, "billing", "events", "retry", "--all") == 0
    assert capsys.readouterr().out == "1 event will be tried again.\n" * 2
    assert call(monkeypatch, "billing", "events", "list") == 0
    assert capsys.readouterr().out == "Nothing was given up.\n"
    assert call(monkeypatch, "billing", "events", "retry", "--all") == 0
    assert capsys.readouterr().out == "0 events will be tried again.\n"


def test_an_event_that_is_done_with_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    assert call(monkeypatch, "billing", "events", "retry", "evt_done", "evt_unknown") == 1
    assert call(monkeypatch, "billing", "events", "retry") == 2


def test_an_empty_inbox_says_so(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asyncio.run(execute(settings, "TRUNCATE stripe_events"))
    assert call(monkeypatch, "billing", "events", "list", "--waiting") == 0
    assert capsys.readouterr().out == "Nothing waits.\n"


async def execute(settings: Settings, *statements: str) -> None:
    assert settings.database_url is not None
    database = Database.connect(settings.database_url)
    async with database.begin() as connection:
        for statement in statements:
            await connection.exec_driver_sql(statement)
    await database.aclose()
