import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import typer
from typer.testing import CliRunner

import app.cli
from app import migrate
from app.config import Settings
from app.db import Database


def every_command(group: click.Group, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from every_command(command, (*words, name))  # type: ignore[arg-type]
        else:
            yield (*words, name), command


ROOT = typer.main.get_command(app.cli.app)
COMMANDS = dict(every_command(ROOT))  # type: ignore[arg-type]


@pytest.fixture
def environment(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings.database_url is not None
    monkeypatch.setenv("TOLLGATE_DATABASE_URL", settings.database_url)
    monkeypatch.setenv("TOLLGATE_DATA_DIR", str(settings.data_dir))
    monkeypatch.setenv("TOLLGATE_MODELS_DIR", str(settings.models_dir))


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["tollgate", *words])
    with pytest.raises(SystemExit) as exit_:
        app.cli.main()
    return int(exit_.value.code or 0)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_each_command_explains_itself_with_an_example(words: tuple[str, ...]) -> None:
    result = CliRunner(env={"COLUMNS": "400"}).invoke(app.cli.app, [*words, "--help"])
    assert result.exit_code == 0
    # Brackets would be taken for markup and vanish with what is between them.
    for parameter in COMMANDS[words].params:
        assert getattr(parameter, "hidden", False) or str(getattr(parameter, "help", "")) in result.output
    epilog = COMMANDS[words].epilog or ""
    assert f"tollgate {' '.join(words)}" in epilog
    assert COMMANDS[words].help


@pytest.mark.parametrize("words", [["no-such-command"], ["up", "--port", "99999"], ["db", "migrate", "--nonsense"]])
def test_wrong_usage_exits_with_2(monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    assert call(monkeypatch, *words) == 2


def test_an_expected_failure_is_one_line_and_exits_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("TOLLGATE_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("TOLLGATE_PORT", "eighty")
    assert call(monkeypatch, "db", "url") == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("tollgate: TOLLGATE_PORT")
    assert captured.err.count("\n") == 1


def test_a_database_that_is_away_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("TOLLGATE_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("TOLLGATE_DATABASE_URL", "postgresql://nobody@/none?host=/nonexistent")
    assert call(monkeypatch, "db", "migrate") == 1
    assert "Traceback" not in capsys.readouterr().err


def test_the_version_is_the_distributions(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "--version") == 0
    assert capsys.readouterr().out.startswith("tollgate 0.")


@pytest.mark.usefixtures("environment")
def test_db_migrate_reaches_the_head(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "db", "migrate") == 0
    assert migrate.head() in capsys.readouterr().out


@pytest.mark.usefixtures("environment")
def test_db_url_prints_the_address_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], settings: Settings
) -> None:
    assert call(monkeypatch, "db", "url") == 0
    assert capsys.readouterr().out == f"{settings.database_url}\n"


def test_a_first_command_makes_the_embedded_database_it_needs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o711)
        monkeypatch.setenv("TOLLGATE_DATA_DIR", folder)
        assert call(monkeypatch, "orgs", "create", "Acme") == 0
        org_id = capsys.readouterr().out.strip()
        assert call(monkeypatch, "keys", "create", "--org", org_id, "--name", "first") == 0
        assert capsys.readouterr().out.startswith("tg_live_")


def test_a_database_without_our_tables_is_one_line_that_helps(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], empty_database_url: str, tmp_path: Path
) -> None:
    monkeypatch.setenv("TOLLGATE_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("TOLLGATE_DATABASE_URL", empty_database_url)
    assert call(monkeypatch, "orgs", "list") == 1
    assert capsys.readouterr().err.splitlines()[-1].endswith("run: tollgate db migrate")


def test_db_url_of_the_embedded_server_works(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o711)
        monkeypatch.setenv("TOLLGATE_DATA_DIR", folder)
        assert call(monkeypatch, "db", "migrate") == 0
        capsys.readouterr()
        assert call(monkeypatch, "db", "url") == 0
        assert capsys.readouterr().out.startswith("postgresql://tollgate:")


@pytest.mark.usefixtures("database")
def test_health_says_that_nobody_answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TOLLGATE_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("TOLLGATE_PORT", "1")
    assert call(monkeypatch, "health", "http") == 1
    assert call(monkeypatch, "health", "engine") == 1


def test_the_help_needs_nothing_heavy() -> None:
    script = (
        "import sys, app.cli\n"
        "heavy = {'tensorflow', 'keras', 'sqlalchemy', 'fastapi', 'grpc', 'numpy', 'alembic'} & sys.modules.keys()\n"
        "print(*heavy)"
    )
    assert subprocess.check_output([sys.executable, "-c", script], text=True) == "\n"


def test_the_api_needs_no_tensorflow() -> None:
    script = (
        "import sys, app.main, app.worker, app.portal\nprint(*{'tensorflow', 'keras', 'h5py'} & sys.modules.keys())"
    )
    assert subprocess.check_output([sys.executable, "-c", script], text=True) == "\n"


def test_a_database_is_handed_to_a_command(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    from app.cli.context import with_database

    assert settings.database_url is not None
    monkeypatch.setenv("TOLLGATE_DATABASE_URL", settings.database_url)
    monkeypatch.setenv("TOLLGATE_DATA_DIR", str(settings.data_dir))

    async def ask(database: Database, given: Settings) -> bool:
        async with database.begin() as connection:
            await connection.exec_driver_sql("SELECT 1")
        return given.database_url == settings.database_url

    assert with_database(ask)
