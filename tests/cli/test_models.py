import json
import sys
from pathlib import Path

import pytest

import app.cli
from app.modeling import registry
from tests.modeling.checkpoints import write_decoder, write_encoder


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TOLLGATE_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("TOLLGATE_MODELS_DIR", str(tmp_path / "models"))
    write_decoder(tmp_path / "models" / "poet")
    write_encoder(tmp_path / "models" / "judge")
    return tmp_path / "models"


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """The exit code of a command line."""
    monkeypatch.setattr(sys, "argv", ["tollgate", *words])
    with pytest.raises(SystemExit) as exit_:
        app.cli.main()
    return int(exit_.value.code or 0)


def test_list_shows_every_model_and_whether_it_is_served(
    models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    registry.set_enabled(models / "judge", enabled=False)

    assert run(monkeypatch, "models", "list") == 0

    _, judge, poet = capsys.readouterr().out.splitlines()
    assert judge.split()[:3] == ["judge", "classification", "32"]
    assert "no" in judge.split()
    assert "yes" in poet.split()


def test_verify_names_the_file_that_changed(
    models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "models", "verify", "poet") == 0
    assert "files match SHA256SUMS" in capsys.readouterr().out
    (models / "poet" / "generation_config.json").write_text(json.dumps({"eos_token_id": 5}))

    assert run(monkeypatch, "models", "verify", "poet") == 1

    assert capsys.readouterr().err == "tollgate: poet: these files differ from SHA256SUMS: generation_config.json\n"


def test_imported_model_is_listed(
    models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "models", "import", str(models / "poet"), "--name", "bard") == 0

    assert "Imported bard" in capsys.readouterr().out
    assert registry.Registry(models).get("bard").digest == registry.Registry(models).get("poet").digest


def test_disabled_model_is_enabled_again(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, "models", "disable", "poet") == 0
    assert not registry.read_card(models / "poet").enabled
    assert run(monkeypatch, "models", "enable", "poet") == 0
    assert registry.read_card(models / "poet").enabled


@pytest.mark.parametrize("command", ["verify", "disable", "enable"])
def test_unknown_model_is_named(
    models: Path, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "models", command, "nobody") == 1
    assert "there is no model 'nobody'" in capsys.readouterr().err
