"""What the engine needs of a family of decoders, and which module is whose.

A family is a module of pure functions. The runner knows these five and no more, so
a network with keys and values and one with a recurrent state are served alike.
"""

from typing import Any, Protocol

import tensorflow as tf

from app.modeling import decoder, gru
from app.modeling.decoder_config import DecoderConfig
from app.modeling.gru import GruConfig
from app.modeling.linear import Weights


class Cache(Protocol):
    """What sequences leave behind between steps, by slot; holds variables that are updated in place."""

    @property
    def nbytes(self) -> int:
        """Device memory that it takes, bytes."""


class Family(Protocol):
    """The functions of a family; their docstrings in `decoder.py` say what they promise."""

    def init_cache(self, config: Any, num_slots: int, cache_length: int) -> Cache:  # noqa: ANN401 - the family's own
        """Nothing remembered yet, for `num_slots` sequences of up to `cache_length` tokens."""

    def forward(self, config: Any, weights: Weights, tokens: tf.Tensor) -> tf.Tensor:  # noqa: ANN401
        """Logits `[B, T, V]` of tokens `[B, T]`, without a cache."""

    def prefill_states(
        self,
        config: Any,  # noqa: ANN401
        weights: Weights,
        cache: Any,  # noqa: ANN401
        tokens: tf.Tensor,
        slot: tf.Tensor,
        start: tf.Tensor,
        context: int | tf.Tensor,
    ) -> tf.Tensor:
        """States `[1, T, D]` of one chunk of one prompt; begins anew where `start` is 0."""

    def head(self, config: Any, weights: Weights, states: tf.Tensor) -> tf.Tensor:  # noqa: ANN401
        """Logits `[B, T, V]` of states."""

    def decode(
        self,
        config: Any,  # noqa: ANN401
        weights: Weights,
        cache: Any,  # noqa: ANN401
        tokens: tf.Tensor,
        positions: tf.Tensor,
        context: int,
    ) -> tf.Tensor:
        """Logits `[B, V]` after one step of every slot."""


def family_of(config: DecoderConfig | GruConfig) -> Family:
    """The module that computes a network of these sizes."""
    return gru if isinstance(config, GruConfig) else decoder
