"""Grouped-query attention over keys and values, wherever they live.

The sum below each share is a product with ones, because XLA adds up a reduction in
an order that changes with the number of rows; so a query's answer is the same, bit
for bit, whatever else is in the batch and however far the keys are padded.

Letters: `B` rows, `T` tokens, `C` positions read, `N` query heads, `G` key/value
heads, `H` head size.

Source: grouped queries, Ainslie et al. 2023 sec. 2.
"""

import tensorflow as tf

# Finite, so that a row without any visible position stays free of NaN.
MASKED = -1e9


def attend(q: tf.Tensor, k: tf.Tensor, v: tf.Tensor, visible: tf.Tensor) -> tf.Tensor:
    """Q `[B, N, T, H]`, k and v `[B, G, C, H]` to `[B, N, T, H]`.

    `visible` broadcasts against `[B, 1, T, C]`.
    """
    num_heads, head_dim, num_kv_heads = q.shape[1], q.shape[3], k.shape[1]
    group, num_tokens = num_heads // num_kv_heads, q.shape[2] or tf.shape(q)[2]
    if group > 1:  # the queries that share a key stand below each other
        q = tf.reshape(q, (-1, num_kv_heads, group * num_tokens, head_dim))
        visible = tf.tile(visible, [*[1] * (len(visible.shape) - 2), 1 if visible.shape[-2] == 1 else group, 1])
    scores = tf.matmul(q, k, transpose_b=True) * head_dim**-0.5  # [B, G, (N/G) * T, C]
    scores = tf.where(visible, scores, tf.cast(MASKED, scores.dtype))
    # A softmax does not depend on what is taken off, so neither does its gradient.
    powers = tf.exp(scores - tf.stop_gradient(tf.reduce_max(scores, axis=-1, keepdims=True)))
    total = tf.matmul(powers, tf.ones_like(v[..., :1]))  # [B, G, (N/G) * T, 1]
    mixed = tf.matmul(powers, v) / total
    return tf.reshape(mixed, (-1, num_heads, num_tokens, head_dim)) if group > 1 else mixed
