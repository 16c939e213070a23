"""BERT, DistilBERT and RoBERTa encoders: scores of a text's labels, or its embedding.

Post-norm layers over learned positions, as `BertConfig` describes them. Shapes are
static: the engine compiles one function for each of its batches. Where only the
first token's state is wanted, the last layer computes no other.

Weights keep the layout `[out, in]` of the files. So, and only so, are a row's bits
the same whatever the number of rows, as long as there are `MIN_ROWS`.

Letters: `B` texts, `T` tokens, `N` heads, `H` head size, `D` width, `L` labels.

Sources: Devlin et al. 2019; Sanh et al. 2019; Liu et al. 2019; pooling as Reimers
and Gurevych 2019, sec. 3. GELU: Hendrycks and Gimpel 2016, sec. 2, exact and
approximate (`gelu_new`).
"""

from collections.abc import Callable, Mapping

import numpy as np
import tensorflow as tf

from app.modeling.attention import MASKED
from app.modeling.bert_config import BertConfig
from app.modeling.linear import Weights

# Products of fewer rows take other ways through the libraries, with other roundings.
MIN_ROWS = 16
# As PyTorch's, for a vector of zeros.
LEAST_NORM = 1e-12

ACTIVATIONS: Mapping[str, Callable[[tf.Tensor], tf.Tensor]] = {
    "gelu": lambda x: tf.nn.gelu(x, approximate=False),
    "gelu_new": lambda x: tf.nn.gelu(x, approximate=True),
    "relu": tf.nn.relu,
    "tanh": tf.tanh,
}


def prepare(config: BertConfig, weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The weights as the graph wants them: query, key and value joined, token types added to positions."""
    positions = weights["embeddings.position_embeddings.weight"][config.first_position :]
    if config.num_token_types:
        positions = positions + weights["embeddings.token_type_embeddings.weight"][0]
    prepared = {"tokens": weights["embeddings.word_embeddings.weight"], "positions": positions}
    prepared |= {name: value for name, value in weights.items() if "LayerNorm" in name}
    for i in range(config.num_layers):
        at = f"layers.{i}."
        parts = [f"{at}attention.self.{part}" for part in ("query", "key", "value")]
        for kind in (".weight", ".bias"):
            prepared[f"{at}attention.qkv{kind}"] = np.concatenate([weights[part + kind] for part in parts])
    prepared |= {name: value for name, value in weights.items() if ".dense." in name or name.startswith("head.")}
    return prepared


def scores(config: BertConfig, weights: Weights, tokens: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
    """`[B, L]` probabilities: over all labels, or of a multi-label model each label's own."""
    logits = classify(config, weights, tokens, lengths)
    if config.is_multi_label:
        return tf.sigmoid(logits)
    powers = tf.exp(logits - tf.reduce_max(logits, axis=-1, keepdims=True))
    return powers / _sum(powers)


def classify(config: BertConfig, weights: Weights, tokens: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
    """Logits `[B, L]`; arguments as of `embed`."""
    first = _encode(config, weights, tokens, lengths, only_first=True)
    first = ACTIVATIONS[config.head_activation](_linear(weights, "head.dense", first))
    return _linear(weights, "head.out", first)[: tokens.shape[0]]


def embed(config: BertConfig, weights: Weights, tokens: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
    """Embeddings `[B, D]`. A row does not depend on the others.

    Args:
        config: sizes.
        weights: what `prepare` gave.
        tokens: `[B, T]` int32, of static shape, padded with anything after `lengths`.
        lengths: `[B]` int32, at least 1.
    """
    num_rows, length = tokens.shape
    if config.pooling == "cls":
        pooled = _encode(config, weights, tokens, lengths, only_first=True)[:num_rows]
    else:
        states = tf.reshape(_encode(config, weights, tokens, lengths), (num_rows, length, -1))
        real = tf.cast(tf.range(length) < lengths[:, tf.newaxis], tf.float32)[..., tf.newaxis]  # [B, T, 1]
        pooled = tf.reduce_sum(states * real, axis=1) / tf.reduce_sum(real, axis=1)
    if config.normalizes:
        pooled /= tf.maximum(tf.norm(pooled, axis=-1, keepdims=True), LEAST_NORM)
    return pooled


def _encode(
    config: BertConfig, weights: Weights, tokens: tf.Tensor, lengths: tf.Tensor, *, only_first: bool = False
) -> tf.Tensor:
    """States `[B * T, D]`; or of the first tokens alone, with rows of no meaning behind, `[max(B, MIN_ROWS), D]`."""
    num_rows, length = tokens.shape
    x = tf.gather(weights["tokens"], tokens) + weights["positions"][:length]  # [B, T, D]
    x = _norm(config, weights, "embeddings.LayerNorm", tf.reshape(x, (-1, config.hidden_size)))
    hidden = tf.where(tf.range(length) < lengths[:, tf.newaxis], 0.0, MASKED)[:, tf.newaxis, tf.newaxis]  # [B, 1, 1, T]
    for i in range(config.num_layers):
        at = f"layers.{i}."
        qkv = _linear(weights, at + "attention.qkv", x)
        qkv = tf.reshape(qkv, (num_rows, length, 3, config.num_heads, -1))
        q, k, v = tf.unstack(tf.transpose(qkv, (2, 0, 3, 1, 4)))  # [B, N, T, H]
        if only_first and i == config.num_layers - 1:
            first = tf.reshape(x, (num_rows, length, -1))[:, 0]
            mixed = tf.reshape(_attend(q[:, :, :1], k, v, hidden), (-1, config.hidden_size))
            return _rest(config, weights, at, _enough(first), _enough(mixed))
        mixed = tf.reshape(_attend(q, k, v, hidden), (-1, config.hidden_size))
        x = _rest(config, weights, at, x, mixed)
    return x


def _attend(q: tf.Tensor, k: tf.Tensor, v: tf.Tensor, hidden: tf.Tensor) -> tf.Tensor:
    """`[B, T, N, H]` of `[B, N, T, H]`."""
    similar = tf.matmul(q, k, transpose_b=True) * q.shape[-1] ** -0.5 + hidden  # [B, N, T, T]
    powers = tf.exp(similar - tf.reduce_max(similar, axis=-1, keepdims=True))
    mixed = tf.matmul(powers, v) / _sum(powers)
    return tf.transpose(mixed, (0, 2, 1, 3))


def _rest(config: BertConfig, weights: Weights, at: str, x: tf.Tensor, mixed: tf.Tensor) -> tf.Tensor:
    """A layer from its attention's output on, `[rows, D]`."""
    x = _norm(
        config, weights, at + "attention.output.LayerNorm", x + _linear(weights, at + "attention.output.dense", mixed)
    )
    inner = ACTIVATIONS[config.activation](_linear(weights, at + "intermediate.dense", x))
    return _norm(config, weights, at + "output.LayerNorm", x + _linear(weights, at + "output.dense", inner))


def _enough(x: tf.Tensor) -> tf.Tensor:
    """At least `MIN_ROWS` rows, with zeros."""
    return tf.pad(x, [[0, max(0, MIN_ROWS - x.shape[0])], [0, 0]])


def _linear(weights: Weights, name: str, x: tf.Tensor) -> tf.Tensor:
    return tf.matmul(x, weights[name + ".weight"], transpose_b=True) + weights[name + ".bias"]


def _sum(x: tf.Tensor) -> tf.Tensor:
    """Over the last axis, which stays, as a product: its order of adding is the same for any number of rows."""
    flat = tf.reshape(x, (-1, x.shape[-1]))
    sums = tf.matmul(_enough(flat), tf.ones((MIN_ROWS, x.shape[-1])), transpose_b=True)
    return tf.reshape(sums[: flat.shape[0], 0], (*x.shape[:-1], 1))


def _norm(config: BertConfig, weights: Weights, name: str, x: tf.Tensor) -> tf.Tensor:
    centred = x - _sum(x) / x.shape[-1]
    scale = tf.math.rsqrt(_sum(tf.square(centred)) / x.shape[-1] + config.norm_eps)
    return centred * scale * weights[name + ".weight"] + weights[name + ".bias"]
