"""Grouped-query attention over keys and values, wherever they live.

Letters: `B` rows, `T` tokens, `C` positions read, `N` query heads, `G` key/value
heads, `H` head size.

Source: grouped queries, Ainslie et al. 2023 sec. 2.
"""

import tensorflow as tf

# Finite, so that a row without any visible position stays free of NaN.
MASKED = -1e9


def attend(q: tf.Tensor, k: tf.Tensor, v: tf.Tensor, visible: tf.Tensor) -> tf.Tensor:
    """Q `[B, N, T, H]`, k and v `[B, G, C, H]` to `[B, T, N * H]`.

    `visible` broadcasts against scores `[B, G, N/G, T, C]`.
    """
    num_heads, head_dim, num_kv_heads = q.shape[1], q.shape[3], k.shape[1]
    group = num_heads // num_kv_heads
    num_tokens = tf.shape(q)[2]
    q = tf.reshape(q, (-1, num_kv_heads, group * num_tokens, head_dim))
    scores = tf.matmul(q, k, transpose_b=True) * head_dim**-0.5  # [B, G, (N/G) * T, C]
    scores = tf.reshape(scores, (-1, num_kv_heads, group, num_tokens, tf.shape(k)[2]))
    scores = tf.where(visible, scores, tf.cast(MASKED, scores.dtype))
    shares = tf.nn.softmax(scores)
    shares = tf.reshape(shares, (-1, num_kv_heads, group * num_tokens, tf.shape(k)[2]))
    mixed = tf.reshape(tf.matmul(shares, v), (-1, num_heads, num_tokens, head_dim))
    return tf.reshape(tf.transpose(mixed, (0, 2, 1, 3)), (-1, num_tokens, num_heads * head_dim))
