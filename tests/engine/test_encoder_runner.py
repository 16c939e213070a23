import numpy as np
import pytest
import tensorflow as tf

from app.engine import grid
from app.engine.encoder_runner import EncoderRunner
from app.modeling import encoder
from app.modeling.bert_config import BertConfig
from tests.modeling.checkpoints import bert_config, encoder_config, random_weights

CONFIG = encoder_config()
WEIGHTS = random_weights(CONFIG.shapes)
BERT = bert_config()
MEAN = bert_config(pooling="mean")
LENGTHS = (1, 3, 16, 17, 30, 32, 33, 40)


def texts_of(count: int, length: int) -> list[tuple[int, ...]]:
    """Different texts, the longest of ``length``."""
    rng = np.random.default_rng(length)
    lengths = [length, *rng.integers(max(1, length - 3), length + 1, count - 1)]
    return [tuple(int(token) for token in rng.integers(1, 300, size)) for size in lengths]


@pytest.fixture(scope="module", params=["cnn", "bert", "mean"])
def runner(request: pytest.FixtureRequest) -> EncoderRunner:
    configs: dict[str, BertConfig | encoder.EncoderConfig] = {"cnn": CONFIG, "bert": BERT, "mean": MEAN}
    config = configs[request.param]
    runner = EncoderRunner(config, random_weights(config.shapes))
    runner.warm_up()
    return runner


def same_bucket(runner: EncoderRunner, texts: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    bucket = runner.bucket(len(texts[0]))
    return [text for text in texts if runner.bucket(len(text)) == bucket]


def test_scores_are_the_softmax_of_each_text_alone() -> None:
    texts = [(5,), (9, 8, 7), tuple(range(1, 33)), (4,) * 17]
    weights = {name: tf.constant(array) for name, array in WEIGHTS.items()}
    rows = EncoderRunner(CONFIG, WEIGHTS).encode(texts).rows
    for text, row in zip(texts, rows, strict=True):
        logits = encoder.classify(CONFIG, weights, tf.constant([text]), tf.constant([len(text)]))
        assert row == pytest.approx(tf.nn.softmax(logits)[0].numpy().tolist(), abs=1e-5)
        assert sum(row) == pytest.approx(1, abs=1e-5)
    assert len({np.round(row[0], 4) for row in rows}) > 1


@pytest.mark.parametrize("length", [1, 10, 16, 25, 32, 40])
def test_bits_of_a_text_are_the_same_alone_and_in_every_batch(runner: EncoderRunner, length: int) -> None:
    texts = same_bucket(runner, texts_of(grid.MAX_BATCH, min(length, runner.max_length)))
    alone = [runner.encode([text]).rows[0] for text in texts]
    for size in (2, 3, 4, 7, 8, 16, len(texts)):
        assert list(runner.encode(texts[:size]).rows) == alone[:size]
    assert len(set(alone)) > 1 or len(texts) == 1


def test_nothing_is_compiled_after_warm_up(runner: EncoderRunner) -> None:
    for length in LENGTHS:
        if length <= runner.max_length:
            texts = same_bucket(runner, texts_of(grid.MAX_BATCH, length))
            for count in range(1, len(texts) + 1):
                runner.encode(texts[: runner.num_to_take(runner.bucket(length), count)])
    assert runner.compilations == 0
