"""A text classifier on a TensorFlow device.

One plain TensorFlow graph serves every batch: an encoder of a few layers gains
nothing from XLA on a CPU, and a grid of compiled shapes would cost seconds of
start-up. Lengths are still padded to a few buckets, so that buffers are reused.

Letters: `B` texts, `T` tokens, `L` labels.
"""

import time
from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from app.engine.device import losses_translated
from app.engine.runner import Vectors
from app.modeling import encoder
from app.modeling.encoder import PAD_ID, EncoderConfig

LENGTH_BUCKETS = (16, 32, 64, 128, 256, 512)
MAX_BATCH = 32


class EncoderRunner:
    """Runs the batches of one classification model.

    Args:
        config: sizes.
        weights: arrays by name, float32.
    """

    def __init__(self, config: EncoderConfig, weights: Mapping[str, np.ndarray]) -> None:
        self.max_length = config.context_length
        self.vocab_size = config.vocab_size
        self.max_batch = MAX_BATCH
        self._config = config
        self._weights = {name: tf.constant(array) for name, array in weights.items()}
        signature = [tf.TensorSpec((None, None), tf.int32), tf.TensorSpec((None,), tf.int32)]
        self._scores = tf.function(self._graph, input_signature=signature, autograph=False)
        self._scores.get_concrete_function()
        self._traces_at_warm_up = 0

    @property
    def compilations(self) -> int:
        """Functions traced since `warm_up` ended."""
        traces: int = self._scores.experimental_get_tracing_count()
        return traces - self._traces_at_warm_up

    def warm_up(self) -> None:
        """Run once all that `classify` may need."""
        self.encode([(PAD_ID,)])
        self._traces_at_warm_up = self.compilations

    def encode(self, texts: list[tuple[int, ...]]) -> Vectors:
        """Score at most `max_batch` texts of 1 to `max_length` tokens."""
        started = time.perf_counter()
        lengths = np.array([len(text) for text in texts], np.int32)
        tokens = np.full((len(texts), self._bucket(int(lengths.max()))), PAD_ID, np.int32)  # [B, T]
        for row, text in enumerate(texts):
            tokens[row, : len(text)] = text
        with losses_translated():
            scores = self._scores(tokens, lengths).numpy()  # [B, L]
        return Vectors(tuple(map(tuple, scores.tolist())), time.perf_counter() - started)

    def _bucket(self, length: int) -> int:
        return next((bucket for bucket in LENGTH_BUCKETS if bucket >= length), length)

    def _graph(self, tokens: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
        return tf.nn.softmax(encoder.classify(self._config, self._weights, tokens, lengths))
