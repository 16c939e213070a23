"""The product of a weight and activations, `W x (+ b)`, over columns.

Weights keep the layout `[out, in]` that Hugging Face stores, and stand on the left:
under XLA on a CPU that is up to twice as quick for few columns as rows on the left,
and as quick for many. It is the one place where a weight's precision matters: a
weight with a `.scale` beside it holds bytes (`quantize.py`), and the activations of
a column become bytes by a scale of their own, so that the product is one of integers,
whose sum does not depend on any order.

Letters: `D` width in, `F` width out, `M` columns.
"""

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

Weights = Mapping[str, Any]
"""Tensors by their Hugging Face names."""

# The largest byte that is used: symmetric, so that no zero point is needed.
LARGEST = 127.0


def linear(weights: Weights, name: str, x: tf.Tensor) -> tf.Tensor:
    """`[D, M]` to `[F, M]` by `name + ".weight"` `[F, D]`, plus `name + ".bias"` `[F]` where there is one."""
    weight, scale = weights[name + ".weight"], weights.get(name + ".scale")
    y = tf.matmul(weight, x) if scale is None else _product_of_bytes(weight, scale, x)
    bias = weights.get(name + ".bias")
    return y if bias is None else y + tf.expand_dims(bias, 1)


def lookup(weights: Weights, name: str, ids: tf.Tensor) -> tf.Tensor:
    """Rows `[..., D]` of `name + ".weight"` by number."""
    rows, scale = tf.gather(weights[name + ".weight"], ids), weights.get(name + ".scale")
    return rows if scale is None else tf.cast(rows, scale.dtype) * tf.gather(scale, ids)[..., tf.newaxis]


def _product_of_bytes(weight: tf.Tensor, scale: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """Int8 `[F, D]` by `[F]` scales with columns that are rounded to int8, each by its own largest value."""
    largest = tf.reduce_max(tf.abs(x), axis=0, keepdims=True)  # [1, M]
    step = tf.maximum(largest, tf.cast(1e-30, x.dtype)) / LARGEST
    rounded = tf.cast(tf.round(x / step), tf.int8)
    return tf.cast(tf.matmul(weight, rounded, output_type=tf.int32), x.dtype) * step * tf.expand_dims(scale, 1)
