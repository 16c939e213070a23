import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.bench.random_model import TextSizes, write_random_classifier
from app.errors import ModelFormatError
from app.modeling import checkpoint
from app.training import evaluation
from app.training.evaluation import evaluate_model
from app.training.vocabulary import train_generation_tokenizer
from tests.modeling.checkpoints import TEXTS, decoder_config, random_weights, write_decoder, write_encoder


def swapped(rows: np.ndarray, first: int, second: int) -> np.ndarray:
    rows = rows.copy()
    rows[[first, second]] = rows[[second, first]]
    return rows


def test_figures_do_not_depend_on_which_number_begins_and_ends_a_text(tmp_path: Path) -> None:
    data = tmp_path / "text.txt"
    data.write_text("the lazy dog jumps over the quick brown fox " * 3)
    weights = write_decoder(tmp_path / "zero")
    # The same network with the numbers 0 and 1 exchanged, of which the text has neither.
    tokenizer = json.loads(train_generation_tokenizer(TEXTS, 300).to_str())
    unused = next(token for token, i in tokenizer["model"]["vocab"].items() if i == 1)
    other = tmp_path / "one"
    config = decoder_config().to_hf() | {"bos_token_id": 1, "eos_token_id": [1]}
    weights["model.embed_tokens.weight"] = swapped(weights["model.embed_tokens.weight"], 0, 1)
    checkpoint.save(other, config, weights)
    assert unused not in data.read_text()
    (other / "tokenizer.json").write_text((tmp_path / "zero" / "tokenizer.json").read_text())

    assert evaluate_model(other, data, "text", "label") == evaluate_model(tmp_path / "zero", data, "text", "label")


def test_long_context_is_measured_in_shorter_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "LONGEST_WINDOW", 16)
    data = tmp_path / "text.txt"
    data.write_text("the lazy dog jumps over the quick brown fox " * 3)
    config = decoder_config(context_length=10**6)
    write_decoder(tmp_path / "m")
    checkpoint.save(tmp_path / "m", config.to_hf(), random_weights(config.shapes))

    assert evaluate_model(tmp_path / "m", data, "text", "label")["perplexity_per_token"] > 1


def test_too_long_text_keeps_the_token_that_ends_it(tmp_path: Path) -> None:
    write_random_classifier(
        tmp_path / "m", TextSizes(layers=1, width=32, feed_forward=64, heads=2, vocab=99, context=16)
    )

    def measured(num_words: int) -> dict[str, float]:
        path = tmp_path / f"{num_words}.csv"
        rows = (f"{' '.join(f'w{(n + 7 * at) % 90}' for at in range(num_words))},L{n % 4}" for n in range(12))
        path.write_text("text,label\n" + "\n".join(rows) + "\n")
        return evaluate_model(tmp_path / "m", path, "text", "label")

    assert measured(40) == measured(14)
    assert measured(40) != measured(13)


def test_several_labels_of_an_encoder_hold_from_its_thresholds_on(tmp_path: Path) -> None:
    write_random_classifier(
        tmp_path / "m", TextSizes(layers=1, width=32, feed_forward=64, heads=2, vocab=99, context=16)
    )
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"text": f"w{n} w{n + 1}", "label": ["L0", "L1", "L2", "L3"]}) + "\n" for n in range(20))
    )

    def accuracy(threshold: float) -> float:
        path = tmp_path / "m" / "config.json"
        thresholds = {f"L{i}": threshold for i in range(4)}
        more = {"problem_type": "multi_label_classification", "label_thresholds": thresholds}
        path.write_text(json.dumps(json.loads(path.read_text()) | more))
        return evaluate_model(tmp_path / "m", tmp_path / "a.jsonl", "text", "label")["accuracy"]

    assert (accuracy(0.0), accuracy(1.0)) == (1.0, 0.0)


def test_classifier_has_no_int8(tmp_path: Path) -> None:
    write_encoder(tmp_path / "judge")
    data = tmp_path / "a.csv"
    data.write_text("text,label\na,no\nb,yes\n")
    words: dict[str, Any] = {"text_field": "text", "label_field": "label"}

    with pytest.raises(ModelFormatError, match="judge does not generate"):
        evaluate_model(tmp_path / "judge", data, **words, precision="int8")
