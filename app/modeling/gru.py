"""A recurrent language model: embedding, layers of gated recurrent units, dense head.

The second family of decoders beside `decoder.py`, with the same functions over the
same kind of arguments (`family.py`). What a sequence leaves behind between steps is
one state a layer, whatever its length, so memory does not grow with context and a
step costs the same at any position; in return nothing of a prompt can be reused
but its very end, and a prompt is read token after token.

The equations are those that Keras calls `reset_after=True` and CuDNN computes;
gates stand in Keras' order: update, reset, candidate. Weights are `[out, in]` and
activations columns `[in, N]`, of a batch in the order of its rows: column b * T + t.
Tokens are read by `tf.scan`, whose gradient TensorFlow derives: a loop and a gradient
by hand were no quicker (docs/experiments.md).

Letters in shapes: `B` rows, `T` tokens, `N` columns, `L` layers, `S` slots, `E`
embedding width, `D` width of the states, `V` vocabulary.

Source: Cho et al. 2014, "Learning Phrase Representations using RNN
Encoder-Decoder", sec. 2.3, in the variant that multiplies by the reset gate after
the product.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from app.errors import ModelFormatError
from app.modeling.cache import Block, Cache, Group
from app.modeling.linear import Weights, first_only, linear, lookup
from app.modeling.registry import token_ids

Dropout = Callable[[tf.Tensor], tf.Tensor]

MODEL_TYPE = "gru"  # of config.json
FIELDS = {
    "vocab_size": "vocab_size",
    "embedding_size": "embedding_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "context_length": "max_position_embeddings",
}
"""Our name of a size to its field of `config.json`."""


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
            ModelFormatError: a field is missing or not a size.
        """
        return cls(
            **{ours: _size(config, theirs) for ours, theirs in FIELDS.items()},
            bos_token_id=config.get("bos_token_id"),
            eos_token_ids=token_ids(config.get("eos_token_id")),
        )

    def to_hf(self) -> dict[str, Any]:
        """The `config.json` of a published model."""
        return {
            "architectures": ["GruForCausalLM"],
            "model_type": MODEL_TYPE,
            **{theirs: getattr(self, ours) for ours, theirs in FIELDS.items()},
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


def init_cache(
    config: GruConfig, slots: Sequence[int], positions: Sequence[int], dtype: tf.DType = tf.float32
) -> Cache:
    """The states of every slot, one variable `[S, 2, L, D]`, zeroed.

    States after even positions are kept apart from those after odd ones. So a step
    at a position reads the one half and writes the other, and, as with keys and
    values, a step may be repeated, and a row without a live sequence may run along
    at the position that its prompt will write next, without harm.

    Args:
        config: sizes.
        slots: rising numbers, the last is that of all slots; they stay together.
        positions: rising numbers, the last is how long a sequence may become; a state does not grow with it.
        dtype: of the states.
    """
    states = tf.Variable(tf.zeros((slots[-1], 2, config.num_layers, config.hidden_size), dtype))
    return Cache((Group(range(slots[-1]), (Block(range(positions[-1]), (states,)),)),))


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
    num_rows, num_tokens = tf.unstack(tf.shape(tokens))
    x = dropout(_embed(weights, tf.reshape(tokens, [-1])))  # [E, B * T]
    zeros = tf.zeros((config.hidden_size, num_rows), x.dtype)
    for layer in range(config.num_layers):
        x = dropout(_layer(weights, layer, x, zeros))  # [D, B * T]
    return tf.reshape(tf.transpose(head(config, weights, x)), (num_rows, num_tokens, config.vocab_size))


def prefill(
    config: GruConfig,
    weights: Weights,
    cache: Cache,
    tokens: tf.Tensor,
    slots: tf.Tensor,
    starts: tf.Tensor,
    lengths: tf.Tensor,
    context: int,
) -> tf.Tensor:
    """Run parts of the prompts of different slots from the states that those hold, or from zeros at a prompt's start.

    Args:
        config: sizes.
        weights: tensors by name.
        cache: updated in place at `slots`, to the state after the last real token.
        tokens: `[B, T]` int32, padded at its end.
        slots: `[B]` int32, all different.
        starts: `[B]` int32, position of `tokens[b, 0]`.
        lengths: `[B]` int32, number of real tokens, at least 1.
        context: does not matter here.

    Returns:
        Every position's state of the last layer, `[D, B * T]`; those from `lengths` on mean nothing.
    """
    num_rows, num_tokens = tokens.shape
    last = tf.range(num_rows) * num_tokens + lengths - 1
    before = _read(config, cache, slots, starts)  # [L, D, B]
    x = _embed(weights, tf.reshape(tokens, [-1]))  # [E, B * T]
    after = []
    for layer in range(config.num_layers):
        x = _layer(weights, layer, x, tf.cast(before[layer], x.dtype))
        after.append(tf.gather(x, last, axis=1))
    _write(config, cache, slots, starts + lengths - 1, tf.stack(after))
    return x


def head(config: GruConfig, weights: Weights, states: tf.Tensor) -> tf.Tensor:
    """Logits `[V, N]` float32 of the last layer's states `[D, N]`."""
    return tf.cast(linear(weights, "lm_head", states), tf.float32)


def decode(
    config: GruConfig,
    weights: Weights,
    cache: Cache,
    tokens: tf.Tensor,
    positions: tf.Tensor,
    context: int,
    num_columns: int | None = None,
    slots: tf.Tensor | None = None,
) -> tf.Tensor:
    """One step of the first `B` slots.

    A row without a live sequence still writes at its position: give it the
    position that its prompt will write next, so that nothing live is harmed.

    Args:
        config: sizes.
        weights: tensors by name.
        cache: updated in place at its first `B` slots.
        tokens: `[B]` int32, the token at `positions`.
        positions: `[B]` int32.
        context: does not matter here.
        num_columns: how many columns the products shall have, at least `B`; more
            are filled with what nobody reads.
        slots: does not matter here.

    Returns:
        `[V, B]` float32.
    """
    num_rows = tokens.shape[0]
    weights = first_only(weights) if num_rows == 1 else weights
    padding = [[0, (num_columns or num_rows) - num_rows]]
    slots = tf.range(num_rows)  # a state's row is its slot
    before = tf.pad(_read(config, cache, slots, positions), [[0, 0], [0, 0], *padding])  # [L, D, N]
    x = _embed(weights, tf.pad(tokens, padding))  # [E, N]
    after = []
    for layer in range(config.num_layers):
        inputs = linear(weights, f"model.layers.{layer}.input", x)
        x = _step(weights, layer, inputs, tf.cast(before[layer], x.dtype))
        after.append(x[:, :num_rows])
    _write(config, cache, slots, positions, tf.stack(after))
    return head(config, weights, x)[:, :num_rows]


def _embed(weights: Weights, tokens: tf.Tensor) -> tf.Tensor:
    """Columns `[E, N]` of tokens `[N]`."""
    columns = tf.transpose(lookup(weights, "model.embed_tokens", tokens))
    # Always true, which XLA does not know: else it would turn the product that follows, to other bits.
    return tf.where(tokens >= 0, columns, tf.zeros_like(columns))


def _layer(weights: Weights, layer: int, x: tf.Tensor, state: tf.Tensor) -> tf.Tensor:
    """States `[D, B * T]` after every token of `[E, B * T]`, from `[D, B]`; the inputs' product is one for all."""
    size, num_rows = state.shape[0], tf.shape(state)[1]
    inputs = linear(weights, f"model.layers.{layer}.input", x)  # [3 * D, B * T]
    by_token = tf.transpose(tf.reshape(inputs, (3 * size, num_rows, -1)), (2, 0, 1))  # [T, 3 * D, B]
    states = tf.scan(lambda h, i: _step(weights, layer, i, h), by_token, state)  # [T, D, B]
    return tf.reshape(tf.transpose(states, (1, 2, 0)), (size, -1))


def _step(weights: Weights, layer: int, inputs: tf.Tensor, state: tf.Tensor) -> tf.Tensor:
    """The next state `[D, B]` from the inputs' product `[3 * D, B]` and the state before."""
    update, reset, candidate = tf.split(inputs, 3)
    from_update, from_reset, from_candidate = tf.split(linear(weights, f"model.layers.{layer}.recurrent", state), 3)
    z = tf.sigmoid(update + from_update)
    r = tf.sigmoid(reset + from_reset)
    return z * state + (1 - z) * tf.tanh(candidate + r * from_candidate)


def _read(config: GruConfig, cache: Cache, slots: tf.Tensor, positions: tf.Tensor) -> tf.Tensor:
    """What `slots` `[B]` remember before the tokens at `positions` `[B]`, `[L, D, B]`; nothing at position 0."""
    # Not the variable's own gather_nd, which XLA does not know.
    states = tf.gather_nd(_states(cache).value(), _places(config, slots, positions - 1))  # [L, B, D]
    columns = tf.transpose(states, (0, 2, 1))
    return tf.where(positions == 0, tf.zeros_like(columns), columns)


def _write(config: GruConfig, cache: Cache, slots: tf.Tensor, positions: tf.Tensor, states: tf.Tensor) -> None:
    """Remember the states `[L, D, B]` after the tokens at `positions`."""
    variable = _states(cache)
    values = tf.cast(tf.transpose(states, (0, 2, 1)), variable.dtype)
    variable.scatter_nd_update(_places(config, slots, positions), values)


def _states(cache: Cache) -> tf.Variable:
    return cache.groups[0].blocks[0].variables[0]


def _places(config: GruConfig, slots: tf.Tensor, positions: tf.Tensor) -> tf.Tensor:
    """Where the cache keeps the states after `positions`: slot, half and layer, `[L, B, 3]`."""
    layers, slots = tf.meshgrid(tf.range(config.num_layers), slots, indexing="ij")
    halves = tf.broadcast_to(positions % 2, tf.shape(slots))
    return tf.stack([slots, halves, layers], axis=-1)


def _size(config: Mapping[str, Any], field: str) -> int:
    value = config.get(field)
    if value is None:
        raise ModelFormatError(f"config.json has no field '{field}'")
    if not isinstance(value, int) or value <= 0:
        raise ModelFormatError(f"config.json: {field} {value!r} is not a positive integer")
    return value
