"""The product of a weight and activations, `W x (+ b)`, over columns.

Weights keep the layout `[out, in]` that Hugging Face stores, and stand on the left:
under XLA on a CPU that is up to twice as quick for few columns as rows on the left,
and as quick for many. Where kernels are used, an engine has packed them for those
(`kernels/ops.py`). It is the one place where a weight's precision matters: a
weight with a `.scale` beside it holds bytes (`quantize.py`), and the activations of
a column become bytes by a scale of their own, so that the product is one of integers,
whose sum does not depend on any order. Where only the first column matters, that one is
multiplied in float32, which XLA does while it reads the bytes, at the speed of memory:
all partial sums are integers small enough for float32 to be exact (`PIECE`), so they are
the same integers.

Letters: `D` width in, `F` width out, `M` columns.
"""

from collections.abc import Mapping
from typing import Any

import tensorflow as tf
from tensorflow.compiler.tf2xla.ops import gen_xla_ops

from app.kernels import ops

Weights = Mapping[str, Any]
"""Tensors by their Hugging Face names."""

# The largest byte that is used: symmetric, so that no zero point is needed.
LARGEST = 127.0
FIRST_ONLY = "first_only"
"""Stands among the weights that `first_only` gives."""
PIECE = 2048
"""So many products of bytes at most are added up in float32 …"""
LARGEST_SUM = 2**24 / LARGEST
"""… the absolute values of whose weights add up to this at most, so that the sum is exact."""


def first_only(weights: Weights) -> Weights:
    """The same weights for a compiled call in which only the first column is read; the others mean nothing then."""
    return {**weights, FIRST_ONLY: True}


def linear(weights: Weights, name: str, x: tf.Tensor) -> tf.Tensor:
    """`[D, M]` to `[F, M]` by `name + ".weight"` `[F, D]`, plus `name + ".bias"` `[F]` where there is one."""
    weight, scale = weights[name + ".weight"], weights.get(name + ".scale")
    if isinstance(weight, ops.Packed):
        y = ops.product(weight, x)
    elif scale is None:
        y = tf.matmul(weight, x)
    else:
        y = _product_of_bytes(weight, scale, x, is_first_only=FIRST_ONLY in weights)
    bias = weights.get(name + ".bias")
    return y if bias is None else y + tf.expand_dims(bias, 1)


def lookup(weights: Weights, name: str, ids: tf.Tensor) -> tf.Tensor:
    """Rows `[..., D]` of `name + ".weight"` by number."""
    weight, scale = weights[name + ".weight"], weights.get(name + ".scale")
    if isinstance(weight, ops.Packed):
        return ops.rows(weight, ids)
    rows = tf.gather(weight, ids)
    return rows if scale is None else tf.cast(rows, scale.dtype) * tf.gather(scale, ids)[..., tf.newaxis]


def _product_of_bytes(weight: tf.Tensor, scale: tf.Tensor, x: tf.Tensor, *, is_first_only: bool) -> tf.Tensor:
    """Int8 `[F, D]` by `[F]` scales with columns that are rounded to int8, each by its own largest value."""
    largest = tf.reduce_max(tf.abs(x), axis=0, keepdims=True)  # [1, M]
    step = tf.maximum(largest, tf.cast(1e-30, x.dtype)) / LARGEST
    rounded = tf.cast(tf.round(x / step), tf.int8)
    if is_first_only:  # the rest as for many columns, since the last bits of other operations depend on their number
        # By one, which XLA does not know: it would round anew for each output, but divides only once.
        column = tf.cast(rounded[:, :1], tf.float32) / tf.cast(step[:, :1] > 0, tf.float32)
        product = tf.pad(_column(weight, column), [[0, 0], [0, x.shape[1] - 1]])
    else:
        product = tf.matmul(weight, rounded, output_type=tf.int32)
    return tf.cast(product, x.dtype) * step * tf.expand_dims(scale, 1)


def _column(weight: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """Int8 `[F, D]` by whole numbers `[D, 1]` float32 to int32 `[F, 1]`; only compiled."""
    # Held together, or XLA turns all weights to floats once before a loop, and reads four times as much.
    weight, x = gen_xla_ops.xla_optimization_barrier([weight, x])
    starts = range(0, weight.shape[1], PIECE)
    weights = [weight] if len(starts) == 1 else [weight[:, start : start + PIECE] for start in starts]
    columns = [x] if len(starts) == 1 else [x[start : start + PIECE] for start in starts]
    pairs = zip(weights, columns, strict=True)
    return tf.add_n([tf.cast(tf.matmul(tf.cast(w, tf.float32), column), tf.int32) for w, column in pairs])
