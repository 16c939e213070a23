import json
from functools import partial
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from app.errors import ModelFormatError
from app.modeling import checkpoint, decoder
from app.modeling.decoder_config import DecoderConfig
from tests.modeling import reference
from tests.modeling.checkpoints import decoder_config, random_weights
from tests.oracles import oracle

# Logits of the random models spread over about 10, so this is float32's own noise.
TOLERANCE = 2e-4


def run_cached(
    config: DecoderConfig, weights: dict[str, Any], tokens: list[int], chunks: list[int], slot: int
) -> np.ndarray:
    """Logits after every chunk's end and every token decoded after the chunks."""
    cache = decoder.init_cache(config, slots=(3,), positions=(64,))
    collected, start = [], 0
    for size in chunks:
        padded = tokens[start : start + size] + [7] * (16 - size)
        place = (tf.constant([slot]), tf.constant([start]), tf.constant([size]))
        states = decoder.prefill(config, weights, cache, tf.constant([padded]), *place, context=64)
        collected.append(decoder.head(config, weights, states[:, size - 1 : size])[:, 0])
        start += size
    for position in range(start, len(tokens)):
        ids, positions = np.full(3, 5, np.int32), np.full(3, 60, np.int32)
        ids[slot], positions[slot] = tokens[position], position
        step = decoder.decode(config, weights, cache, tf.constant(ids), tf.constant(positions), context=64)
        collected.append(step[:, slot])
    return np.stack(collected)


@pytest.mark.parametrize("tied", [True, False])
def test_forward_agrees_with_a_reference_in_float64(tied: bool) -> None:
    config = decoder_config(tied=tied)
    weights = random_weights(config.shapes)
    tokens = [0, 17, 250, 3, 99, 4, 4]

    ours = decoder.forward(config, weights, tf.constant([tokens]))[0].numpy()

    np.testing.assert_allclose(ours, reference.logits(config.to_hf(), weights, tokens), atol=TOLERANCE)


@pytest.mark.parametrize("slot", [0, 2])
@pytest.mark.parametrize("chunks", [[5], [3, 9], [16, 1]])
def test_cached_steps_equal_the_whole_forward(chunks: list[int], slot: int) -> None:
    config = decoder_config()
    weights = random_weights(config.shapes)
    tokens = [int(t) for t in np.random.default_rng(1).integers(0, 300, 24)]
    whole = decoder.forward(config, weights, tf.constant([tokens]))[0].numpy()
    ends = [*np.cumsum(chunks) - 1, *range(sum(chunks), len(tokens))]

    cached = run_cached(config, weights, tokens, chunks, slot)

    np.testing.assert_allclose(cached, whole[ends], atol=TOLERANCE)


def test_a_row_is_the_same_bit_for_bit_however_its_cache_is_cut() -> None:
    config = decoder_config(context_length=96)
    weights = {name: tf.constant(array) for name, array in random_weights(config.shapes).items()}
    prompt = tf.constant([np.random.default_rng(1).integers(0, 300, 40)], tf.int32)

    def answer(slots: tuple[int, ...], positions: tuple[int, ...], num_rows: int, context: int) -> bytes:
        lanes, cache = decoder.init_cache(config, (1,), positions), decoder.init_cache(config, slots, positions)
        zero = tf.constant([0])
        read = partial(decoder.prefill, config, weights, lanes, prompt, zero, zero, zero + 40, context)
        step = tf.function(
            lambda tokens, places: decoder.decode(config, weights, cache, tokens, places, context, num_columns=4),
            jit_compile=True,
        )
        states = tf.function(read, jit_compile=True)()
        for theirs, ours in zip(lanes.groups[0].blocks, cache.groups[0].blocks, strict=True):
            for source, target in zip(theirs.variables, ours.variables, strict=True):
                target.scatter_update(tf.IndexedSlices(source.value(), [0]))
        logits = step(tf.constant([9, 8, 7, 6][:num_rows]), tf.constant([40, 3, 50, 63][:num_rows])).numpy()
        both: bytes = states.numpy().tobytes() + logits[:, 0].tobytes()
        return both

    alone = answer((1, 4), (32, 64, 96), num_rows=1, context=64)
    assert answer((1, 4), (32, 64, 96), num_rows=4, context=64) == alone
    assert answer((4,), (32, 64, 96), num_rows=2, context=96) == alone


def test_dropout_reaches_every_layer() -> None:
    config = decoder_config()
    calls = []

    def dropout(x: tf.Tensor) -> tf.Tensor:
        calls.append(x.shape)
        return x

    decoder.forward(config, random_weights(config.shapes), tf.constant([[1, 2, 3]]), dropout)

    assert calls == [(32, 3)] * (1 + 2 * config.num_layers)


def test_real_checkpoint_matches_its_published_logits() -> None:
    directory = oracle("stories260K")
    model = checkpoint.load(directory)
    assert isinstance(model.config, DecoderConfig)
    published = np.load(directory / "reference_logits_f32.npz")
    tokens = json.loads((directory / "reference_greedy.json").read_text())["tokens"]

    ours = decoder.forward(model.config, model.weights, tf.constant([tokens[:200]]))[0].numpy()

    np.testing.assert_allclose(ours, published["logits"], atol=1e-3)
    assert ours.argmax(axis=-1).tolist() == tokens[1:]


def test_config_survives_the_hugging_face_form() -> None:
    config = decoder_config(tied=False)

    assert DecoderConfig.from_hf(config.to_hf()) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "rope_scaling"),
        ({"hidden_size": None}, "hidden_size"),
    ],
)
def test_layout_that_is_not_supported_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    raw = {name: value for name, value in (decoder_config().to_hf() | change).items() if value is not None}

    with pytest.raises(ModelFormatError, match=message):
        DecoderConfig.from_hf(raw)


def test_end_tokens_may_be_several() -> None:
    raw = decoder_config().to_hf() | {"eos_token_id": [0, 9]}

    assert DecoderConfig.from_hf(raw).eos_token_ids == (0, 9)
