import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tokenizers
from rich.console import Console

from app.errors import ConfigError, DataError
from app.modeling import registry
from app.modeling.tokenizer import Tokenizer
from app.training.classification import ClassificationOptions, train_classification
from app.training.classifier import Tokens, fold_temperature, predict_logits, sample_batch
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


@pytest.fixture
def several(tmp_path: Path) -> Path:
    """Every text has any number of three words, each a label, which somebody has forgotten here and there."""
    path = tmp_path / "several.jsonl"
    with path.open("w") as file:
        for number in range(320):
            labels = [label for place, label in enumerate(WORDS) if number >> place & 1]
            words = " and ".join(WORDS[label][number % 3] for label in labels)
            noted = [] if number % 9 == 4 else labels
            file.write(json.dumps({"text": f"today number {number} {words}".strip(), "label": noted}) + "\n")
    return path


def test_model_of_several_labels_is_served_with_thresholds_that_were_fitted(several: Path, tmp_path: Path) -> None:
    out = tmp_path / "models" / "moods"

    evaluation = train(several, out, tmp_path / "runs", replace(OPTIONS, test_fraction=0.2))

    card = registry.read_card(out)
    assert (card.is_multi_label, card.labels) == (True, ("glad", "mad", "sad"))
    assert dict(zip(card.labels, card.thresholds, strict=True)) == evaluation["training"]["thresholds"]
    assert all(0.01 < threshold < 0.99 and threshold != 0.5 for threshold in card.thresholds)
    assert evaluation["metrics"]["micro_f1"] > 0.8
    assert evaluation["metrics"]["accuracy"] > evaluation["baselines"]["commonest labels"]["accuracy"]
    assert evaluation["baselines"]["linear SVM"].keys() == {"accuracy", "micro_f1", "macro_f1"}
    assert evaluate_model(out, several, "text", "label")["micro_f1"] > 0.8


def test_evaluation_says_what_abstaining_buys(data: Path, tmp_path: Path) -> None:
    rows = train(data, tmp_path / "moods", tmp_path / "runs")["abstention"]

    assert [row["abstain_below"] for row in rows] == [0.3, 0.5, 0.7, 0.9]
    assert [row["answered"] for row in rows] == sorted((row["answered"] for row in rows), reverse=True)
    assert "| `abstain_below` | answered | right of those |" in (tmp_path / "moods" / "MODEL_CARD.md").read_text()


def test_lists_of_labels_mean_nothing_to_a_model_of_one(data: Path, several: Path, tmp_path: Path) -> None:
    train(data, tmp_path / "moods", tmp_path / "runs", replace(OPTIONS, epochs=1))

    with pytest.raises(DataError, match="has lists of labels, and moods gives one label to a text"):
        evaluate_model(tmp_path / "moods", several, "text", "label")


def test_tokenizer_that_pads_and_cuts_as_in_training_changes_no_figure(data: Path, tmp_path: Path) -> None:
    train(data, tmp_path / "moods", tmp_path / "runs", replace(OPTIONS, epochs=2))
    before = evaluate_model(tmp_path / "moods", data, "text", "label")
    tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / "moods" / "tokenizer.json"))
    tokenizer.enable_padding(length=20, pad_id=5)
    tokenizer.enable_truncation(3)
    tokenizer.save(str(tmp_path / "moods" / "tokenizer.json"))

    assert evaluate_model(tmp_path / "moods", data, "text", "label") == before


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


@pytest.mark.parametrize(("width", "num_rows"), [(8, 256), (128, 256), (512, 64), (2**16, 1)])
def test_batches_of_long_texts_have_fewer_rows_and_every_text_its_logits(width: int, num_rows: int) -> None:
    tokens, lengths = np.zeros((3, width), np.int32), np.array([1, 2, 3], np.int32)
    shapes = set()

    def predict(inputs: Tokens) -> tf.Tensor:
        shapes.add(inputs[0].shape)
        assert (inputs[1] >= 1).all()
        return tf.cast(inputs[1], tf.float32)[:, tf.newaxis]

    assert predict_logits(predict, (tokens, lengths))[:, 0].tolist() == [1, 2, 3]
    assert shapes == {(num_rows, width)}


def test_temperature_is_part_of_the_weights() -> None:
    weights = {"classifier.weight": np.ones((4, 2), np.float32), "classifier.bias": np.ones(4, np.float32)}

    assert fold_temperature(weights, 2.0)["classifier.bias"].tolist() == [0.5] * 4
