"""The prefix cache's device half: copies of keys and values, by blocks of tokens.

Which block lies where is `prefixes.py`'s affair. Copies, not shared pages: what runs
against a lane (`lanes.py`) stays as simple as without a cache, and a copy reads no
weights. Plain graphs of dynamic length, traced in the constructor; nothing is compiled,
but a first call takes long, and `warm_up` makes it.

Letters: `P` places, `K` blocks of one copy, `G` key/value heads, `T` tokens of a
block, `H` head size.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from app.modeling.cache import Cache


class BlockPool:
    """Room for blocks of keys and values, and the copies from and to lanes.

    Args:
        lanes: where prompts are read, in one group.
        num_blocks: `P`, at least 1.
        block_tokens: `T`.
    """

    def __init__(self, lanes: Cache, num_blocks: int, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        [self._lanes] = lanes.groups
        self._pools = [_pool(variable, num_blocks, block_tokens) for variable in self._lanes.blocks[0].variables]
        self._restore = _function(self._restore_graph, 0, 1)
        self._keep = _function(self._keep_graph, 0, 0, 1)

    @property
    def num_traces(self) -> int:
        """How often a graph was made."""
        return sum(function.experimental_get_tracing_count() for function in (self._restore, self._keep))

    def warm_up(self) -> None:
        """Make each copy once, while nobody needs what lies there."""
        self.keep(0, 0, (0,))
        self.restore(0, (0,))

    def restore(self, lane: int, places: tuple[int, ...]) -> None:
        """Copy blocks to the beginning of a lane, in order."""
        self._restore(np.int32(lane), np.array(places, np.int32))

    def keep(self, lane: int, first: int, places: tuple[int, ...]) -> None:
        """Copy a lane's blocks from number `first` on to these places."""
        self._keep(np.int32(lane), np.int32(first), np.array(places, np.int32))

    def _restore_graph(self, lane: tf.Tensor, places: tf.Tensor) -> None:
        end = tf.size(places) * self._block_tokens
        for i, pool in enumerate(self._pools):
            blocks = tf.transpose(tf.gather(pool, places), (1, 0, 2, 3))  # [G, K, T, H]
            flat = tf.reshape(blocks, (pool.shape[1], -1, pool.shape[3]))
            for piece in self._lanes.blocks:
                count = _within(end, piece.positions)
                start = piece.positions.start
                piece.variables[i][lane, :, :count].assign(flat[:, start : start + count])

    def _keep_graph(self, lane: tf.Tensor, first: tf.Tensor, places: tf.Tensor) -> None:
        start = first * self._block_tokens
        end = start + tf.size(places) * self._block_tokens
        for i, pool in enumerate(self._pools):
            pieces = [
                piece.variables[i][lane, :, _within(start, piece.positions) : _within(end, piece.positions)]
                for piece in self._lanes.blocks
            ]
            flat = tf.concat(pieces, axis=1)  # [G, K * T, H]
            blocks = tf.reshape(flat, (pool.shape[1], -1, self._block_tokens, pool.shape[3]))
            pool.scatter_update(tf.IndexedSlices(tf.transpose(blocks, (1, 0, 2, 3)), places))


def block_bytes(cache: Cache, block_tokens: int) -> int:
    """Device memory of one block of all layers."""
    return cache.nbytes // (cache.num_slots * cache.context_length) * block_tokens


def _pool(lanes: tf.Variable, num_blocks: int, block_tokens: int) -> tf.Variable:
    """A variable `[P, G, T, H]` for what one of the lanes' variables `[B, G, some positions, H]` holds."""
    return tf.Variable(tf.zeros((num_blocks, lanes.shape[1], block_tokens, lanes.shape[3]), lanes.dtype))


def _within(position: tf.Tensor, positions: range) -> tf.Tensor:
    """How many of these lie before a position."""
    return tf.clip_by_value(position - positions.start, 0, len(positions))


def _function(graph: Callable[..., None], *ranks: int) -> Any:  # noqa: ANN401 - TensorFlow has no types
    signature = [tf.TensorSpec((None,) * rank, tf.int32) for rank in ranks]
    function = tf.function(graph, input_signature=signature, autograph=False)
    function.get_concrete_function()
    return function
