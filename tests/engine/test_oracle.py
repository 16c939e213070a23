"""A real pretrained checkpoint, held against what its authors publish and an independent reference computed."""

import json

import numpy as np
import pytest
import tensorflow as tf

from app.engine.model_runner import DecoderRunner
from app.engine.sequence import Request
from app.modeling import checkpoint, decoder
from app.modeling.decoder_config import DecoderConfig
from app.modeling.tokenizer import Tokenizer
from tests.engine.test_model_runner import complete, ids
from tests.oracles import oracle

STEPS = 200


def test_greedy_tokens_and_text_of_the_published_checkpoint() -> None:
    folder = oracle("stories260K")
    loaded = checkpoint.load(folder)
    assert isinstance(loaded.config, DecoderConfig)
    runner = DecoderRunner(loaded.config, loaded.weights, num_slots=3)
    runner.warm_up()
    asked = Request("r", (1,), STEPS)
    reference = json.loads((folder / "reference_greedy.json").read_text())["tokens"]
    for sequence in complete(runner, asked, Request("m", (5, 6, 7), 90), asked):
        if sequence.request is asked:
            assert [1, *ids(sequence)] == reference[: STEPS + 1]
    text = Tokenizer.load(folder).decode(reference[1 : STEPS + 1])
    published = (folder / "expected_greedy_200.txt").read_text()
    assert text.strip() == published.strip()


def test_logits_of_the_published_checkpoint() -> None:
    folder = oracle("stories260K")
    loaded = checkpoint.load(folder)
    assert isinstance(loaded.config, DecoderConfig)
    weights = {name: tf.constant(array) for name, array in loaded.weights.items()}
    reference = np.load(folder / "reference_logits_f32.npz")
    tokens = tf.constant(reference["tokens"][np.newaxis, :STEPS], tf.int32)
    cache = decoder.init_cache(loaded.config, (1,), (STEPS,))
    zero = tf.constant([0])
    states = decoder.prefill(loaded.config, weights, cache, tokens, zero, zero, tf.constant([STEPS]), STEPS)
    cached = tf.transpose(decoder.head(loaded.config, weights, states)).numpy()
    assert cached == pytest.approx(reference["logits"], abs=2e-4)
