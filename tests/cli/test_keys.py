"""``tollgate keys``, against the database of the test."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest

from app.config import Settings
from app.db import Database
from app.keys import KeyListing, list_keys
from tests.cli.test_cli import call
from tests.factories import make_org

T = TypeVar("T")
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command: exit code, standard output, standard error."""
    assert settings.database_url is not None
    monkeypatch.setenv("TOLLGATE_DATABASE_URL", settings.database_url)
    monkeypatch.setenv("TOLLGATE_DATA_DIR", str(settings.data_dir))

    def command(*words: str) -> tuple[int, str, str]:
        code = call(monkeypatch, "keys", *words)
        captured = capsys.readouterr()
        return code, captured.out.strip(), captured.err.strip()

    return command


@pytest.fixture
def org(settings: Settings, database_url: str) -> object:
    """A new organisation's id."""
    return asyncio.run(_with_database(settings, make_org))


def listed(settings: Settings, org: object) -> list[KeyListing]:
    """Its keys, newest first."""

    async def read(database: Database) -> list[KeyListing]:
        async with database.begin() as connection:
            return await list_keys(connection, org)  # type: ignore[arg-type]

    return asyncio.run(_with_database(settings, read))


async def _with_database(settings: Settings, action: Callable[[Database], Awaitable[T]]) -> T:
    assert settings.database_url is not None
    database = Database.connect(settings.database_url)
    try:
        return await action(database)
    finally:
        await database.aclose()


def test_a_key_is_created_with_terms_changed_rotated_and_revoked(run: Run, settings: Settings, org: object) -> None:
    terms = ("--model", "one", "--ip", "192.0.2.0/24", "--monthly-cap", "2.5", "--scope", "keys")
    code, key, _ = run("create", "--org", str(org), "--name", "robot", *terms)
    assert (code, key[:8]) == (0, "tg_live_")
    (made,) = listed(settings, org)
    assert (made.terms.allowed_models, made.terms.monthly_cap, made.scopes) == (("one",), 2_500_000_000_000, ("keys",))
    changes = ("--reset", "ip", "--reset", "monthly-cap", "--requests-per-minute", "9")
    assert run("update", str(made.id), *changes)[0] == 0
    (changed,) = listed(settings, org)
    assert (changed.terms.ip_allow, changed.terms.monthly_cap) == (None, None)
    assert (changed.terms.requests_per_minute, changed.terms.allowed_models) == (9, ("one",))
    code, successor, _ = run("rotate", str(made.id), "--overlap-hours", "0")
    assert (code, successor[:8], successor != key) == (0, "tg_live_", True)
    new, old = listed(settings, org)
    assert (old.revoke_reason, old.replaced_by) == ("rotated", new.id)
    assert run("revoke", str(new.id))[0] == 0
    lines = run("list", "--org", str(org))[1].splitlines()
    assert [line.split()[2] for line in lines] == ["revoked", "revoked"]
    assert lines[1].endswith(f"(replaced by {new.id})")
    assert key not in "".join(lines)
    assert actions(settings, org) == [
        ("operator", "key.create", f"key:{made.id}"),
        ("operator", "key.change", f"key:{made.id}"),
        ("operator", "key.rotate", f"key:{made.id}"),
        ("operator", "key.revoke", f"key:{new.id}"),
    ]


def actions(settings: Settings, org: object) -> list[tuple[str, ...]]:
    """What the audit log of an organisation tells, oldest first."""

    async def read(database: Database) -> list[tuple[str, ...]]:
        async with database.begin() as connection:
            query = f"SELECT actor, action, target FROM audit_log WHERE org_id = '{org}' ORDER BY id"
            return [tuple(row) for row in await connection.exec_driver_sql(query)]

    return asyncio.run(_with_database(settings, read))


@pytest.mark.parametrize(
    "words",
    [
        ("--monthly-cap", "much"),
        ("--monthly-cap", "NaN"),
        ("--monthly-cap", "inf"),
        ("--monthly-cap", "1e999999"),
        ("--ip", "here"),
        ("--reset", "everything"),
        ("--scope", "root"),
    ],
)
def test_wrong_terms_are_one_line(run: Run, words: tuple[str, ...]) -> None:
    code, out, err = run("update", "0198c0de-0000-7000-8000-000000000000", *words)
    assert (code, out) == (1, "")
    assert err.count("\n") == 0
    assert err.startswith("tollgate: ")
