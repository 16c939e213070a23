"""Grouped-query attention over keys and values, wherever they live and in however many pieces.

The sum below each share is a product with ones, because XLA adds up a reduction in
an order that changes with the number of rows; and what the pieces of a row give is
added in their order, those beyond its end being zeros. So a query's answer is the
same, bit for bit, whatever else is in the batch and however far the keys are padded.

A query alone with its keys, as in every decode step without grouped queries, is not a
product of matrices: XLA on a CPU takes those one after the other on one core, where it
spreads sums over all. So it is multiplied and added up, in halves, which keeps the
additions in vectors and their order the same for any number of rows.

Letters: `B` rows, `T` tokens, `C` positions read, `N` query heads, `G` key/value
heads, `H` head size.

Source: grouped queries, Ainslie et al. 2023 sec. 2.
"""

from collections.abc import Sequence
from functools import reduce
from operator import add

import tensorflow as tf

# Finite, so that a row without any visible position stays free of NaN.
MASKED = -1e9
# What halving leaves to one reduction: a vector's width of a head, or so many positions. Measured:
# less of a head is no vector any more, and more positions than 32 XLA adds up in two passes over memory.
LEAST_WIDTH, LEAST_POSITIONS = 16, 32

Pieces = Sequence[Sequence[tf.Tensor]]
"""Keys or values `[some B, G, some C, H]` by rows, then by positions; all rows are cut at the same positions."""


def attend(q: tf.Tensor, keys: Pieces, values: Pieces, visible: tf.Tensor) -> tf.Tensor:
    """Q `[B, N, T, H]`, keys and values `[B, G, C, H]` in pieces to `[B, N, T, H]`.

    `visible` broadcasts against `[B, 1, T, C]`.
    """
    num_heads, head_dim, num_kv_heads = q.shape[1], q.shape[3], keys[0][0].shape[1]
    group, num_tokens = num_heads // num_kv_heads, q.shape[2] or tf.shape(q)[2]
    if group > 1:  # the queries that share a key stand below each other
        q = tf.reshape(q, (-1, num_kv_heads, group * num_tokens, head_dim))
        visible = tf.tile(visible, [*[1] * (len(visible.shape) - 2), 1 if visible.shape[-2] == 1 else group, 1])
    powers = _powers(_scores(q, keys) * head_dim**-0.5, visible)  # [B, G, (N/G) * T, C]
    sizes = [block.shape[2] for block in values[0]]
    shares = [powers] if len(sizes) == 1 else tf.split(powers, sizes, axis=-1)
    total = reduce(add, [tf.matmul(share, tf.ones_like(share[:, :, :1]), transpose_b=True) for share in shares])
    mixed = reduce(add, [_mixed(share, [row[i] for row in values]) for i, share in enumerate(shares)]) / total
    return tf.reshape(mixed, (-1, num_heads, num_tokens, head_dim)) if group > 1 else mixed


def _scores(q: tf.Tensor, keys: Pieces) -> tf.Tensor:
    """`[B, G, T, C]` of queries `[B, G, T, H]`."""
    some = zip(_by_rows(q, [blocks[0] for blocks in keys]), keys, strict=True)
    return _concat([_concat([_products(rows, k) for k in blocks], -1) for rows, blocks in some], 0)


def _products(q: tf.Tensor, k: tf.Tensor) -> tf.Tensor:
    """`[B, G, T, C]` of queries `[B, G, T, H]` with keys `[B, G, C, H]`."""
    if q.shape[2] != 1:
        return tf.matmul(q, k, transpose_b=True)
    return tf.reduce_sum(_halved(q * k, 3, LEAST_WIDTH), axis=3)[:, :, tf.newaxis]


def _powers(scores: tf.Tensor, visible: tf.Tensor) -> tf.Tensor:
    """Each key's share up to a factor, which is its row's."""
    scores = tf.where(visible, scores, tf.cast(MASKED, scores.dtype))
    # A softmax does not depend on what is taken off, so neither does its gradient.
    return tf.exp(scores - tf.stop_gradient(tf.reduce_max(scores, axis=-1, keepdims=True)))


def _mixed(shares: tf.Tensor, values: Sequence[tf.Tensor]) -> tf.Tensor:
    """Values of some positions `[some B, G, C, H]` by shares `[B, G, T, C]`, summed to `[B, G, T, H]`."""
    return _concat([_weighted_sum(rows, v) for rows, v in zip(_by_rows(shares, values), values, strict=True)], 0)


def _weighted_sum(shares: tf.Tensor, v: tf.Tensor) -> tf.Tensor:
    """`[B, G, T, H]` of values `[B, G, C, H]` by shares `[B, G, T, C]`, which need not add up to one."""
    if shares.shape[2] != 1:
        return tf.matmul(shares, v)
    return tf.reduce_sum(_halved(tf.transpose(shares, (0, 1, 3, 2)) * v, 2, LEAST_POSITIONS), axis=2, keepdims=True)


def _halved(x: tf.Tensor, axis: int, size: int) -> tf.Tensor:
    """One half added to the other, again and again, until so many or an odd number are left along the axis."""
    while x.shape[axis] > size and x.shape[axis] % 2 == 0:
        first, second = tf.split(x, 2, axis)
        x = first + second
    return x


def _by_rows(x: tf.Tensor, pieces: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """`x` cut along its rows as these are."""
    if len(pieces) == 1:
        return [x]
    parts: list[tf.Tensor] = tf.split(x, [piece.shape[0] for piece in pieces])
    return parts


def _concat(parts: list[tf.Tensor], axis: int) -> tf.Tensor:
    return parts[0] if len(parts) == 1 else tf.concat(parts, axis)
