"""The prefix cache's device half: copies of keys and values, by blocks of tokens.

Which block lies where is `prefixes.py`'s affair. Copies, not shared pages: what runs
against a slot stays as simple as without a cache, and a copy reads no
weights. Plain graphs of dynamic length; nothing is compiled.

Letters: `P` places, `K` blocks of one copy, `G` key/value heads, `S` cache length,
`T` tokens of a block, `H` head size.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from app.modeling.decoder import Cache


class BlockPool:
    """Room for blocks of keys and values, and the copies from and to slots.

    Args:
        cache: the slots' own.
        num_blocks: `P`, at least 1.
        block_tokens: `T`.
    """

    def __init__(self, cache: Cache, num_blocks: int, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._pairs = [*_pairs(cache, num_blocks, block_tokens)]
        self._restore = _function(self._restore_graph, 0, 1)
        self._keep = _function(self._keep_graph, 0, 0, 1)

    def restore(self, slot: int, places: tuple[int, ...]) -> None:
        """Copy blocks to the beginning of a slot, in order."""
        self._restore(np.int32(slot), np.array(places, np.int32))

    def keep(self, slot: int, first: int, places: tuple[int, ...]) -> None:
        """Copy a slot's blocks from number `first` on to these places."""
        self._keep(np.int32(slot), np.int32(first), np.array(places, np.int32))

    def _restore_graph(self, slot: tf.Tensor, places: tf.Tensor) -> None:
        for slots, pool in self._pairs:
            blocks = tf.transpose(tf.gather(pool, places), (1, 0, 2, 3))  # [G, K, T, H]
            flat = tf.reshape(blocks, (slots.shape[1], -1, slots.shape[3]))
            slots[slot, :, : tf.shape(flat)[1]].assign(flat)

    def _keep_graph(self, slot: tf.Tensor, first: tf.Tensor, places: tf.Tensor) -> None:
        start, size = first * self._block_tokens, tf.size(places) * self._block_tokens
        for slots, pool in self._pairs:
            flat = slots[slot, :, start : start + size]  # [G, K * T, H]
            blocks = tf.reshape(flat, (slots.shape[1], -1, self._block_tokens, slots.shape[3]))
            pool.scatter_update(tf.IndexedSlices(tf.transpose(blocks, (1, 0, 2, 3)), places))


def block_bytes(cache: Cache, block_tokens: int) -> int:
    """Device memory of one block of all layers."""
    num_slots, _, length, _ = cache.keys[0].shape
    return cache.nbytes // (int(num_slots) * int(length)) * block_tokens


def _pairs(cache: Cache, num_blocks: int, block_tokens: int) -> Iterator[tuple[tf.Variable, tf.Variable]]:
    """Each of the slots' variables `[B, G, S, H]` with its pool `[P, G, T, H]`."""
    for slots in (*cache.keys, *cache.values):
        shape = (num_blocks, slots.shape[1], block_tokens, slots.shape[3])
        yield slots, tf.Variable(tf.zeros(shape, slots.dtype))


def _function(graph: Callable[..., None], *ranks: int) -> Any:  # noqa: ANN401 - TensorFlow has no types
    return tf.function(
        graph, input_signature=[tf.TensorSpec((None,) * rank, tf.int32) for rank in ranks], autograph=False
    )
