"""The Llama-layout decoder as pure functions over Hugging Face weights.

One definition serves training (`forward` over a whole batch) and serving
(`prefill` of one slot, `decode` of all slots against a key/value cache), so the
engine cannot drift from what was trained. Weights keep their Hugging Face names
and layout `[out, in]`, which is also the layout that XLA multiplies fastest.

It owns no variables and compiles nothing: callers wrap these functions in
`tf.function`. Biases are applied where the checkpoint has them.

Letters in shapes: `B` rows, `T` tokens, `S` cache length, `C` context read,
`N` query heads, `G` key/value heads, `H` head size, `D` width, `F` feed-forward
width, `V` vocabulary.

Sources: RMSNorm, Zhang & Sennrich 2019 eq. 4; rotary positions, Su et al. 2021
sec. 3.4 in the half-split form of the published Llama weights; SwiGLU, Shazeer
2020 sec. 2; grouped queries, Ainslie et al. 2023 sec. 2.
"""

from collections.abc import Callable
from dataclasses import dataclass

import tensorflow as tf

from app.modeling import attention
from app.modeling.decoder_config import DecoderConfig
from app.modeling.linear import Weights, linear

Dropout = Callable[[tf.Tensor], tf.Tensor]


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
    length = tf.shape(tokens)[1]
    angles = _rotary_angles(config, tf.range(length))  # [T, H/2]
    visible = tf.linalg.band_part(tf.ones((length, length), tf.bool), -1, 0)  # [T, T]

    def attend(_: int, q: tf.Tensor, k: tf.Tensor, v: tf.Tensor) -> tf.Tensor:
        return attention.attend(q, k, v, visible)

    x = dropout(tf.gather(weights["model.embed_tokens.weight"], tokens))  # [B, T, D]
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
    angles = _rotary_angles(config, positions)
    visible = tf.range(context)[tf.newaxis, :] <= positions[:, tf.newaxis]  # [T, C]
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
        return attention.attend(q, seen_k, seen_v, visible)

    x = tf.gather(weights["model.embed_tokens.weight"], tokens)  # [1, T, D]
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
    angles = _rotary_angles(config, positions)[:, tf.newaxis, tf.newaxis]  # [B, 1, 1, H/2]
    visible = (tf.range(context)[tf.newaxis, :] <= positions[:, tf.newaxis])[:, tf.newaxis, tf.newaxis, tf.newaxis]
    rows, heads = tf.meshgrid(tf.range(num_rows), tf.range(config.num_kv_heads), indexing="ij")
    where = tf.stack([rows, heads, tf.repeat(positions[:, tf.newaxis], config.num_kv_heads, axis=1)], axis=-1)

    def attend(layer: int, q: tf.Tensor, k: tf.Tensor, v: tf.Tensor) -> tf.Tensor:
        cache.keys[layer].scatter_nd_update(where, k[:, :, 0])
        cache.values[layer].scatter_nd_update(where, v[:, :, 0])
        return attention.attend(q, cache.keys[layer][:, :, :context], cache.values[layer][:, :, :context], visible)

    x = tf.gather(weights["model.embed_tokens.weight"], tokens)[:, tf.newaxis]  # [B, 1, D]
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
    h = _rms_norm(x, weights[prefix + "input_layernorm.weight"], config.norm_eps)
    q = _split_heads(linear(weights, prefix + "self_attn.q_proj", h), config.num_heads)
    k = _split_heads(linear(weights, prefix + "self_attn.k_proj", h), config.num_kv_heads)
    v = _split_heads(linear(weights, prefix + "self_attn.v_proj", h), config.num_kv_heads)
    mixed = attend(layer, _rotate(q, angles), _rotate(k, angles), v)  # [B, T, N * H]
    x = x + dropout(linear(weights, prefix + "self_attn.o_proj", mixed))
    h = _rms_norm(x, weights[prefix + "post_attention_layernorm.weight"], config.norm_eps)
    gate = tf.nn.silu(linear(weights, prefix + "mlp.gate_proj", h))  # [B, T, F]
    up = linear(weights, prefix + "mlp.up_proj", h)
    return x + dropout(linear(weights, prefix + "mlp.down_proj", gate * up))


def _head(config: DecoderConfig, weights: Weights, x: tf.Tensor) -> tf.Tensor:
    x = _rms_norm(x, weights["model.norm.weight"], config.norm_eps)
    name = "model.embed_tokens" if config.tie_embeddings else "lm_head"
    return tf.cast(linear(weights, name, x), tf.float32)


def _rms_norm(x: tf.Tensor, weight: tf.Tensor, eps: float) -> tf.Tensor:
    x32 = tf.cast(x, tf.float32)
    scale = tf.math.rsqrt(tf.reduce_mean(tf.square(x32), axis=-1, keepdims=True) + eps)
    return tf.cast(x32 * scale, x.dtype) * weight


def _split_heads(x: tf.Tensor, num_heads: int) -> tf.Tensor:
    """`[B, T, N * H]` to `[B, N, T, H]`."""
    shape = tf.shape(x)
    return tf.transpose(tf.reshape(x, (shape[0], shape[1], num_heads, x.shape[-1] // num_heads)), (0, 2, 1, 3))


def _rotary_angles(config: DecoderConfig, positions: tf.Tensor) -> tf.Tensor:
    """Angles `[..., H/2]` of integer positions `[...]`."""
    exponents = tf.range(0, config.head_dim, 2, dtype=tf.float32) / config.head_dim
    return tf.cast(positions, tf.float32)[..., tf.newaxis] * tf.pow(config.rope_theta, -exponents)


def _rotate(x: tf.Tensor, angles: tf.Tensor) -> tf.Tensor:
    """Rotate `[B, N, T, H]` by angles that broadcast against `[B, N, T, H/2]`."""
    cos, sin = tf.cast(tf.cos(angles), x.dtype), tf.cast(tf.sin(angles), x.dtype)
    first, second = tf.split(x, 2, axis=-1)
    return tf.concat([first * cos - second * sin, second * cos + first * sin], axis=-1)
