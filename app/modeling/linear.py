"""The product of activations and a weight, `x @ W^T (+ b)`.

Weights keep the layout `[out, in]` that Hugging Face stores, which is also the one
that XLA multiplies fastest. It is the one place where a weight's precision matters.

Letters: `D` width in, `F` width out.
"""

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

Weights = Mapping[str, Any]
"""Tensors by their Hugging Face names."""


def linear(weights: Weights, name: str, x: tf.Tensor) -> tf.Tensor:
    """`x @ W^T (+ b)` over the last axis; rows are flattened, as a rank-2 product is quicker."""
    weight = weights[name + ".weight"]
    flat = tf.matmul(tf.reshape(x, (-1, weight.shape[1])), weight, transpose_b=True)
    bias = weights.get(name + ".bias")
    if bias is not None:
        flat = flat + bias
    return tf.reshape(flat, tf.concat([tf.shape(x)[:-1], [weight.shape[0]]], axis=0))
