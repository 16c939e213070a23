from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from app.errors import ModelFormatError
from app.modeling import gru
from app.modeling.cache import Cache
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


def prefill(weights: dict[str, Any], cache: Cache, tokens: list[int], slot: int, start: int, pad: int) -> tf.Tensor:
    """Logits `[V]` after the last real token."""
    padded = tf.constant([tokens + [7] * pad])
    place = (tf.constant([slot]), tf.constant([start]), tf.constant([len(tokens)]))
    states = gru.prefill(CONFIG, weights, cache, padded, *place, context=32)
    assert states.shape == (CONFIG.hidden_size, len(tokens) + pad)
    return gru.head(CONFIG, weights, states)[:, len(tokens) - 1]


def decode(weights: dict[str, Any], cache: Cache, rows: dict[int, tuple[int, int]], idle: int = 0) -> np.ndarray:
    """One step; `rows` maps a slot to its token and position, the others idle at `idle`."""
    tokens, positions = np.full(NUM_SLOTS, 9, np.int32), np.full(NUM_SLOTS, idle, np.int32)
    for slot, (token, position) in rows.items():
        tokens[slot], positions[slot] = token, position
    logits = gru.decode(CONFIG, weights, cache, tf.constant(tokens), tf.constant(positions), context=32)
    return np.asarray(logits).T


def compiled_decode(weights: dict[str, Any], cache: Cache) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    step: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] = tf.function(
        lambda tokens, positions: gru.decode(CONFIG, weights, cache, tokens, positions, 32),
        jit_compile=True,
        autograph=False,
    )
    return step


def test_forward_agrees_with_a_plain_loop() -> None:
    weights = random_weights(CONFIG.shapes)
    rows = [TOKENS, TOKENS[::-1]]

    logits = gru.forward(CONFIG, weights, tf.constant(rows))

    np.testing.assert_allclose(logits, [loop(weights, row) for row in rows], atol=TOLERANCE, rtol=0)


def test_a_layer_is_the_gru_of_keras() -> None:
    layer = keras.layers.GRU(8, reset_after=True, return_sequences=True, bias_initializer="random_normal", seed=1)
    x = np.random.default_rng(2).normal(size=(2, 7, 6)).astype(np.float32)
    theirs = layer(x)
    kernel, recurrent, bias = layer.get_weights()
    names = ("input.weight", "recurrent.weight", "input.bias", "recurrent.bias")
    weights = {f"model.layers.0.{name}": v for name, v in zip(names, (kernel.T, recurrent.T, *bias), strict=True)}

    columns = gru._layer(weights, 0, tf.constant(x.reshape(-1, 6).T), tf.zeros((8, 2)))

    np.testing.assert_allclose(tf.transpose(columns), np.reshape(theirs, (-1, 8)), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("chunks", [[1], [4], [3, 2], [1, 1, 4]])
@pytest.mark.parametrize("pad", [0, 5])
def test_chunks_and_steps_equal_the_whole_forward(chunks: list[int], pad: int) -> None:
    weights = random_weights(CONFIG.shapes)
    cache, slot = gru.init_cache(CONFIG, (NUM_SLOTS,), (32,)), 1
    logits, start = [], 0
    for size in chunks:
        logits.append(prefill(weights, cache, TOKENS[start : start + size], slot, start, pad))
        start += size
    steps = range(start, len(TOKENS))
    logits.extend(decode(weights, cache, {slot: (TOKENS[position], position)})[slot] for position in steps)

    ends = [*np.cumsum(chunks) - 1, *steps]
    np.testing.assert_allclose(np.stack(logits), loop(weights, TOKENS)[ends], atol=TOLERANCE, rtol=0)


def test_padded_chunk_has_the_states_of_the_forward_under_xla_too() -> None:
    weights = random_weights(CONFIG.shapes)
    cache = gru.init_cache(CONFIG, (NUM_SLOTS,), (32,))

    def logits(tokens: tf.Tensor, start: tf.Tensor, length: tf.Tensor) -> tf.Tensor:
        place = (tf.constant([2]), start[tf.newaxis], length[tf.newaxis])
        states = gru.prefill(CONFIG, weights, cache, tokens[tf.newaxis], *place, context=32)
        return tf.transpose(gru.head(CONFIG, weights, states))

    chunk = tf.function(logits, jit_compile=True, autograph=False)
    first = chunk(tf.constant([*TOKENS[:3], 7, 7, 7]), tf.constant(0), tf.constant(3))[:3]
    second = chunk(tf.constant(TOKENS[3:]), tf.constant(3), tf.constant(6))

    np.testing.assert_allclose(np.concatenate([first, second]), loop(weights, TOKENS), atol=TOLERANCE, rtol=0)
    assert chunk.experimental_get_tracing_count() == 1


def test_step_of_the_first_slots_leaves_the_others_alone() -> None:
    weights = random_weights(CONFIG.shapes)
    cache = gru.init_cache(CONFIG, (NUM_SLOTS,), (32,))
    prefill(weights, cache, TOKENS[:4], slot=0, start=0, pad=0)
    prefill(weights, cache, TOKENS[:4], slot=2, start=0, pad=1)
    before = gru._states(cache)[2].numpy()

    logits = gru.decode(CONFIG, weights, cache, tf.constant([TOKENS[4], 1]), tf.constant([4, 0]), context=32)

    assert logits.shape == (CONFIG.vocab_size, 2)
    np.testing.assert_allclose(logits[:, 0], loop(weights, TOKENS)[4], atol=TOLERANCE, rtol=0)
    np.testing.assert_array_equal(gru._states(cache)[2], before)


def test_step_may_be_repeated() -> None:
    weights = random_weights(CONFIG.shapes)
    cache = gru.init_cache(CONFIG, (NUM_SLOTS,), (32,))
    prefill(weights, cache, TOKENS[:3], slot=1, start=0, pad=0)

    once, twice = (decode(weights, cache, {1: (TOKENS[3], 3)})[1] for _ in range(2))

    np.testing.assert_array_equal(once, twice)


def test_states_may_be_kept_in_half_the_width() -> None:
    weights = random_weights(CONFIG.shapes)
    cache = gru.init_cache(CONFIG, (NUM_SLOTS,), (32,), tf.bfloat16)
    prefill(weights, cache, TOKENS[:3], slot=1, start=0, pad=0)

    logits = decode(weights, cache, {1: (TOKENS[3], 3)})[1]

    assert cache.nbytes == 2 * CONFIG.num_layers * NUM_SLOTS * CONFIG.hidden_size * 2
    # A state is rounded to 8 bits once.
    np.testing.assert_allclose(logits, loop(weights, TOKENS)[3], atol=2e-2, rtol=0)


def test_a_prompt_between_two_chunks_is_not_harmed_by_the_others_steps() -> None:
    weights = random_weights(CONFIG.shapes)
    cache = gru.init_cache(CONFIG, (NUM_SLOTS,), (32,))
    prefill(weights, cache, TOKENS[:3], slot=2, start=0, pad=0)
    prefill(weights, cache, [4], slot=0, start=0, pad=0)
    for position in range(1, 4):
        decode(weights, cache, {0: (11, position)}, idle=3)  # slot 2 waits where its prompt goes on

    logits = prefill(weights, cache, TOKENS[3:], slot=2, start=3, pad=0)

    np.testing.assert_allclose(logits, loop(weights, TOKENS)[-1], atol=TOLERANCE, rtol=0)


def test_next_sequence_of_a_slot_begins_from_nothing() -> None:
    weights = random_weights(CONFIG.shapes)
    cache = gru.init_cache(CONFIG, (NUM_SLOTS,), (32,))
    prefill(weights, cache, [30, 31, 32], slot=1, start=0, pad=0)

    prefilled = prefill(weights, cache, TOKENS[:2], slot=1, start=0, pad=0)
    decoded = decode(weights, cache, {1: (TOKENS[0], 0)})[1]

    np.testing.assert_allclose(prefilled, loop(weights, TOKENS)[1], atol=TOLERANCE, rtol=0)
    np.testing.assert_allclose(decoded, loop(weights, TOKENS)[0], atol=TOLERANCE, rtol=0)


def test_a_row_is_the_same_bit_for_bit_whatever_the_others_hold() -> None:
    weights = random_weights(CONFIG.shapes)
    alone, together = (gru.init_cache(CONFIG, (NUM_SLOTS,), (32,)) for _ in range(2))
    step_alone, step_together = compiled_decode(weights, alone), compiled_decode(weights, together)
    prefill(weights, together, [1, 2, 3], slot=0, start=0, pad=0)
    for position, token in enumerate(TOKENS):
        one = step_alone(tf.constant([0, token, 0]), tf.constant([0, position, 0]))[:, 1]
        among = step_together(tf.constant([8, token, 5]), tf.constant([3 + position, position, position]))[:, 1]

        assert one.numpy().tobytes() == among.numpy().tobytes()


def test_config_survives_its_written_form() -> None:
    assert GruConfig.from_hf(CONFIG.to_hf()) == CONFIG


def test_missing_field_is_named() -> None:
    raw = {name: value for name, value in CONFIG.to_hf().items() if name != "embedding_size"}

    with pytest.raises(ModelFormatError, match="no field 'embedding_size'"):
        GruConfig.from_hf(raw)


@pytest.mark.parametrize("size", [0, -3, 1.5, "wide"])
def test_field_that_is_no_size_is_named(size: object) -> None:
    with pytest.raises(ModelFormatError, match=r"num_hidden_layers .* is not a positive integer"):
        GruConfig.from_hf(CONFIG.to_hf() | {"num_hidden_layers": size})
