"""Encoders against the outputs that an independent library computed of the same files."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from safetensors.numpy import load_file, save_file

from app.errors import ModelFormatError
from app.modeling import bert, checkpoint, registry
from app.modeling.bert_config import BertConfig

FIXTURES = Path(__file__).parent / "fixtures"
CLASSIFIERS = {"bert-classifier": "logits", "distilbert-classifier": "logits", "roberta-classifier": "logits"}
EMBEDDERS = {"bert-mean-pooling": "embeddings", "bert-cls-pooling": "embeddings"}
# Outputs reach 5; a wrong option shows as 1e-2 or more.
TOLERANCE = 1e-5


def load(directory: Path) -> tuple[BertConfig, dict[str, tf.Tensor]]:
    model = checkpoint.load(directory)
    assert isinstance(model.config, BertConfig)
    prepared = bert.prepare(model.config, model.weights)
    return model.config, {name: tf.constant(value) for name, value in prepared.items()}


def run(config: BertConfig, weights: dict[str, tf.Tensor], tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    read = bert.embed if config.pooling else bert.classify
    return np.asarray(read(config, weights, tf.constant(tokens, tf.int32), tf.constant(lengths, tf.int32)))


def copied(name: str, to: Path, **changes: Any) -> Path:
    shutil.copytree(FIXTURES / name, to)
    config = json.loads((to / "config.json").read_text()) | changes
    (to / "config.json").write_text(json.dumps(config))
    return to


@pytest.mark.parametrize(("name", "output"), (CLASSIFIERS | EMBEDDERS).items())
def test_padded_batch_agrees_with_the_independent_outputs(name: str, output: str) -> None:
    config, weights = load(FIXTURES / name)
    expected = np.load(FIXTURES / name / "expected.npz")

    found = run(config, weights, expected["tokens"], expected["lengths"])

    assert len(set(expected["lengths"])) > 1
    np.testing.assert_allclose(found, expected[output], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(("name", "output"), (CLASSIFIERS | EMBEDDERS).items())
def test_each_text_alone_and_unpadded_agrees_too(name: str, output: str) -> None:
    config, weights = load(FIXTURES / name)
    expected = np.load(FIXTURES / name / "expected.npz")

    for tokens, length, wanted in zip(expected["tokens"], expected["lengths"], expected[output], strict=True):
        found = run(config, weights, tokens[np.newaxis, :length], np.array([length]))
        np.testing.assert_allclose(found[0], wanted, atol=TOLERANCE, rtol=0)


def test_pooler_that_a_roberta_classifier_carries_besides_is_not_used(tmp_path: Path) -> None:
    path = copied("roberta-classifier", tmp_path / "model") / "model.safetensors"
    pooler = {"weight": np.zeros((16, 16), np.float32), "bias": np.zeros(16, np.float32)}
    save_file(load_file(path) | {f"roberta.pooler.dense.{kind}": value for kind, value in pooler.items()}, path)

    assert not any("pooler" in name for name in checkpoint.load(tmp_path / "model").weights)


def test_pooler_of_a_bert_classifier_is_its_head(tmp_path: Path) -> None:
    path = copied("bert-classifier", tmp_path / "model") / "model.safetensors"
    save_file({name: value for name, value in load_file(path).items() if name != "bert.pooler.dense.bias"}, path)

    with pytest.raises(ModelFormatError, match=r"lacks bert\.pooler\.dense\.bias"):
        checkpoint.load(tmp_path / "model")


def test_scores_of_one_label_of_many_sum_to_one_and_of_several_do_not() -> None:
    tokens, lengths = tf.constant([[5, 6, 7]]), tf.constant([3])
    config, weights = load(FIXTURES / "bert-classifier")
    several, several_weights = load(FIXTURES / "roberta-classifier")

    of_one = bert.scores(config, weights, tokens, lengths).numpy()[0]
    of_several = bert.scores(several, several_weights, tokens, lengths).numpy()[0]

    assert of_one.sum() == pytest.approx(1, abs=1e-6)
    logits = bert.classify(several, several_weights, tokens, lengths).numpy()[0]
    np.testing.assert_allclose(of_several, 1 / (1 + np.exp(-logits)), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "changes", "complaint"),
    [
        ("bert-classifier", {"hidden_act": "swish"}, "hidden_act is 'swish'"),
        ("bert-classifier", {"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ("bert-classifier", {"is_decoder": True}, "is_decoder"),
        ("bert-classifier", {"problem_type": "regression"}, "problem_type is 'regression'"),
        ("bert-classifier", {"num_attention_heads": 5}, "hidden_size is no multiple"),
        ("bert-classifier", {"layer_norm_eps": None}, "no field 'layer_norm_eps'"),
        ("bert-classifier", {"architectures": ["BertForTokenClassification"]}, "BertForTokenClassification"),
        ("bert-classifier", {"num_hidden_layers": 1}, "unknown tensors bert.encoder.layer.1"),
        ("roberta-classifier", {"id2label": {"0": "a", "1": "b"}}, "classifier.out_proj.weight has shape"),
        ("distilbert-classifier", {"activation": "tanh"}, "activation is 'tanh'"),
        ("distilbert-classifier", {"n_layers": 3}, "lacks distilbert.transformer.layer.2"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(
    tmp_path: Path, name: str, changes: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ModelFormatError, match=complaint):
        checkpoint.load(copied(name, tmp_path / "model", **changes))


@pytest.mark.parametrize(
    ("file", "content", "complaint"),
    [
        ("modules.json", "[]", "modules.json names nothing"),
        ("modules.json", '[{"type": "a.Transformer"}, {"type": "a.Pooling"}, {"type": "a.Dense"}]', "Dense"),
        ("modules.json", "{}", "does not hold a list"),
        ("modules.json", "[", "is not valid JSON"),
        ("1_Pooling/config.json", '{"pooling_mode_max_tokens": true}', "pooling_mode_max_tokens"),
        (
            "1_Pooling/config.json",
            '{"pooling_mode_mean_tokens": true, "pooling_mode_cls_token": true}',
            "only mean or CLS",
        ),
        ("1_Pooling/config.json", '{"pooling_mode": "lasttoken"}', "lasttoken"),
    ],
)
def test_other_pooling_is_refused(tmp_path: Path, file: str, content: str, complaint: str) -> None:
    directory = copied("bert-mean-pooling", tmp_path / "model")
    (directory / file).write_text(content)

    with pytest.raises(ModelFormatError, match=complaint):
        checkpoint.load(directory)


@pytest.mark.parametrize(("mode", "pooling"), [("mean", "mean"), ("cls", "cls")])
def test_pooling_may_be_named_in_one_field(tmp_path: Path, mode: str, pooling: str) -> None:
    directory = copied("bert-mean-pooling", tmp_path / "model")
    (directory / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": mode}))

    config, _ = load(directory)

    assert config.pooling == pooling


def test_embedding_model_without_modules_is_refused(tmp_path: Path) -> None:
    directory = copied("bert-cls-pooling", tmp_path / "model")
    (directory / "modules.json").unlink()

    with pytest.raises(ModelFormatError, match=r"modules\.json"):
        checkpoint.load(directory)


def test_longest_text_is_what_positions_and_files_leave(tmp_path: Path) -> None:
    directory = copied("bert-mean-pooling", tmp_path / "model")
    (directory / "sentence_bert_config.json").write_text('{"max_seq_length": 17}')

    assert registry.read_card(directory).context_length == load(directory)[0].context_length == 17
    # Of 42 positions, RoBERTa gives out those behind its padding's id, 1.
    assert registry.read_card(FIXTURES / "roberta-classifier").context_length == 40


def test_cards_tell_embedding_models_and_several_labels() -> None:
    embedder = registry.read_card(FIXTURES / "bert-mean-pooling")
    several = registry.read_card(FIXTURES / "roberta-classifier")

    assert (embedder.kind, embedder.embedding_size, embedder.labels) == ("embedding", 16, ())
    assert (several.kind, several.is_multi_label, several.thresholds) == ("classification", True, (0.5,) * 4)
    assert not registry.read_card(FIXTURES / "bert-classifier").is_multi_label
