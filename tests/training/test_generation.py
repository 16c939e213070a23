import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import load_file

from app.errors import ConfigError, DataError
from app.modeling import checkpoint, imports, registry
from app.modeling.family import family_of
from app.training.architectures import build_network
from app.training.evaluation import evaluate_model
from app.training.generation import GenerationOptions, train_generation
from app.training.publish import Provenance
from app.training.trainer import BEST, Trainer, load_variables

OPTIONS = GenerationOptions(
    vocab_size=270,
    layers=1,
    width=32,
    heads=2,
    feed_forward=48,
    context=16,
    batch=8,
    steps=40,
    eval_every=10,
    seed=3,
    learning_rate=1e-2,
)
GRU_OPTIONS = GenerationOptions(
    architecture="gru",
    vocab_size=270,
    layers=1,
    width=32,
    embedding=24,
    context=32,
    window=12,
    batch=8,
    steps=40,
    eval_every=10,
    seed=3,
    learning_rate=2e-2,
)
PROVENANCE = Provenance("counting", "made here", "none", "numbers", "Counts.")
COUNTING = " ".join(str(n % 50) for n in range(3000))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "counting.txt"
    path.write_text(COUNTING)
    return path


def train(data: Path, out: Path, runs: Path, options: GenerationOptions = OPTIONS) -> tuple[dict[str, Any], str]:
    console = Console(file=io.StringIO(), width=200)
    evaluation = train_generation(options, data, out, runs, PROVENANCE, console)
    return evaluation, console.file.getvalue()  # type: ignore[attr-defined]


def test_published_model_is_complete_and_evaluates_to_what_its_card_says(data: Path, tmp_path: Path) -> None:
    evaluation, output = train(data, tmp_path / "models" / "counter", tmp_path / "runs")
    out = tmp_path / "models" / "counter"

    assert "1 documents read" in output
    assert "step 40/40" in output
    assert {path.name for path in out.iterdir()} == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
        "tollgate.json", "MODEL_CARD.md", "eval.json", "SHA256SUMS",
    }  # fmt: skip
    assert json.loads((out / "eval.json").read_text()) == json.loads(json.dumps(evaluation))
    assert registry.Registry(tmp_path / "models").get("counter").eos_token_ids == (0,)
    assert registry.verify(out) == []
    assert imports.smoke_run(out).num_parameters == sum(t.size for t in load_file(out / "model.safetensors").values())
    held_out = tmp_path / "held_out.txt"
    held_out.write_text(COUNTING[int(len(COUNTING) * 0.9) :])
    again = evaluate_model(out, held_out, "text", "label")
    assert again["nats_per_character"] == pytest.approx(evaluation["metrics"]["nats_per_character"], abs=0.01)
    card = (out / "MODEL_CARD.md").read_text()
    assert "licence: none" in card
    assert f"| this model | {evaluation['metrics']['nats_per_character']:.4f} |" in card


def test_published_recurrent_model_is_the_network_that_was_trained(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "models" / "counter"
    evaluation, _ = train(data, out, tmp_path / "runs", GRU_OPTIONS)
    loaded = checkpoint.load(out)
    network = build_network(loaded.config, dropout=0.2, seed=9)  # type: ignore[arg-type]
    best = next((tmp_path / "runs").glob("counter-*")) / BEST
    load_variables(best, network.variables)
    tokens = np.array([[0, 40, 41, 42, 9, 30]], np.int32)

    logits = family_of(loaded.config).forward(loaded.config, loaded.weights, tokens)  # type: ignore[arg-type]

    np.testing.assert_array_equal(logits, network.predictor()(tokens))
    assert "GruForCausalLM" in (out / "MODEL_CARD.md").read_text()
    options = evaluation["training"]["options"]
    assert (options["architecture"], options["window"], options["embedding"]) == ("gru", 12, 24)
    assert "heads" not in options
    assert registry.verify(out) == []
    assert imports.smoke_run(out).num_parameters == sum(w.size for w in loaded.weights.values())
    held_out = tmp_path / "held_out.txt"
    held_out.write_text(COUNTING[int(len(COUNTING) * 0.9) :])
    again = evaluate_model(out, held_out, "text", "label")
    assert again["nats_per_character"] == pytest.approx(evaluation["metrics"]["nats_per_character"], abs=0.01)


@pytest.mark.parametrize("options", [OPTIONS, GRU_OPTIONS], ids=["transformer", "gru"])
def test_training_learns_more_than_letter_frequencies(data: Path, tmp_path: Path, options: GenerationOptions) -> None:
    evaluation, _ = train(data, tmp_path / "m", tmp_path / "runs", replace(options, steps=150))

    unigram = evaluation["baselines"]["character 1-gram"]["nats_per_character"]
    assert evaluation["metrics"]["nats_per_character"] < 0.7 * unigram


@pytest.mark.parametrize("options", [OPTIONS, GRU_OPTIONS], ids=["transformer", "gru"])
def test_killed_run_continues_to_the_same_weights(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: GenerationOptions
) -> None:
    train(data, tmp_path / "whole", tmp_path / "runs-of-whole", options)
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_look", _die_at_step(20))
        with pytest.raises(KeyboardInterrupt):
            train(data, tmp_path / "resumed", tmp_path / "runs", options)
    assert not (tmp_path / "resumed").exists()

    _, output = train(data, tmp_path / "resumed", tmp_path / "runs", options)

    assert "Resuming at step 10 of 40" in output
    whole, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "resumed"))
    for name, tensor in whole.items():
        np.testing.assert_array_equal(resumed[name], tensor, err_msg=name)


def test_other_options_start_a_run_of_their_own(data: Path, tmp_path: Path) -> None:
    train(data, tmp_path / "m", tmp_path / "runs")

    _, output = train(data, tmp_path / "m", tmp_path / "runs", replace(OPTIONS, seed=4))

    assert "Resuming" not in output


def test_run_without_progress_stops_early(data: Path, tmp_path: Path) -> None:
    hopeless = replace(OPTIONS, learning_rate=0.0, patience=2, steps=1000)

    evaluation, _ = train(data, tmp_path / "m", tmp_path / "runs", hopeless)

    # Look 1 is the best so far; looks 2 and 3 are not better.
    assert [look["step"] for look in evaluation["training"]["history"]] == [10, 20, 30]
    assert evaluation["training"]["best_step"] == 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 33}, "--width 33"),
        ({"vocab_size": 257}, "--vocab-size must exceed 257"),
        ({"window": 8}, "--window means nothing to --architecture transformer"),
        ({"architecture": "gru"}, "--feed-forward means nothing to --architecture gru"),
    ],
)
def test_options_that_cannot_work_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(OPTIONS, **change)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (replace(OPTIONS, context=512), "shorter than one context of 512 tokens; lower --context"),
        (replace(GRU_OPTIONS, window=512), "shorter than one window of 512 tokens; lower --window"),
    ],
)
def test_text_shorter_than_an_example_is_refused(tmp_path: Path, options: GenerationOptions, message: str) -> None:
    path = tmp_path / "short.txt"
    path.write_text("a few words only, and then no more")

    with pytest.raises(ConfigError, match=message):
        train(path, tmp_path / "m", tmp_path / "runs", options)


def test_bad_data_stops_before_training(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "fine"}\n{"text"')

    with pytest.raises(DataError, match=r"bad\.jsonl:2"):
        train(path, tmp_path / "m", tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def _die_at_step(step: int) -> object:
    look = Trainer._look

    def dying(self: Trainer, *args: object) -> None:
        if self._state.step == step:
            raise KeyboardInterrupt
        look(self, *args)  # type: ignore[arg-type]

    return dying
