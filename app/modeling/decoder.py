"""The decoder as pure functions over named weights: Llama and its kin, and GPT-2.

One definition serves training (`forward` over a whole batch) and serving
(`prefill` of parts of prompts, `decode` of the slots against a key/value cache), so
the engine cannot drift from what was trained. Weights have the names of the Llama
layout, whatever their file calls them (`layouts.py`), and its order `[out, in]`.

Activations are columns, `[D, M]` (`linear.py` says why). A column's result does not
depend, bit for bit, on what stands in the others; nor on how many there are, where
their number is one of those that `engine/widths.py` finds.

It owns no variables and compiles nothing: callers wrap these functions in
`tf.function`. Biases are applied where the checkpoint has them.

Letters in shapes: `B` rows, `T` tokens, `M` columns (`B * T`), `C` context read,
`N` query heads, `G` key/value heads, `H` head size, `D` width, `F` feed-forward
width, `V` vocabulary.

Sources: RMSNorm, Zhang & Sennrich 2019 eq. 4; LayerNorm, Ba et al. 2016 eq. 4;
SwiGLU, Shazeer 2020 sec. 2; grouped queries, Ainslie et al. 2023 sec. 2; windows,
Beltagy et al. 2020 sec. 3.1; GPT-2, Radford et al. 2019 sec. 2.3.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import tensorflow as tf

from app.kernels.ops import Memory
from app.modeling import attention, rotary
from app.modeling.cache import Block, Cache, Group, stretches
from app.modeling.decoder_config import DecoderConfig
from app.modeling.layouts import QKV
from app.modeling.linear import Weights, first_only, linear, lookup

Dropout = Callable[[tf.Tensor], tf.Tensor]
Mix = Callable[[int, tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]

JOINED: Mapping[str, tuple[str, ...]] = {
    "self_attn.qkv_proj": QKV,
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
}

ACTIVATIONS: Mapping[str, Callable[[tf.Tensor], tf.Tensor]] = {
    "silu": tf.nn.silu,
    "gelu_new": partial(tf.nn.gelu, approximate=True),
    "gelu_pytorch_tanh": partial(tf.nn.gelu, approximate=True),
}


def init_cache(
    config: DecoderConfig, slots: Sequence[int], positions: Sequence[int], dtype: tf.DType = tf.float32
) -> Cache:
    """Nothing remembered yet: per block a key and a value variable of each layer, `[slots, G, positions, H]`, zeroed.

    Args:
        config: sizes.
        slots: rising ends of the groups; the last is the number of slots.
        positions: rising ends of the blocks; the last is the length of the cache.
        dtype: of keys and values.
    """

    def allocate(held: range, reach: range) -> Block:
        shape = (len(held), config.num_kv_heads, len(reach), config.head_dim)
        return Block(reach, tuple(tf.Variable(tf.zeros(shape, dtype)) for _ in range(2 * config.num_layers)))

    reaches = stretches(positions)
    return Cache(tuple(Group(held, tuple(allocate(held, reach) for reach in reaches)) for held in stretches(slots)))


def joined(config: DecoderConfig, weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The weights with those of products of the same columns one above the other: fewer, larger products.

    Every function here takes either; a server joins them, training keeps the names of the file.
    """
    together = dict(weights)
    for layer in range(config.num_layers):
        for name, parts in JOINED.items():
            _join(together, f"model.layers.{layer}.{name}", [f"model.layers.{layer}.{part}" for part in parts])
    return together


def forward(config: DecoderConfig, weights: Weights, tokens: tf.Tensor, dropout: Dropout = tf.identity) -> tf.Tensor:
    """Logits of every position of a batch, without a cache.

    Args:
        config: sizes.
        weights: tensors by Hugging Face name.
        tokens: `[B, T]` int32.
        dropout: applied to the embeddings and to both branches of every layer.

    Returns:
        `[B, T, V]` float32.
    """
    num_rows, length = tf.shape(tokens)[0], tf.shape(tokens)[1]
    positions = tf.range(length)

    turns = rotary.turns(config, positions)  # [T, H/2] each
    visible = _visible(config, positions[:, tf.newaxis], positions)  # [T, T]

    def mix(layer: int, q: tf.Tensor, k: tf.Tensor, v: tf.Tensor) -> tf.Tensor:
        q, k, v = _heads(config, num_rows, turns, q, k, v)
        return _columns(attention.attend(q, [[k]], [[v]], visible[config.window(layer)]))

    x = dropout(_embed(config, weights, tokens, tf.broadcast_to(positions, tf.shape(tokens))))  # [D, M]
    for layer in range(config.num_layers):
        x = _block(config, weights, layer, x, mix, dropout)
    return tf.reshape(tf.transpose(head(config, weights, x)), (num_rows, length, config.vocab_size))


def prefill(
    config: DecoderConfig,
    weights: Weights,
    cache: Cache | Memory,
    tokens: tf.Tensor,
    slots: tf.Tensor,
    starts: tf.Tensor,
    lengths: tf.Tensor,
    context: int,
) -> tf.Tensor:
    """Run parts of the prompts of different slots and write their keys and values.

    A part may be padded at its end: what padding writes lies beyond the prompt, and
    is overwritten before any query may see it; what lies beyond the cache is not
    written.

    Args:
        config: sizes.
        weights: tensors by Hugging Face name.
        cache: updated in place at slots `slots[b]`, positions from `starts[b]` on; of one group.
        tokens: `[B, T]` int32, padded.
        slots: `[B]` int32, rows of the cache, all different.
        starts: `[B]` int32, position of `tokens[b, 0]`.
        lengths: `[B]` int32, number of real tokens.
        context: positions of the cache to read, at least `starts + lengths`: the end of
            one of its blocks, and a constant of the compiled function. A memory knows itself.

    Returns:
        `[D, B * T]`, every position's state before the output head.
    """
    num_tokens = tokens.shape[1]
    positions = starts[:, tf.newaxis] + tf.range(num_tokens)  # [B, T]
    if isinstance(cache, Memory):
        mix = _mix_in_memory(config, cache, positions, tf.stack([slots, starts, lengths], axis=1))
    else:
        mix = _mix_in_lanes(config, cache, slots, positions, context)
    x = _embed(config, weights, tokens, positions)  # [D, B * T]
    for layer in range(config.num_layers):
        x = _block(config, weights, layer, x, mix)
    return x


def decode(
    config: DecoderConfig,
    weights: Weights,
    cache: Cache | Memory,
    tokens: tf.Tensor,
    positions: tf.Tensor,
    context: int,
    num_columns: int | None = None,
    slots: tf.Tensor | None = None,
) -> tf.Tensor:
    """One step of `B` rows: write the new key and value, attend, return logits.

    In a cache they are the first slots, and one without a live sequence still writes at its
    position: give it the position that its prompt will write next, so that nothing live
    is harmed. In a memory such a row has no slot.

    Args:
        config: sizes.
        weights: tensors by Hugging Face name.
        cache: updated in place at `[b, :, positions[b]]`; a call that takes whole
            groups copies nothing.
        tokens: `[B]` int32, the token at `positions`; `B` at most the slots.
        positions: `[B]` int32, below `context`.
        context: positions of the cache to read: the end of one of its blocks, and a
            constant of the compiled function.
        num_columns: how many columns the products shall have, at least `B`; more
            are filled with what nobody reads.
        slots: `[B]` int32, in a memory the rows' slots, or -1.

    Returns:
        `[V, B]` float32.
    """
    num_rows = tokens.shape[0]
    weights = first_only(weights) if num_rows == 1 else weights
    padding = [[0, (num_columns or num_rows) - num_rows]]
    if isinstance(cache, Memory):
        assert slots is not None
        places = tf.stack([tf.maximum(slots, 0), positions, tf.cast(slots >= 0, tf.int32)], axis=1)
        mix = _mix_in_memory(config, cache, positions, places)
    else:
        mix = _mix_in_slots(config, cache, positions, context, padding)
    x = _embed(config, weights, tf.pad(tokens, padding), tf.pad(positions, padding))  # [D, M]
    for layer in range(config.num_layers):
        x = _block(config, weights, layer, x, mix)
    return head(config, weights, x)[:, :num_rows]


def head(config: DecoderConfig, weights: Weights, states: tf.Tensor) -> tf.Tensor:
    """Logits `[V, M]` float32 of the states `[D, M]` that `prefill` returns."""
    x = _norm(config, weights, "model.norm", states)
    name = "model.embed_tokens" if config.tie_embeddings else "lm_head"
    return tf.cast(linear(weights, name, x), tf.float32)


def _block(
    config: DecoderConfig,
    weights: Weights,
    layer: int,
    x: tf.Tensor,
    mix: Mix,
    dropout: Dropout = tf.identity,
) -> tf.Tensor:
    """One pre-norm layer over `[D, M]`; `mix` attends, and decides where keys and values live."""
    prefix = f"model.layers.{layer}."
    h = _norm(config, weights, prefix + "input_layernorm", x)
    q, k, v = _products(weights, prefix, "self_attn.qkv_proj", h, _head_sizes(config))
    if config.has_qk_norm:
        q = _norm_heads(config, weights, prefix + "self_attn.q_norm", q)
        k = _norm_heads(config, weights, prefix + "self_attn.k_norm", k)
    x = x + dropout(linear(weights, prefix + "self_attn.o_proj", mix(layer, q, k, v)))
    h = _norm(config, weights, prefix + "post_attention_layernorm", x)
    return x + dropout(linear(weights, prefix + "mlp.down_proj", _inner(config, weights, prefix, h)))


def _inner(config: DecoderConfig, weights: Weights, prefix: str, h: tf.Tensor) -> tf.Tensor:
    """The wide middle of the feed-forward layer, `[F, M]`, gated or not."""
    activate = ACTIVATIONS[config.activation]
    if not config.is_gated:
        return activate(linear(weights, prefix + "mlp.up_proj", h))
    gate, up = _products(weights, prefix, "mlp.gate_up_proj", h, [config.intermediate_size] * 2)
    return activate(gate) * up


def _join(weights: dict[str, np.ndarray], name: str, parts: list[str]) -> None:
    """Put parts into one in place; where one lacks what another has, they stay apart."""
    kinds = [kind for kind in ("weight", "scale", "bias") if any(f"{part}.{kind}" in weights for part in parts)]
    if all(f"{part}.{kind}" in weights for part in parts for kind in kinds):
        for kind in kinds:
            weights[f"{name}.{kind}"] = np.concatenate([weights.pop(f"{part}.{kind}") for part in parts])


def _products(weights: Weights, prefix: str, name: str, x: tf.Tensor, sizes: list[int]) -> list[tf.Tensor]:
    """The products that `JOINED` names, whether their weights are joined or not; `sizes` are their heights."""
    if f"{prefix}{name}.weight" in weights:
        parts: list[tf.Tensor] = tf.split(linear(weights, prefix + name, x), sizes)
        return parts
    return [linear(weights, prefix + part, x) for part in JOINED[name]]


def _head_sizes(config: DecoderConfig) -> list[int]:
    return [heads * config.head_dim for heads in (config.num_heads, config.num_kv_heads, config.num_kv_heads)]


def _embed(config: DecoderConfig, weights: Weights, tokens: tf.Tensor, positions: tf.Tensor) -> tf.Tensor:
    """States `[D, M]` of as many tokens at their positions, of equal shape."""
    x = lookup(weights, "model.embed_tokens", tf.reshape(tokens, (-1,)))
    if config.positions == "learned":
        x += lookup(weights, "model.embed_positions", tf.reshape(positions, (-1,)))
    return tf.transpose(x)


def _mix_in_memory(config: DecoderConfig, memory: Memory, positions: tf.Tensor, places: tf.Tensor) -> Mix:
    """Attention of rows at their `places` `[B, 3]`, as `Memory.attend` has them, and all their positions `[...]`."""
    if config.positions == "rotary":
        turns = tf.stack(rotary.turns(config, tf.reshape(positions, (-1,))))  # [2, M, H/2]
    else:  # nothing is turned
        shape = (tf.size(positions), config.head_dim // 2)
        turns = tf.stack([tf.ones(shape), tf.zeros(shape)])
    turns = tf.transpose(turns, (0, 2, 1))

    def mix(layer: int, q: tf.Tensor, k: tf.Tensor, v: tf.Tensor) -> tf.Tensor:
        return memory.attend(q, k, v, turns, places, layer, config.window(layer))

    return mix


def _mix_in_lanes(config: DecoderConfig, cache: Cache, slots: tf.Tensor, positions: tf.Tensor, context: int) -> Mix:
    """Attention of parts of prompts at positions `[B, T]`."""
    num_rows, num_tokens = positions.shape
    turns = rotary.turns(config, positions[:, tf.newaxis])  # [B, 1, T, H/2] each
    [group] = cache.groups
    visible = _visible(config, tf.reshape(positions, (num_rows, 1, num_tokens, 1)), tf.range(context))

    def mix(layer: int, q: tf.Tensor, k: tf.Tensor, v: tf.Tensor) -> tf.Tensor:
        q, k, v = _heads(config, num_rows, turns, q, k, v)
        _write(group, layer, slots, positions, context, k, v)
        keys, values = _kept(group, layer, context)
        # Gathered: for a slice XLA would compile anew for each value of its start.
        keys, values = [tf.gather(rows, slots) for rows in keys], [tf.gather(rows, slots) for rows in values]
        return _columns(attention.attend(q, [keys], [values], visible[config.window(layer)]))

    return mix


def _mix_in_slots(
    config: DecoderConfig,
    cache: Cache,
    positions: tf.Tensor,
    context: int,
    padding: list[list[int]],
) -> Mix:
    """Attention of one token of each of the first slots at positions `[B]`; `padding` columns mean nothing."""
    num_rows = positions.shape[0]
    queries = tf.reshape(positions, (num_rows, 1, 1, 1))
    turns = rotary.turns(config, queries[..., 0])  # [B, 1, 1, H/2] each
    visible = _visible(config, queries, tf.range(context))

    def mix(layer: int, q: tf.Tensor, k: tf.Tensor, v: tf.Tensor) -> tf.Tensor:
        q, k, v = _heads(config, num_rows, turns, q[:, :num_rows], k[:, :num_rows], v[:, :num_rows])
        keys, values = _remember(cache, layer, positions, context, k, v)
        mixed = _columns(attention.attend(q, keys, values, visible[config.window(layer)]))
        return tf.pad(mixed, [[0, 0], *padding]) if padding[0][1] else mixed

    return mix


def _remember(
    cache: Cache, layer: int, positions: tf.Tensor, context: int, k: tf.Tensor, v: tf.Tensor
) -> tuple[list[list[tf.Tensor]], list[list[tf.Tensor]]]:
    """Put keys and values `[B, G, 1, H]` of the first slots at their positions; gives all of theirs, in pieces."""
    keys, values = [], []
    for group in cache.groups:
        rows = slice(group.slots.start, min(group.slots.stop, k.shape[0]))
        count = rows.stop - rows.start
        if count <= 0:
            break
        _write(group, layer, tf.range(count), positions[rows, tf.newaxis], context, k[rows], v[rows])
        kept_keys, kept_values = _kept(group, layer, context)
        keys.append([_first(block, count) for block in kept_keys])
        values.append([_first(block, count) for block in kept_values])
    return keys, values


def _kept(group: Group, layer: int, context: int) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
    """A layer's keys and values `[slots, G, positions, H]`, by block."""
    blocks = group.read(context)
    keys, values = ([block.variables[2 * layer + part].value() for block in blocks] for part in (0, 1))
    return keys, values


def _write(
    group: Group, layer: int, slots: tf.Tensor, positions: tf.Tensor, context: int, k: tf.Tensor, v: tf.Tensor
) -> None:
    """Put keys and values `[B, G, T, H]` at slots `[B]` of the group and positions `[B, T]`.

    Each block drops what lies outside of it, as XLA's scatter does.
    """
    for block in group.read(context):
        where = _places(slots, positions - block.positions.start, k.shape[1])
        block.variables[2 * layer].scatter_nd_update(where, k)
        block.variables[2 * layer + 1].scatter_nd_update(where, v)


def _places(slots: tf.Tensor, positions: tf.Tensor, num_heads: int) -> tf.Tensor:
    """Where keys go in a block: `[B, G, T, 3]` of slots `[B]` and positions `[B, T]`."""
    num_rows, num_tokens = positions.shape
    shape = (num_rows, num_heads, num_tokens)
    parts = (slots[:, tf.newaxis, tf.newaxis], tf.range(num_heads)[:, tf.newaxis], positions[:, tf.newaxis])
    return tf.stack([tf.broadcast_to(part, shape) for part in parts], axis=-1)


def _first(rows: tf.Tensor, count: int) -> tf.Tensor:
    """The first rows; all of them without a slice, which would be a copy."""
    return rows if rows.shape[0] == count else rows[:count]


def _visible(config: DecoderConfig, queries: tf.Tensor, keys: tf.Tensor) -> dict[int | None, tf.Tensor]:
    """By a layer's window, which keys a query sees: none after it, and none further back; broadcasts."""
    causal = keys <= queries
    return {
        window: causal if window is None else causal & (keys > queries - window)
        for window in {config.window(layer) for layer in range(config.num_layers)}
    }


def _norm(config: DecoderConfig, weights: Weights, name: str, x: tf.Tensor) -> tf.Tensor:
    """RMSNorm or LayerNorm over the first axis of `[D, M]`, in float32 whatever the precision of `x`."""
    x32 = tf.cast(x, tf.float32)
    if config.norm == "layer":
        x32 -= _mean(x32)
    scale = tf.math.rsqrt(_mean(tf.square(x32)) + config.norm_eps)
    normed = tf.cast(x32 * scale, x.dtype) * tf.expand_dims(weights[name + ".weight"], 1)
    return normed + tf.expand_dims(weights[name + ".bias"], 1) if config.norm == "layer" else normed


def _norm_heads(config: DecoderConfig, weights: Weights, name: str, x: tf.Tensor) -> tf.Tensor:
    """RMSNorm of each head alone, `[heads * H, M]`."""
    apart = tf.reshape(x, (-1, config.head_dim, tf.shape(x)[1]))  # [heads, H, M]
    columns = tf.reshape(tf.transpose(apart, (1, 0, 2)), (config.head_dim, -1))
    normed = tf.reshape(_norm(config, weights, name, columns), (config.head_dim, -1, tf.shape(x)[1]))
    return tf.reshape(tf.transpose(normed, (1, 0, 2)), tf.shape(x))


def _mean(x: tf.Tensor) -> tf.Tensor:
    """Over the first axis, which stays."""
    return tf.reduce_mean(x, axis=0, keepdims=True)


def _heads(
    config: DecoderConfig, num_rows: int | tf.Tensor, turns: rotary.Turns, q: tf.Tensor, k: tf.Tensor, v: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Columns `[heads * H, B * T]` apart as `[B, heads, T, H]`, queries and keys turned to their positions."""
    q, k, v = (
        _split_heads(y, num_heads, num_rows)
        for y, num_heads in ((q, config.num_heads), (k, config.num_kv_heads), (v, config.num_kv_heads))
    )
    if config.positions == "rotary":
        q, k = rotary.rotate(q, turns), rotary.rotate(k, turns)
    return q, k, v


def _split_heads(x: tf.Tensor, num_heads: int, num_rows: int | tf.Tensor) -> tf.Tensor:
    """`[heads * H, B * T]` to `[B, heads, T, H]`."""
    apart = tf.reshape(x, (num_heads, x.shape[0] // num_heads, num_rows, -1))
    return tf.transpose(apart, (2, 0, 3, 1))


def _columns(x: tf.Tensor) -> tf.Tensor:
    """`[B, N, T, H]` to `[N * H, B * T]`."""
    return tf.reshape(tf.transpose(x, (1, 3, 0, 2)), (x.shape[1] * x.shape[3], -1))
