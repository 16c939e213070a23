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

    `visible` broadcasts against scores `[B, G, N/G, T, C]`.
    """
    num_heads, head_dim, num_kv_heads = q.shape[1], q.shape[3], k.shape[1]
    group, num_tokens, num_keys = num_heads // num_kv_heads, tf.shape(q)[2], tf.shape(k)[2]
    q = tf.reshape(q, (-1, num_kv_heads, group * num_tokens, head_dim))
    scores = tf.matmul(q, k, transpose_b=True) * head_dim**-0.5  # [B, G, (N/G) * T, C]
    scores = tf.reshape(scores, (-1, num_kv_heads, group, num_tokens, num_keys))
    scores = tf.where(visible, scores, tf.cast(MASKED, scores.dtype))
    scores = tf.reshape(scores, (-1, num_kv_heads, group * num_tokens, num_keys))
    # A softmax does not depend on what is taken off, so neither does its gradient.
    powers = tf.exp(scores - tf.stop_gradient(tf.reduce_max(scores, axis=-1, keepdims=True)))
    total = tf.matmul(powers, tf.ones_like(v[..., :1]))  # [B, G, (N/G) * T, 1]
    return tf.reshape(tf.matmul(powers, v) / total, (-1, num_heads, num_tokens, head_dim))
