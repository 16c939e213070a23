import numpy as np
import pytest
import tensorflow as tf

from app.engine.encoder_runner import EncoderRunner
from app.modeling import encoder
from tests.modeling.checkpoints import encoder_config, random_weights

CONFIG = encoder_config()
WEIGHTS = random_weights(CONFIG.shapes)
TEXTS = [(5,), (9, 8, 7), tuple(range(1, 33)), (4,) * 17]


@pytest.fixture(scope="module")
def runner() -> EncoderRunner:
    runner = EncoderRunner(CONFIG, WEIGHTS)
    runner.warm_up()
    return runner


def test_scores_are_the_softmax_of_each_text_alone(runner: EncoderRunner) -> None:
    weights = {name: tf.constant(array) for name, array in WEIGHTS.items()}
    rows = runner.encode(TEXTS).rows
    for text, row in zip(TEXTS, rows, strict=True):
        logits = encoder.classify(CONFIG, weights, tf.constant([text]), tf.constant([len(text)]))
        assert row == pytest.approx(tf.nn.softmax(logits)[0].numpy().tolist(), abs=1e-5)
        assert sum(row) == pytest.approx(1, abs=1e-5)
    assert len({np.round(row[0], 4) for row in rows}) > 1


def test_nothing_is_compiled_after_warm_up(runner: EncoderRunner) -> None:
    for count in (1, 2, 4):
        runner.encode(TEXTS[:count])
    assert runner.compilations == 0
