import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from app.errors import ConfigError, DataError
from app.modeling import registry
from app.modeling.tokenizer import Tokenizer
from app.training.classification import ClassificationOptions, train_classification
from app.training.classifier import fit_temperature, fold_temperature, metrics, sample_batch
from app.training.evaluation import evaluate_model
from app.training.publish import Provenance

OPTIONS = ClassificationOptions(
    vocab_size=300,
    width=16,
    filters=16,
    kernel_sizes=(1, 2),
    context=24,
    batch=16,
    epochs=20,
    dev_fraction=0.1,
    learning_rate=1e-2,
)
PROVENANCE = Provenance("moods", "made here", "none", "English", "Tells moods.")
WORDS = {"glad": ("good", "fine", "great"), "sad": ("bad", "poor", "awful"), "mad": ("rage", "fury", "wrath")}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "moods.jsonl"
    with path.open("w") as file:
        for number in range(240):
            label = list(WORDS)[number % 3]
            text = f"today number {number} was {WORDS[label][number % 7 % 3]} indeed"
            file.write(json.dumps({"text": text, "label": label}) + "\n")
    return path


def train(data: Path, out: Path, runs: Path, options: ClassificationOptions = OPTIONS) -> dict[str, Any]:
    console = Console(file=io.StringIO(), width=200)
    return train_classification(options, data, None, out, runs, PROVENANCE, console)


def test_published_classifier_is_calibrated_and_evaluates_to_what_its_card_says(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "models" / "moods"

    evaluation = train(data, out, tmp_path / "runs")

    assert evaluation["metrics"]["accuracy"] == 1.0
    assert evaluation["baselines"]["majority label"]["accuracy"] == pytest.approx(1 / 3, abs=0.01)
    assert evaluation["baselines"]["linear SVM"]["accuracy"] > 0.9
    assert evaluation["training"]["temperature"] != 1.0
    card = registry.Registry(tmp_path / "models").get("moods")
    assert (card.kind, card.labels, card.context_length) == ("classification", ("glad", "mad", "sad"), 24)
    again = evaluate_model(out, data, "text", "label")
    # The temperature is part of the published weights: the loss is that of the calibrated scores.
    assert again["cross_entropy"] == pytest.approx(evaluation["metrics"]["cross_entropy"], abs=0.05)
    assert Tokenizer.load(out).encode("GOOD") == Tokenizer.load(out).encode("good")


def test_same_seed_gives_the_same_model(data: Path, tmp_path: Path) -> None:
    short = replace(OPTIONS, epochs=1)
    for name in ("one", "two"):
        train(data, tmp_path / name, tmp_path / f"runs-{name}", short)

    digests = {registry.checksums(tmp_path / name)["model.safetensors"] for name in ("one", "two")}
    assert len(digests) == 1


def test_evaluation_with_a_label_that_the_model_lacks_is_refused(data: Path, tmp_path: Path) -> None:
    train(data, tmp_path / "moods", tmp_path / "runs", replace(OPTIONS, epochs=1))
    other = tmp_path / "other.csv"
    other.write_text("text,label\nhello,calm\nbye,glad\n")

    with pytest.raises(DataError, match="labels that the model does not know: calm"):
        evaluate_model(tmp_path / "moods", other, "text", "label")


def test_weights_that_ran_away_are_not_published_and_not_gone_on_from(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="lower --learning-rate"):
        train(data, tmp_path / "moods", tmp_path / "runs", replace(OPTIONS, epochs=2, patience=1, learning_rate=1e30))

    assert not (tmp_path / "moods").exists()
    assert [*(tmp_path / "runs").iterdir()] == []


def test_vocabulary_without_room_is_refused() -> None:
    with pytest.raises(ConfigError, match="--vocab-size"):
        replace(OPTIONS, vocab_size=200)


def test_epoch_shows_every_text_once_and_blanks_some_tokens() -> None:
    tokens = np.arange(1, 161, dtype=np.int32).reshape(16, 10)
    data, targets = (tokens, np.full(16, 10, np.int32)), np.eye(16, dtype=np.float32)

    batches = [sample_batch(data, targets, 4, 0.5, seed=0, step=step) for step in range(4)]

    assert sorted(int(row) for _, y in batches for row in y.argmax(axis=1)) == list(range(16))
    blanked = np.concatenate([x[0] for x, _ in batches]) == 0
    assert 0.3 < blanked.mean() < 0.7


def test_temperature_undoes_overconfidence() -> None:
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 4, 4000)
    honest = rng.normal(0, 1, (4000, 4))
    honest[np.arange(4000), classes] += 1.0  # log-odds of Gaussians: calibrated as they are

    temperature = fit_temperature(honest * 3.0, classes)

    assert temperature == pytest.approx(3.0, rel=0.1)
    weights = {"classifier.weight": np.ones((4, 2), np.float32), "classifier.bias": np.ones(4, np.float32)}
    assert fold_temperature(weights, 2.0)["classifier.bias"].tolist() == [0.5] * 4
    before, after = metrics(honest * 3.0, classes), metrics(honest, classes)
    assert after["calibration_error"] < before["calibration_error"] / 3
    assert after["accuracy"] == before["accuracy"]
