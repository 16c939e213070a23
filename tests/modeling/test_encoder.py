from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf

from app.errors import ModelFormatError
from app.modeling import encoder
from app.modeling.encoder import EncoderConfig
from tests.modeling.checkpoints import encoder_config, random_weights

CONFIG = encoder_config()
SEVERAL = replace(CONFIG, thresholds=(0.25, 0.75))
WEIGHTS = random_weights(CONFIG.shapes)


def by_hand(tokens: list[int]) -> np.ndarray:
    """One text in NumPy: every window that touches it, the strongest response, the output layer."""
    embedded = np.stack([WEIGHTS["embeddings.weight"][t] * (t != encoder.PAD_ID) for t in tokens])
    pooled = []
    for size in CONFIG.kernel_sizes:
        padded = np.pad(embedded, ((size - 1, size - 1), (0, 0)))
        kernel, bias = WEIGHTS[f"convolutions.{size}.weight"], WEIGHTS[f"convolutions.{size}.bias"]
        windows = [padded[i : i + size] for i in range(len(tokens) + size - 1)]
        responses = [np.maximum(np.einsum("kd,fdk->f", window, kernel) + bias, 0) for window in windows]
        pooled.append(np.max(responses, axis=0))
    return np.asarray(WEIGHTS["classifier.weight"] @ np.concatenate(pooled) + WEIGHTS["classifier.bias"])


@pytest.mark.parametrize("tokens", [[5], [5, 9, 250], [5, 0, 0, 7], list(range(1, 30))])
def test_classify_agrees_with_a_computation_by_hand(tokens: list[int]) -> None:
    logits = encoder.classify(CONFIG, WEIGHTS, tf.constant([tokens]), tf.constant([len(tokens)]))

    np.testing.assert_allclose(logits[0], by_hand(tokens), atol=1e-4)


def test_padding_does_not_change_a_result() -> None:
    tokens = [5, 9, 250]
    padded = tf.constant([tokens + [77] * 20])

    logits = encoder.classify(CONFIG, WEIGHTS, padded, tf.constant([3]))

    np.testing.assert_allclose(logits[0], by_hand(tokens), atol=1e-4)


def test_scores_are_of_one_label_of_all_or_of_each_for_itself() -> None:
    rows, lengths = tf.constant([[5, 9, 250], [7, 1, 1]]), tf.constant([3, 1])
    logits = np.asarray(encoder.classify(CONFIG, WEIGHTS, rows, lengths), np.float64)

    of_one = encoder.scores(CONFIG, WEIGHTS, rows, lengths)
    of_several = encoder.scores(SEVERAL, WEIGHTS, rows, lengths)

    np.testing.assert_allclose(of_one, np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), atol=1e-6)
    np.testing.assert_allclose(of_several, 1 / (1 + np.exp(-logits)), atol=1e-6)


@pytest.mark.parametrize("config", [CONFIG, SEVERAL], ids=["one", "several"])
def test_scores_are_the_same_bit_for_bit_in_any_batch(config: EncoderConfig) -> None:
    rng = np.random.default_rng(0)
    tokens, lengths = rng.integers(1, 300, (7, 12), dtype=np.int32), np.arange(1, 8, dtype=np.int32)
    compiled = tf.function(lambda rows, sizes: encoder.scores(config, WEIGHTS, rows, sizes))  # as a CPU runs it

    together = compiled(tf.constant(tokens), tf.constant(lengths)).numpy()

    for row in range(7):
        alone = compiled(tf.constant(tokens[row : row + 1]), tf.constant(lengths[row : row + 1])).numpy()
        assert alone[0].tobytes() == together[row].tobytes()


@pytest.mark.parametrize("config", [CONFIG, SEVERAL], ids=["one", "several"])
def test_config_survives_the_published_form(config: EncoderConfig) -> None:
    assert EncoderConfig.from_hf(config.to_hf()) == config


def test_missing_field_is_named() -> None:
    raw = CONFIG.to_hf()
    del raw["kernel_sizes"]

    with pytest.raises(ModelFormatError, match="kernel_sizes"):
        EncoderConfig.from_hf(raw)
