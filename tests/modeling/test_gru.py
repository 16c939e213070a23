from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from app.errors import ModelFormatError
from app.modeling import gru
from app.modeling.gru import GruConfig
from tests.modeling.checkpoints import random_weights

CONFIG = GruConfig(
    vocab_size=40, embedding_size=6, hidden_size=8, num_layers=2, context_length=32, bos_token_id=0, eos_token_ids=(0,)
)
TOKENS = [0, 17, 5, 39, 5, 5, 22, 8, 31]
# Logits reach 2; a state is bounded, so float32's noise does not grow along the sequence.
TOLERANCE = 2e-6
NUM_SLOTS = 3


def loop(weights: dict[str, np.ndarray], tokens: list[int]) -> np.ndarray:
    """Logits `[T, V]` in float64, one token, one layer and one unit at a time, from the paper."""
    w = {name: np.asarray(value, np.float64) for name, value in weights.items()}
    size = CONFIG.hidden_size
    states, logits = np.zeros((CONFIG.num_layers, size)), []
    for token in tokens:
        x = w["model.embed_tokens.weight"][token]
        for layer in range(CONFIG.num_layers):
            p = f"model.layers.{layer}."
            a = w[p + "input.weight"] @ x + w[p + "input.bias"]
            b = w[p + "recurrent.weight"] @ states[layer] + w[p + "recurrent.bias"]
            after = np.empty(size)
            for unit in range(size):
                z = 1 / (1 + np.exp(-(a[unit] + b[unit])))
                r = 1 / (1 + np.exp(-(a[size + unit] + b[size + unit])))
                after[unit] = z * states[layer][unit] + (1 - z) * np.tanh(a[2 * size + unit] + r * b[2 * size + unit])
            states[layer] = x = after
        logits.append(w["lm_head.weight"] @ x + w["lm_head.bias"])
    return np.stack(logits)


def prefill(weights: dict[str, Any], cache: gru.Cache, tokens: list[int], slot: int, start: int, pad: int) -> tf.Tensor:
    padded = tf.constant([tokens + [7] * pad])
    length = tf.constant(len(tokens))
    return gru.prefill(CONFIG, weights, cache, padded, tf.constant(slot), tf.constant(start), length, context=32)[0]


def decode(weights: dict[str, Any], cache: gru.Cache, rows: dict[int, tuple[int, int]], idle: int = 0) -> np.ndarray:
    """One step; `rows` maps a slot to its token and position, the others idle at `idle`."""
    tokens, positions = np.full(NUM_SLOTS, 9, np.int32), np.full(NUM_SLOTS, idle, np.int32)
    for slot, (token, position) in rows.items():
        tokens[slot], positions[slot] = token, position
    logits = gru.decode(CONFIG, weights, cache, tf.constant(tokens), tf.constant(positions), context=32)
    return np.asarray(logits)


def test_forward_agrees_with_a_plain_loop() -> None:
    weights = random_weights(CONFIG.shapes)

    logits = gru.forward(CONFIG, weights, tf.constant([TOKENS]))[0]

    np.testing.assert_allclose(logits, loop(weights, TOKENS), atol=TOLERANCE, rtol=0)


def test_a_layer_is_the_gru_of_keras() -> None:
    layer = keras.layers.GRU(8, reset_after=True, return_sequences=True, bias_initializer="random_normal", seed=1)
    x = np.random.default_rng(2).normal(size=(2, 7, 6)).astype(np.float32)
    theirs = layer(x)
    kernel, recurrent, bias = layer.get_weights()
    names = ("input.weight", "recurrent.weight", "input.bias", "recurrent.bias")
    weights = {f"model.layers.0.{name}": v for name, v in zip(names, (kernel.T, recurrent.T, *bias), strict=True)}

    ours = gru._layer(weights, 0, tf.constant(x), tf.zeros((2, 8)))

    np.testing.assert_allclose(ours, theirs, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("chunks", [[1], [4], [3, 2], [1, 1, 4]])
@pytest.mark.parametrize("pad", [0, 5])
def test_chunks_and_steps_equal_the_whole_forward(chunks: list[int], pad: int) -> None:
    weights = random_weights(CONFIG.shapes)
    cache, slot = gru.init_cache(CONFIG, NUM_SLOTS, 32), 1
    logits, start = [], 0
    for size in chunks:
        logits.append(prefill(weights, cache, TOKENS[start : start + size], slot, start, pad))
        start += size
    for position in range(start, len(TOKENS)):
        logits.append(decode(weights, cache, {slot: (TOKENS[position], position)})[slot])

    ends = [*np.cumsum(chunks) - 1, *range(start, len(TOKENS))]
    np.testing.assert_allclose(np.stack(logits), loop(weights, TOKENS)[ends], atol=TOLERANCE, rtol=0)


def test_a_prompt_between_two_chunks_is_not_harmed_by_the_others_steps() -> None:
    weights = random_weights(CONFIG.shapes)
    cache = gru.init_cache(CONFIG, NUM_SLOTS, 32)
    prefill(weights, cache, TOKENS[:3], slot=2, start=0, pad=0)
    prefill(weights, cache, [4], slot=0, start=0, pad=0)
    for position in range(1, 4):
        decode(weights, cache, {0: (11, position)}, idle=3)  # slot 2 waits where its prompt goes on

    logits = prefill(weights, cache, TOKENS[3:], slot=2, start=3, pad=0)

    np.testing.assert_allclose(logits, loop(weights, TOKENS)[-1], atol=TOLERANCE, rtol=0)


def test_next_sequence_of_a_slot_begins_from_nothing() -> None:
    weights = random_weights(CONFIG.shapes)
    cache = gru.init_cache(CONFIG, NUM_SLOTS, 32)
    prefill(weights, cache, [30, 31, 32], slot=1, start=0, pad=0)

    prefilled = prefill(weights, cache, TOKENS[:2], slot=1, start=0, pad=0)
    decoded = decode(weights, cache, {1: (TOKENS[0], 0)})[1]

    np.testing.assert_allclose(prefilled, loop(weights, TOKENS)[1], atol=TOLERANCE, rtol=0)
    np.testing.assert_allclose(decoded, loop(weights, TOKENS)[0], atol=TOLERANCE, rtol=0)


def test_a_row_is_the_same_bit_for_bit_whatever_the_others_hold() -> None:
    weights = random_weights(CONFIG.shapes)
    step = tf.function(
        lambda cache, ids, positions: gru.decode(CONFIG, weights, cache, ids, positions, 32), jit_compile=True
    )
    alone, together = (gru.init_cache(CONFIG, NUM_SLOTS, 32) for _ in range(2))
    prefill(weights, together, [1, 2, 3], slot=0, start=0, pad=0)
    for position, token in enumerate(TOKENS):
        one = step(alone, tf.constant([0, token, 0]), tf.constant([0, position, 0]))[1]
        among = step(together, tf.constant([8, token, 5]), tf.constant([3 + position, position, position]))[1]

        assert one.numpy().tobytes() == among.numpy().tobytes()


def test_config_survives_its_written_form() -> None:
    assert GruConfig.from_hf(CONFIG.to_hf()) == CONFIG


def test_missing_field_is_named() -> None:
    raw = {name: value for name, value in CONFIG.to_hf().items() if name != "embedding_size"}

    with pytest.raises(ModelFormatError, match="embedding_size"):
        GruConfig.from_hf(raw)
