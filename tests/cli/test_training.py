import json
from pathlib import Path

import pytest

from tests.cli.test_models import run

TINY: dict[str, int | str] = {"vocab-size": 270, "context": 16}
TINY_DECODER = TINY | {
    "layers": 1, "width": 16, "heads": 2, "feed-forward": 16, "batch": 4,
    "steps": 4, "eval-every": 2,
}  # fmt: skip
TINY_GRU: dict[str, int | str] = TINY | {
    "architecture": "gru", "layers": 1, "width": 16, "embedding": 8, "window": 8, "batch": 4,
    "steps": 4, "eval-every": 2,
}  # fmt: skip
TINY_CLASSIFIER = TINY | {"width": 8, "filters": 8, "epochs": 1, "batch": 8}


def words(options: dict[str, int | str]) -> list[str]:
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TOLLGATE_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("TOLLGATE_MODELS_DIR", str(tmp_path / "models"))
    return tmp_path


@pytest.mark.parametrize(
    ("options", "architecture"), [(TINY_DECODER, "LlamaForCausalLM"), (TINY_GRU, "GruForCausalLM")]
)
def test_generation_is_trained_published_and_evaluated(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: dict[str, int | str],
    architecture: str,
) -> None:
    (folder / "plays.txt").write_text("to be or not to be, that is the question\n" * 60)
    out = folder / "models" / "plays"

    trained = run(
        monkeypatch, "train", "generation", "--data", str(folder / "plays.txt"), "--out", str(out),
        "--license", "public domain", *words(options),
    )  # fmt: skip
    shown = capsys.readouterr().out
    verified = run(monkeypatch, "models", "verify", "plays")
    capsys.readouterr()
    evaluated = run(monkeypatch, "evaluate", "plays", "--data", str(folder / "plays.txt"), "--json")

    assert (trained, verified, evaluated) == (0, 0, 0)
    assert f"Published {out}." in shown
    assert "character 5-gram" in shown
    card = (out / "MODEL_CARD.md").read_text()
    assert "public domain" in card
    assert architecture in card
    exact = json.loads(capsys.readouterr().out)
    assert exact.keys() == json.loads((out / "eval.json").read_text())["metrics"].keys()
    run(monkeypatch, "evaluate", "plays", "--data", str(folder / "plays.txt"), "--precision", "int8", "--json")
    rounded = json.loads(capsys.readouterr().out)
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.1)


def test_classification_is_trained_published_and_evaluated(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"{'good' if n % 2 else 'bad'} thing number {n},{'up' if n % 2 else 'down'}" for n in range(60)]
    (folder / "moods.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    out = folder / "models" / "moods"

    trained = run(
        monkeypatch,
        "train",
        "classification",
        "--data",
        str(folder / "moods.csv"),
        "--out",
        str(out),
        *words(TINY_CLASSIFIER),
    )
    evaluated = run(monkeypatch, "evaluate", "moods", "--data", str(folder / "moods.csv"))

    shown = capsys.readouterr().out
    assert (trained, evaluated) == (0, 0)
    assert "linear SVM" in shown
    assert "accuracy" in shown.splitlines()[-4]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--architecture", "gru", "--heads", "4"), "--heads means nothing to --architecture gru"),
        (("--embedding", "64"), "--embedding means nothing to --architecture transformer"),
    ],
)
def test_size_of_the_other_architecture_is_refused(
    folder: Path,
    words: tuple[str, ...],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = run(monkeypatch, "train", "generation", "--data", "x.txt", "--out", str(folder / "models" / "m"), *words)

    assert code == 1
    assert message in capsys.readouterr().err


def test_broken_line_is_one_line_on_standard_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "bad.jsonl").write_text('{"text": "a", "label": "x"}\n{"text": \n')

    code = run(
        monkeypatch, "train", "classification", "--data", str(folder / "bad.jsonl"), "--out", str(folder / "models/m")
    )

    captured = capsys.readouterr()
    assert code == 1
    assert captured.err.count("\n") == 1
    assert "bad.jsonl:2: is not valid JSON" in captured.err


def test_model_that_is_there_is_not_overwritten_unasked(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "models" / "m").mkdir(parents=True)

    assert run(monkeypatch, "train", "generation", "--data", "x.txt", "--out", str(folder / "models" / "m")) == 1
    assert "--overwrite" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("out", "message"),
    [(".", "must end in the model's name"), ("m/..", "must end"), ("m/.x", "must end"), ("x.txt/m", "no folder")],
)
def test_place_that_no_model_can_have_is_refused_before_work_begins(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], out: str, message: str
) -> None:
    (folder / "x.txt").write_text("")
    monkeypatch.chdir(folder)

    assert run(monkeypatch, "train", "generation", "--data", "x.txt", "--out", out, "--overwrite") == 1
    assert message in capsys.readouterr().err


def test_folder_that_is_no_model_is_never_overwritten(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "letters").mkdir()
    (folder / "letters" / "dear.txt").write_text("mine")
    words = ("train", "generation", "--data", "x.txt", "--out", str(folder / "letters"), "--overwrite")

    assert run(monkeypatch, *words) == 1
    assert "is no model" in capsys.readouterr().err
    assert (folder / "letters" / "dear.txt").exists()


@pytest.mark.parametrize("option", ["--steps", "--batch", "--context", "--eval-every", "--patience"])
def test_nothing_of_what_training_counts_is_a_usage_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    words = ("train", "generation", "--data", "x.txt", "--out", str(folder / "m"), option, "0")

    assert run(monkeypatch, *words) == 2
    assert option in capsys.readouterr().err


def test_missing_extra_is_refused_before_work_begins(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    assert run(monkeypatch, "train", "classification", "--data", "x.csv", "--out", str(folder / "m")) == 1
    assert "sklearn is not installed" in capsys.readouterr().err
