"""Every layout against the outputs that an independent library computed of the same files."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from app.modeling import checkpoint, decoder
from app.modeling.decoder_config import DecoderConfig

FIXTURES = Path(__file__).parent / "fixtures"
DECODERS = ("gpt2", "llama", "llama-linear", "llama-scaled", "mistral", "qwen2-bfloat16", "qwen3-sharded")
# Logits reach 5, where neighbouring float32 numbers lie 5e-7 apart; two orders of summation
# over two layers differ by up to 1.4e-5. A wrong option shows as 1e-2 or more.
TOLERANCE = 2e-5
CHUNK = 9
NUM_SLOTS, SLOT = 3, 1


def load(name: str) -> tuple[DecoderConfig, dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Sizes, weights, tokens `[T]` and expected logits `[T, V]`."""
    model, expected = checkpoint.load(FIXTURES / name), np.load(FIXTURES / name / "expected.npz")
    assert isinstance(model.config, DecoderConfig)
    return model.config, model.weights, expected["tokens"], expected["logits"]


@pytest.mark.parametrize("name", DECODERS)
def test_forward_agrees_with_the_independent_logits(name: str) -> None:
    config, weights, tokens, expected = load(name)

    logits = decoder.forward(config, weights, tf.constant([tokens]))[0]

    np.testing.assert_allclose(logits, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", DECODERS)
def test_two_chunks_and_decoding_through_the_cache_agree_too(name: str) -> None:
    config, weights, tokens, expected = load(name)
    cache = decoder.init_cache(config, (NUM_SLOTS,), (config.context_length,))
    logits = []
    for start in (0, CHUNK):
        chunk = tf.constant([tokens[start : start + CHUNK]])
        place = (tf.constant([SLOT]), tf.constant([start]), tf.constant([CHUNK]))
        states = decoder.prefill(config, weights, cache, chunk, *place, config.context_length)
        logits.append(decoder.head(config, weights, states[:, -1:])[:, 0])
    for position in range(2 * CHUNK, len(tokens)):
        ids, positions = np.full(NUM_SLOTS, 3, np.int32), np.zeros(NUM_SLOTS, np.int32)
        ids[SLOT], positions[SLOT] = tokens[position], position
        step = decoder.decode(config, weights, cache, tf.constant(ids), tf.constant(positions), config.context_length)
        logits.append(step[:, SLOT])

    ends = [CHUNK - 1, *range(2 * CHUNK - 1, len(tokens))]
    np.testing.assert_allclose(np.stack(logits), expected[ends], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", DECODERS)
def test_the_compiled_graph_agrees_too(name: str) -> None:
    config, weights, tokens, expected = load(name)
    compiled = tf.function(lambda ids: decoder.forward(config, weights, ids), jit_compile=True)

    np.testing.assert_allclose(compiled(tf.constant([tokens]))[0], expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(("name", "dtype"), [("qwen2-bfloat16", "bfloat16"), ("qwen3-sharded", "float32")])
def test_precision_of_the_files_is_kept_beside_float32_weights(name: str, dtype: str) -> None:
    model = checkpoint.load(FIXTURES / name)

    assert model.stored_dtype == dtype
    assert {array.dtype for array in model.weights.values()} == {np.dtype(np.float32)}
