"""Encoders on a TensorFlow device: a batch of texts of one padded length in, a row of numbers each out.

BERT's family is compiled by XLA, one function for each shape of the grid; a batch
that fills no shape is padded with rows that nobody reads. The convolutional
classifier gains nothing from that on a CPU: one plain graph serves any number of
texts, and only lengths are padded, to the same buckets.

Letters: `B` texts, `T` tokens, `L` labels, `D` width of an embedding.
"""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import tensorflow as tf

from app.engine import grid
from app.engine.device import align_function_numbers, losses_translated
from app.engine.runner import Vectors
from app.modeling import bert, encoder
from app.modeling.bert_config import BertConfig
from app.modeling.encoder import EncoderConfig

COMPILE_THREADS = 4
FILLING = 0  # a token that every vocabulary has; what it becomes is never read

Graph = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


class EncoderRunner:
    """Runs the batches of one classification or embedding model.

    Args:
        config: sizes.
        weights: arrays by name, float32.
    """

    def __init__(self, config: EncoderConfig | BertConfig, weights: Mapping[str, np.ndarray]) -> None:
        self.max_length = config.context_length
        self.vocab_size = config.vocab_size
        self._buckets = grid.length_buckets(config.context_length)
        is_bert = isinstance(config, BertConfig)
        if isinstance(config, BertConfig):
            weights = bert.prepare(config, weights)
        self._weights = {name: tf.constant(array) for name, array in weights.items()}
        graph = _graph(config, self._weights)
        self._any = None if is_bert else _function(graph, None, None)
        self._fixed: dict[tuple[int, int], Any] = {}
        if is_bert:
            shapes = [(size, length) for length in self._buckets for size in grid.batch_sizes(length)]
            self._fixed = {shape: _function(graph, *shape, jit_compile=True) for shape in shapes}
        self._traces_at_warm_up = 0
        for function in self._functions:
            align_function_numbers()
            function.get_concrete_function()

    @property
    def compilations(self) -> int:
        """Functions traced since `warm_up` ended."""
        return self._num_traces - self._traces_at_warm_up

    def bucket(self, length: int) -> int:
        """The padded length of a text."""
        return next(bucket for bucket in self._buckets if bucket >= length)

    def num_to_take(self, bucket: int, num_waiting: int) -> int:
        """How many of the waiting texts of one bucket go together."""
        if self._any is not None:
            return min(num_waiting, grid.MAX_BATCH)
        return grid.num_to_take(num_waiting, grid.batch_sizes(bucket))

    def warm_up(self) -> None:
        """Compile the whole grid."""
        if self._any is not None:
            self.encode([(FILLING,)])
        with ThreadPoolExecutor(COMPILE_THREADS, "compile") as threads:
            for _ in threads.map(self._try, self._fixed):
                pass
        self._traces_at_warm_up = self._num_traces

    def encode(self, texts: list[tuple[int, ...]]) -> Vectors:
        """Read texts of one bucket, as many as `num_to_take` said."""
        started = time.perf_counter()
        length = self.bucket(max(map(len, texts)))
        if self._any is not None:
            function, num_rows = self._any, len(texts)
        else:
            num_rows = next(size for size in grid.batch_sizes(length) if size >= len(texts))
            function = self._fixed[num_rows, length]
        tokens = np.full((num_rows, length), FILLING, np.int32)  # [B, T]
        lengths = np.ones(num_rows, np.int32)
        for row, text in enumerate(texts):
            tokens[row, : len(text)] = text
            lengths[row] = len(text)
        with losses_translated():
            rows = function(tokens, lengths).numpy()[: len(texts)]  # [B, L] or [B, D]
        return Vectors(tuple(map(tuple, rows.tolist())), time.perf_counter() - started)

    @property
    def _functions(self) -> tuple[Any, ...]:
        return tuple(self._fixed.values()) if self._any is None else (self._any,)

    @property
    def _num_traces(self) -> int:
        return sum(function.experimental_get_tracing_count() for function in self._functions)

    def _try(self, shape: tuple[int, int]) -> None:
        num_rows, length = shape
        self._fixed[shape](np.full((num_rows, length), FILLING, np.int32), np.ones(num_rows, np.int32))


def _graph(config: EncoderConfig | BertConfig, weights: Mapping[str, tf.Tensor]) -> Graph:
    if isinstance(config, EncoderConfig):
        return partial(encoder.scores, config, weights)
    return partial(bert.embed if config.pooling else bert.scores, config, weights)


def _function(graph: Graph, num_rows: int | None, length: int | None, *, jit_compile: bool = False) -> Any:  # noqa: ANN401 - TensorFlow exports no type for it
    signature = [tf.TensorSpec((num_rows, length), tf.int32), tf.TensorSpec((num_rows,), tf.int32)]
    return tf.function(graph, input_signature=signature, autograph=False, jit_compile=jit_compile)
