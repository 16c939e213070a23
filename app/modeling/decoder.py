"""The decoder as pure functions over named weights: Llama and its kin, and GPT-2.

One definition serves training (`forward` over a whole batch) and serving
(`prefill` of one slot, `decode` of all slots against a key/value cache), so the
engine cannot drift from what was trained. Weights have the names of the Llama
layout, whatever their file calls them (`layouts.py`), and its order `[out, in]`,
which is also what XLA multiplies fastest.

It owns no variables and compiles nothing: callers wrap these functions in
`tf.function`. Biases are applied where the checkpoint has them.

Letters in shapes: `B` rows, `T` tokens, `S` cache length, `C` context read,
`N` query heads, `G` key/value heads, `H` head size, `D` width, `F` feed-forward
width, `V` vocabulary.

Sources: RMSNorm, Zhang & Sennrich 2019 eq. 4; LayerNorm, Ba et al. 2016 eq. 4;
SwiGLU, Shazeer 2020 sec. 2; grouped queries, Ainslie et al. 2023 sec. 2; windows,
Beltagy et al. 2020 sec. 3.1; GPT-2, Radford et al. 2019 sec. 2.3.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import tensorflow as tf

from app.modeling import attention, rotary
from app.modeling.decoder_config import DecoderConfig
from app.modeling.linear import Weights, linear

Dropout = Callable[[tf.Tensor], tf.Tensor]

ACTIVATIONS: Mapping[str, Callable[[tf.Tensor], tf.Tensor]] = {
    "silu": tf.nn.silu,
    "gelu_new": partial(tf.nn.gelu, approximate=True),
    "gelu_pytorch_tanh": partial(tf.nn.gelu, approximate=True),
}


@dataclass(frozen=True, slots=True)
class Cache:
    """Keys and values of every layer, each a variable `[B, G, S, H]` updated in place."""

    keys: tuple[tf.Variable, ...]
    values: tuple[tf.Variable, ...]

    @property
    def nbytes(self) -> int:
        """Device memory that all of it takes, bytes."""
        return sum(v.dtype.size * v.shape.num_elements() for v in (*self.keys, *self.values))


def init_cache(config: DecoderConfig, num_slots: int, cache_length: int, dtype: tf.DType = tf.float32) -> Cache:
    """Allocate `2 * num_layers` variables `[num_slots, G, cache_length, H]`, zeroed."""
    shape = (num_slots, config.num_kv_heads, cache_length, config.head_dim)

    def allocate() -> tuple[tf.Variable, ...]:
        return tuple(tf.Variable(tf.zeros(shape, dtype)) for _ in range(config.num_layers))

    return Cache(keys=allocate(), values=allocate())


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
    positions = tf.range(tf.shape(tokens)[1])
    angles = rotary.angles(config, positions)  # [T, H/2]

    def attend(layer: int, q: tf.Tensor, k: tf.Tensor, v: tf.Tensor) -> tf.Tensor:
        return attention.attend(q, k, v, _visible(config.window(layer), positions[:, tf.newaxis], positions))  # [T, T]

    x = dropout(_embed(config, weights, tokens, positions))  # [B, T, D]
    for layer in range(config.num_layers):
        x = _block(config, weights, layer, x, angles, attend, dropout)
    return _head(config, weights, x)


def prefill(
    config: DecoderConfig,
    weights: Weights,
    cache: Cache,
    tokens: tf.Tensor,
    slot: tf.Tensor,
    start: tf.Tensor,
    length: tf.Tensor,
    context: int | tf.Tensor,
) -> tf.Tensor:
    """Run one chunk of one prompt and write its keys and values into `slot`.

    The chunk may be padded at its end: what padding writes lies beyond the
    prompt, and is overwritten before any query may see it. `start + T` must not
    pass the cache's length.

    Args:
        config: sizes.
        weights: tensors by Hugging Face name.
        cache: updated in place at `[slot, :, start:start + T]`.
        tokens: `[1, T]` int32, padded.
        slot: `[]` int32, the row of the cache.
        start: `[]` int32, position of `tokens[0, 0]`.
        length: `[]` int32, number of real tokens in the chunk, at least 1.
        context: positions of the cache to read, at least `start + length`; a
            constant where XLA compiles the function, a tensor where it does not.

    Returns:
        `[1, V]` float32, the logits after the chunk's last real token.
    """
    x = prefill_states(config, weights, cache, tokens, slot, start, context)
    last = tf.gather(x, length - 1, axis=1)[:, tf.newaxis]  # [1, 1, D]
    return _head(config, weights, last)[:, 0]


def prefill_states(
    config: DecoderConfig,
    weights: Weights,
    cache: Cache,
    tokens: tf.Tensor,
    slot: tf.Tensor,
    start: tf.Tensor,
    context: int | tf.Tensor,
) -> tf.Tensor:
    """As `prefill`, but every position's state before the output head, `[1, T, D]`."""
    num_tokens = tf.shape(tokens)[1]
    positions = start + tf.range(num_tokens)  # [T]
    angles = rotary.angles(config, positions)
    heads = tf.range(config.num_kv_heads)
    where = tf.stack(
        [
            tf.fill((config.num_kv_heads, num_tokens), slot),
            tf.repeat(heads[:, tf.newaxis], num_tokens, axis=1),
            tf.repeat(positions[tf.newaxis, :], config.num_kv_heads, axis=0),
        ],
        axis=-1,
    )  # [G, T, 3]

    def attend(layer: int, q: tf.Tensor, k: tf.Tensor, v: tf.Tensor) -> tf.Tensor:
        cache.keys[layer].scatter_nd_update(where, k[0])
        cache.values[layer].scatter_nd_update(where, v[0])
        seen_k = tf.gather(cache.keys[layer], slot)[tf.newaxis, :, :context]  # [1, G, C, H]
        seen_v = tf.gather(cache.values[layer], slot)[tf.newaxis, :, :context]
        visible = _visible(config.window(layer), positions[:, tf.newaxis], tf.range(context))  # [T, C]
        return attention.attend(q, seen_k, seen_v, visible)

    x = _embed(config, weights, tokens, positions)  # [1, T, D]
    for layer in range(config.num_layers):
        x = _block(config, weights, layer, x, angles, attend)
    return x


def head(config: DecoderConfig, weights: Weights, states: tf.Tensor) -> tf.Tensor:
    """Logits `[B, T, V]` float32 of the states `[B, T, D]` that `prefill_states` returns."""
    return _head(config, weights, states)


def decode(
    config: DecoderConfig,
    weights: Weights,
    cache: Cache,
    tokens: tf.Tensor,
    positions: tf.Tensor,
    context: int,
) -> tf.Tensor:
    """One step of every slot: write the new key and value, attend, return logits.

    A row without a live sequence still writes at its position: give it the
    position that its prompt will write next, so that nothing live is harmed.

    Args:
        config: sizes.
        weights: tensors by Hugging Face name.
        cache: updated in place at `[b, :, positions[b]]`.
        tokens: `[B]` int32, the token at `positions`.
        positions: `[B]` int32, below `context`.
        context: positions of the cache to read (a constant of the compiled
            function).

    Returns:
        `[B, V]` float32.
    """
    num_rows = tokens.shape[0]
    angles = rotary.angles(config, positions)[:, tf.newaxis, tf.newaxis]  # [B, 1, 1, H/2]
    queries = tf.reshape(positions, (-1, 1, 1, 1, 1))
    rows, heads = tf.meshgrid(tf.range(num_rows), tf.range(config.num_kv_heads), indexing="ij")
    where = tf.stack([rows, heads, tf.repeat(positions[:, tf.newaxis], config.num_kv_heads, axis=1)], axis=-1)

    def attend(layer: int, q: tf.Tensor, k: tf.Tensor, v: tf.Tensor) -> tf.Tensor:
        cache.keys[layer].scatter_nd_update(where, k[:, :, 0])
        cache.values[layer].scatter_nd_update(where, v[:, :, 0])
        visible = _visible(config.window(layer), queries, tf.range(context))  # [B, 1, 1, 1, C]
        return attention.attend(q, cache.keys[layer][:, :, :context], cache.values[layer][:, :, :context], visible)

    x = _embed(config, weights, tokens, positions)[:, tf.newaxis]  # [B, 1, D]
    for layer in range(config.num_layers):
        x = _block(config, weights, layer, x, angles, attend)
    return _head(config, weights, x)[:, 0]


def _block(
    config: DecoderConfig,
    weights: Weights,
    layer: int,
    x: tf.Tensor,
    angles: tf.Tensor,
    attend: Callable[[int, tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor],
    dropout: Dropout = tf.identity,
) -> tf.Tensor:
    """One pre-norm layer over `[B, T, D]`; `attend` decides where keys and values live."""
    prefix = f"model.layers.{layer}."
    h = _norm(config, weights, prefix + "input_layernorm", x)
    q = _split_heads(linear(weights, prefix + "self_attn.q_proj", h), config.num_heads)
    k = _split_heads(linear(weights, prefix + "self_attn.k_proj", h), config.num_kv_heads)
    v = _split_heads(linear(weights, prefix + "self_attn.v_proj", h), config.num_kv_heads)
    if config.has_qk_norm:
        q, k = (_norm(config, weights, f"{prefix}self_attn.{name}_norm", y) for name, y in (("q", q), ("k", k)))
    if config.positions == "rotary":
        q, k = rotary.rotate(q, angles), rotary.rotate(k, angles)
    mixed = attend(layer, q, k, v)  # [B, T, N * H]
    x = x + dropout(linear(weights, prefix + "self_attn.o_proj", mixed))
    h = _norm(config, weights, prefix + "post_attention_layernorm", x)
    return x + dropout(linear(weights, prefix + "mlp.down_proj", _inner(config, weights, prefix, h)))


def _inner(config: DecoderConfig, weights: Weights, prefix: str, h: tf.Tensor) -> tf.Tensor:
    """The wide middle of the feed-forward layer, `[B, T, F]`, gated or not."""
    activate = ACTIVATIONS[config.activation]
    up = linear(weights, prefix + "mlp.up_proj", h)
    if not config.is_gated:
        return activate(up)
    return activate(linear(weights, prefix + "mlp.gate_proj", h)) * up


def _embed(config: DecoderConfig, weights: Weights, tokens: tf.Tensor, positions: tf.Tensor) -> tf.Tensor:
    """States `[..., D]` of tokens `[...]`; positions broadcast against them."""
    x = tf.gather(weights["model.embed_tokens.weight"], tokens)
    if config.positions == "learned":
        x += tf.gather(weights["model.embed_positions.weight"], positions)
    return x


def _visible(window: int | None, queries: tf.Tensor, keys: tf.Tensor) -> tf.Tensor:
    """Which keys a query sees: none after it, and none further back than the window; broadcasts."""
    visible = keys <= queries
    return visible if window is None else visible & (keys > queries - window)


def _head(config: DecoderConfig, weights: Weights, x: tf.Tensor) -> tf.Tensor:
    x = _norm(config, weights, "model.norm", x)
    name = "model.embed_tokens" if config.tie_embeddings else "lm_head"
    return tf.cast(linear(weights, name, x), tf.float32)


def _norm(config: DecoderConfig, weights: Weights, name: str, x: tf.Tensor) -> tf.Tensor:
    """RMSNorm or LayerNorm over the last axis, in float32 whatever the precision of `x`."""
    x32 = tf.cast(x, tf.float32)
    if config.norm == "layer":
        x32 -= tf.reduce_mean(x32, axis=-1, keepdims=True)
    scale = tf.math.rsqrt(tf.reduce_mean(tf.square(x32), axis=-1, keepdims=True) + config.norm_eps)
    normed = tf.cast(x32 * scale, x.dtype) * weights[name + ".weight"]
    return normed + weights[name + ".bias"] if config.norm == "layer" else normed


def _split_heads(x: tf.Tensor, num_heads: int) -> tf.Tensor:
    """`[B, T, N * H]` to `[B, N, T, H]`."""
    shape = tf.shape(x)
    return tf.transpose(tf.reshape(x, (shape[0], shape[1], num_heads, x.shape[-1] // num_heads)), (0, 2, 1, 3))
