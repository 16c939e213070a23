"""Rotary positions: how fast each pair of a head's numbers turns, and the turning.

Letters in shapes: `B` rows, `T` tokens, `N` heads, `H` head size.

Sources: Su et al. 2021 sec. 3.4, in the half-split form of the published Llama
weights; linear stretching, Chen et al. 2023, "Extending Context Window of Large
Language Models via Positional Interpolation", sec. 2.2; `llama3` as in the release
of Llama 3.1: fast waves keep their pace, slow ones are slowed in full, and those
between are blended.
"""

import numpy as np
import tensorflow as tf

from app.modeling.decoder_config import DecoderConfig, RopeScaling

Turns = tuple[tf.Tensor, tf.Tensor]
"""Cosines and sines that broadcast against each other."""


def frequencies(config: DecoderConfig) -> np.ndarray:
    """Radians per position of every pair, `[H/2]` float32; computed once, in float64."""
    base = config.rope_theta ** -(np.arange(0, config.head_dim, 2) / config.head_dim)
    scaling = config.rope_scaling
    if scaling is None:
        return base.astype(np.float32)
    slowed = base / scaling.factor
    if scaling.kind == "linear":
        return slowed.astype(np.float32)
    kept = _share_kept(scaling, base)
    return (kept * base + (1 - kept) * slowed).astype(np.float32)


def turns(config: DecoderConfig, positions: tf.Tensor, dtype: tf.DType = tf.float32) -> Turns:
    """Cosines and sines `[..., H/2]` of integer positions `[...]`; computed once for all layers."""
    angles = tf.cast(positions, tf.float32)[..., tf.newaxis] * frequencies(config)
    return tf.cast(tf.cos(angles), dtype), tf.cast(tf.sin(angles), dtype)


def rotate(x: tf.Tensor, turns: Turns) -> tf.Tensor:
    """Rotate `[B, N, T, H]` by turns that broadcast against `[B, N, T, H/2]`."""
    cos, sin = turns
    first, second = tf.split(x, 2, axis=-1)
    return tf.concat([first * cos - second * sin, second * cos + first * sin], axis=-1)


def _share_kept(scaling: RopeScaling, base: np.ndarray) -> np.ndarray:
    """How much of each wave keeps its pace: 0 for long ones, 1 for short ones, linear in between."""
    turns = scaling.original_context * base / (2 * np.pi)  # within the original context
    share = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    return np.clip(share, 0.0, 1.0)
