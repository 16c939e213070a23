"""What the engine needs of a family of decoders, and which module is whose.

A family is a module of pure functions. The runner knows these five and no more, so
a network with keys and values and one with a recurrent state are served alike.

Activations are columns: `B` rows, `T` tokens, `N` columns, `D` width, `V` vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import tensorflow as tf

from app.modeling import decoder, gru
from app.modeling.cache import Cache
from app.modeling.decoder_config import DecoderConfig
from app.modeling.gru import GruConfig
from app.modeling.linear import Weights


class Family(Protocol):
    """The functions of a family; their docstrings in `decoder.py` and `gru.py` say what they promise."""

    def init_cache(
        self,
        config: Any,  # noqa: ANN401 - the family's own
        slots: Sequence[int],
        positions: Sequence[int],
        dtype: tf.DType = tf.float32,
    ) -> Cache:
        """Nothing remembered yet; slots and positions may be kept apart at these rising numbers, the last is all."""

    def forward(
        self,
        config: Any,  # noqa: ANN401
        weights: Weights,
        tokens: tf.Tensor,
        dropout: Callable[[tf.Tensor], tf.Tensor] = tf.identity,
    ) -> tf.Tensor:
        """Logits `[B, T, V]` float32 of tokens `[B, T]`, without a cache."""

    def prefill(
        self,
        config: Any,  # noqa: ANN401
        weights: Weights,
        cache: Any,  # noqa: ANN401
        tokens: tf.Tensor,
        slots: tf.Tensor,
        starts: tf.Tensor,
        lengths: tf.Tensor,
        context: int,
    ) -> tf.Tensor:
        """States `[D, B * T]` of parts `[B, T]` of prompts, `lengths` of them real; begin anew where `starts` is 0."""

    def head(self, config: Any, weights: Weights, states: tf.Tensor) -> tf.Tensor:  # noqa: ANN401
        """Logits `[V, N]` float32 of states `[D, N]`."""

    def decode(
        self,
        config: Any,  # noqa: ANN401
        weights: Weights,
        cache: Any,  # noqa: ANN401
        tokens: tf.Tensor,
        positions: tf.Tensor,
        context: int,
        num_columns: int | None = None,
        slots: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Logits `[V, B]` float32 after one step, in place, of the first `B` slots, or of these in a memory."""


def family_of(config: DecoderConfig | GruConfig) -> Family:
    """The module that computes a network of these sizes."""
    return gru if isinstance(config, GruConfig) else decoder
