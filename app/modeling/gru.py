"""A recurrent language model: embedding, layers of gated recurrent units, dense head.

The second family of decoders beside `decoder.py`, with the same functions over the
same kind of arguments (`family.py`). What a sequence leaves behind between steps is
one state a layer, whatever its length, so memory does not grow with context and a
step costs the same at any position; in return nothing of a prompt can be reused
but its very end, and a prompt is read token after token.

The equations are those that Keras calls `reset_after=True` and CuDNN computes;
gates stand in Keras' order: update, reset, candidate. Weights are `[out, in]`.

Letters in shapes: `B` rows, `T` tokens, `L` layers, `E` embedding width, `D` width
of the states, `V` vocabulary.

Source: Cho et al. 2014, "Learning Phrase Representations using RNN
Encoder-Decoder", sec. 2.3, in the variant that multiplies by the reset gate after
the product.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from app.errors import ModelFormatError
from app.modeling.linear import Weights, linear
from app.modeling.registry import token_ids

Dropout = Callable[[tf.Tensor], tf.Tensor]


@dataclass(frozen=True, slots=True)
class GruConfig:
    """The sizes of a recurrent language model.

    Attributes:
        context_length: tokens of prompt and output together that are served; the
            network itself knows no limit.
    """

    vocab_size: int
    embedding_size: int
    hidden_size: int
    num_layers: int
    context_length: int
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "GruConfig":
        """Read a `config.json` that `to_hf` wrote.

        Raises:
            ModelFormatError: a field is missing.
        """
        try:
            return cls(
                vocab_size=int(config["vocab_size"]),
                embedding_size=int(config["embedding_size"]),
                hidden_size=int(config["hidden_size"]),
                num_layers=int(config["num_hidden_layers"]),
                context_length=int(config["max_position_embeddings"]),
                bos_token_id=config.get("bos_token_id"),
                eos_token_ids=token_ids(config.get("eos_token_id")),
            )
        except KeyError as missing:
            raise ModelFormatError(f"config.json has no field {missing}") from None

    def to_hf(self) -> dict[str, Any]:
        """The `config.json` of a published model."""
        return {
            "architectures": ["GruForCausalLM"],
            "model_type": "gru",
            "vocab_size": self.vocab_size,
            "embedding_size": self.embedding_size,
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.num_layers,
            "max_position_embeddings": self.context_length,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": self.eos_token_ids[0] if len(self.eos_token_ids) == 1 else list(self.eos_token_ids),
            "torch_dtype": "float32",
        }

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor with its shape; the three gates lie one above the other."""
        gates = 3 * self.hidden_size
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab_size, self.embedding_size)}
        for layer in range(self.num_layers):
            prefix = f"model.layers.{layer}."
            shapes[prefix + "input.weight"] = (gates, self.hidden_size if layer else self.embedding_size)
            shapes[prefix + "input.bias"] = (gates,)
            shapes[prefix + "recurrent.weight"] = (gates, self.hidden_size)
            shapes[prefix + "recurrent.bias"] = (gates,)
        shapes["lm_head.weight"] = (self.vocab_size, self.hidden_size)
        shapes["lm_head.bias"] = (self.vocab_size,)
        return shapes


@dataclass(frozen=True, slots=True)
class Cache:
    """The states of every slot, one variable `[2, L, B, D]` updated in place.

    States after even positions are kept apart from those after odd ones. So a step
    at a position reads the one half and writes the other, and, as with keys and
    values, a step may be repeated, and a row without a live sequence may run along
    at the position that its prompt will write next, without harm.
    """

    states: tf.Variable

    @property
    def nbytes(self) -> int:
        """Device memory that it takes, bytes."""
        return int(self.states.dtype.size * self.states.shape.num_elements())


def init_cache(config: GruConfig, num_slots: int, cache_length: int, dtype: tf.DType = tf.float32) -> Cache:
    """Allocate the states of all slots, zeroed; `cache_length` does not matter."""
    return Cache(tf.Variable(tf.zeros((2, config.num_layers, num_slots, config.hidden_size), dtype)))


def forward(config: GruConfig, weights: Weights, tokens: tf.Tensor, dropout: Dropout = tf.identity) -> tf.Tensor:
    """Logits of every position of a batch, from zero states.

    Args:
        config: sizes.
        weights: tensors by name.
        tokens: `[B, T]` int32.
        dropout: applied to the embeddings and to every layer's output.

    Returns:
        `[B, T, V]` float32.
    """
    x = dropout(tf.gather(weights["model.embed_tokens.weight"], tokens))  # [B, T, E]
    zeros = tf.zeros((tf.shape(tokens)[0], config.hidden_size), x.dtype)
    for layer in range(config.num_layers):
        x = dropout(_layer(weights, layer, x, zeros))  # [B, T, D]
    return head(config, weights, x)


def prefill(
    config: GruConfig,
    weights: Weights,
    cache: Cache,
    tokens: tf.Tensor,
    slot: tf.Tensor,
    start: tf.Tensor,
    length: tf.Tensor,
    context: int | tf.Tensor,
) -> tf.Tensor:
    """As `decoder.prefill`: run one chunk into `slot`; `[1, V]` after its last real token."""
    x = prefill_states(config, weights, cache, tokens, slot, start, context, length)
    return head(config, weights, tf.gather(x, length - 1, axis=1)[:, tf.newaxis])[:, 0]


def prefill_states(
    config: GruConfig,
    weights: Weights,
    cache: Cache,
    tokens: tf.Tensor,
    slot: tf.Tensor,
    start: tf.Tensor,
    context: int | tf.Tensor,
    length: tf.Tensor | None = None,
) -> tf.Tensor:
    """Run one chunk of one prompt from the state that `slot` holds, or from zeros at the start of a prompt.

    Args:
        config: sizes.
        weights: tensors by name.
        cache: updated in place at `slot`.
        tokens: `[1, T]` int32, padded if `length` says so.
        slot: `[]` int32.
        start: `[]` int32, position of `tokens[0, 0]`.
        context: does not matter here.
        length: `[]` int32, number of real tokens; all of them if None.

    Returns:
        Every position's state of the last layer, `[1, T, D]`.
    """
    last = (tf.shape(tokens)[1] if length is None else length) - 1
    before = tf.gather(cache.states, slot, axis=2)[(start + 1) % 2]  # [L, D]
    before = tf.where(start == 0, tf.zeros_like(before), before)
    x = tf.gather(weights["model.embed_tokens.weight"], tokens)  # [1, T, E]
    after = []
    for layer in range(config.num_layers):
        x = _layer(weights, layer, x, before[layer][tf.newaxis])
        after.append(tf.gather(x[0], last))
    layers = tf.range(config.num_layers)
    half = tf.fill([config.num_layers], (start + last) % 2)
    where = tf.stack([half, layers, tf.fill([config.num_layers], slot)], axis=-1)  # [L, 3]
    cache.states.scatter_nd_update(where, tf.stack(after))
    return x


def head(config: GruConfig, weights: Weights, states: tf.Tensor) -> tf.Tensor:
    """Logits `[B, T, V]` float32 of the last layer's states `[B, T, D]`."""
    return tf.cast(linear(weights, "lm_head", states), tf.float32)


def decode(
    config: GruConfig, weights: Weights, cache: Cache, tokens: tf.Tensor, positions: tf.Tensor, context: int
) -> tf.Tensor:
    """One step of every slot; see `decoder.decode` for what rows without a sequence must do.

    Args:
        config: sizes.
        weights: tensors by name.
        cache: updated in place.
        tokens: `[B]` int32, the token at `positions`.
        positions: `[B]` int32.
        context: does not matter here.

    Returns:
        `[B, V]` float32.
    """
    even, odd = tf.unstack(tf.convert_to_tensor(cache.states))  # [L, B, D] each
    is_odd = (positions % 2 == 1)[:, tf.newaxis]  # [B, 1]
    before = tf.where(positions[:, tf.newaxis] == 0, tf.zeros_like(even), tf.where(is_odd, even, odd))
    x = tf.gather(weights["model.embed_tokens.weight"], tokens)  # [B, E]
    layers = []
    for layer in range(config.num_layers):
        x = _step(weights, layer, linear(weights, f"model.layers.{layer}.input", x), before[layer])
        layers.append(x)
    after = tf.stack(layers)  # [L, B, D]
    cache.states.assign(tf.stack([tf.where(is_odd, even, after), tf.where(is_odd, after, odd)]))
    return head(config, weights, x[:, tf.newaxis])[:, 0]


def _layer(weights: Weights, layer: int, x: tf.Tensor, state: tf.Tensor) -> tf.Tensor:
    """States `[B, T, D]` after every token of `[B, T, E]`, from `[B, D]`; the inputs' product is one for all tokens."""
    inputs = linear(weights, f"model.layers.{layer}.input", x)  # [B, T, 3 * D]
    states = tf.scan(lambda h, i: _step(weights, layer, i, h), tf.transpose(inputs, (1, 0, 2)), state)
    return tf.transpose(states, (1, 0, 2))


def _step(weights: Weights, layer: int, inputs: tf.Tensor, state: tf.Tensor) -> tf.Tensor:
    """The next state `[B, D]` from the inputs' product `[B, 3 * D]` and the state before."""
    update, reset, candidate = tf.split(inputs, 3, axis=-1)
    recurrent = linear(weights, f"model.layers.{layer}.recurrent", state)
    from_update, from_reset, from_candidate = tf.split(recurrent, 3, axis=-1)
    z = tf.sigmoid(update + from_update)
    r = tf.sigmoid(reset + from_reset)
    return z * state + (1 - z) * tf.tanh(candidate + r * from_candidate)
