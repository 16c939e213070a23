"""Weights as bytes: symmetric int8, one scale for each output.

Only what enters a product is rounded (norms, biases and tables that are looked up
stay as they are); a tied embedding is both and is rounded. `linear.py` computes with
it, and needs that no `PIECE` of a row adds up to more than `LARGEST_SUM`; a row of
which one would, which no trained one is known to, has a larger scale. Nothing is
calibrated: scales follow from the weights alone, so a checkpoint always gives the same
bytes.

Source: per-channel symmetric quantisation, Krishnamoorthi 2018, sec. 2.2.
"""

from collections.abc import Mapping

import numpy as np

from app.modeling.decoder_config import DecoderConfig
from app.modeling.gru import GruConfig
from app.modeling.linear import LARGEST, LARGEST_SUM, PIECE


def product_names(config: DecoderConfig | GruConfig, weights: Mapping[str, np.ndarray]) -> list[str]:
    """The weights `[F, D]` that enter a product."""
    names = [name for name, weight in weights.items() if weight.ndim == 2 and ".embed_" not in name]
    is_tied = isinstance(config, DecoderConfig) and config.tie_embeddings
    return [*names, "model.embed_tokens.weight"] if is_tied else names


def quantize(config: DecoderConfig | GruConfig, weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The weights with those of products as int8, each beside its `.scale` `[F]` float32."""
    quantized = dict(weights)
    for name in product_names(config, weights):
        quantized[name], quantized[name.removesuffix("weight") + "scale"] = to_bytes(weights[name])
    return quantized


def to_bytes(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`[F, D]` float32 to int8 and its scales `[F]`; a row of zeros has scale 0."""
    sizes = np.abs(weight)  # [F, D]
    largest_sum = np.add.reduceat(sizes, range(0, weight.shape[1], PIECE), axis=1).max(axis=1)
    # Rounding adds at most a half to each.
    scale = np.maximum(sizes.max(axis=1) / LARGEST, largest_sum / (LARGEST_SUM - PIECE / 2)).astype(np.float32)
    rounded = np.rint(weight / np.where(scale > 0, scale, 1.0)[:, np.newaxis])
    return rounded.astype(np.int8), scale
