"""The classifier that Tollgate trains: a convolutional text encoder, as pure functions over named weights.

Chosen by measurement over a bag of n-grams and a linear SVM (see
docs/experiments.md): on short texts with some hundred examples a label it is
both the most accurate and the smallest. One definition serves training and the
engine.

Letters in shapes: `B` rows, `T` tokens, `D` embedding width, `F` filters of one
kernel size, `K` kernel size, `L` labels, `V` vocabulary.

Source: Kim 2014, "Convolutional Neural Networks for Sentence Classification",
sec. 2, with windows that reach over both ends of the text (wide convolution,
Kalchbrenner et al. 2014, sec. 3.1).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from app.errors import ModelFormatError
from app.modeling.bert_config import MULTI_LABEL
from app.modeling.labels import THRESHOLDS, read_labels, read_thresholds

PAD_ID = 0
# A single text's products take other ways through the libraries, with other roundings.
MIN_ROWS = 2
# A multiple of the numbers that any processor computes at once.
REGISTER = 16


@dataclass(frozen=True, slots=True)
class EncoderConfig:
    """The sizes of a convolutional encoder and its labels, in the order of the scores.

    Attributes:
        thresholds: from which probability on each label holds, where any number of
            them may; empty where exactly one does.
    """

    vocab_size: int
    hidden_size: int
    num_filters: int
    kernel_sizes: tuple[int, ...]
    context_length: int
    labels: tuple[str, ...]
    thresholds: tuple[float, ...] = ()

    @property
    def is_multi_label(self) -> bool:
        """Whether each label has a probability of its own, and a threshold from which on it holds."""
        return bool(self.thresholds)

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "EncoderConfig":
        """Read a `config.json` that `to_hf` wrote.

        Raises:
            ModelFormatError: a field is missing.
        """
        try:
            labels = read_labels(config)
            return cls(
                vocab_size=int(config["vocab_size"]),
                hidden_size=int(config["hidden_size"]),
                num_filters=int(config["num_filters"]),
                kernel_sizes=tuple(int(size) for size in config["kernel_sizes"]),
                context_length=int(config["max_position_embeddings"]),
                labels=labels,
                thresholds=read_thresholds(config, labels) if config.get("problem_type") == MULTI_LABEL else (),
            )
        except KeyError as missing:
            raise ModelFormatError(f"config.json has no field {missing}") from None

    def to_hf(self) -> dict[str, Any]:
        """The `config.json` of a published model."""
        return {
            "architectures": ["TextCnnForSequenceClassification"],
            "model_type": "textcnn",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "num_filters": self.num_filters,
            "kernel_sizes": list(self.kernel_sizes),
            "max_position_embeddings": self.context_length,
            "pad_token_id": PAD_ID,
            "id2label": {str(i): label for i, label in enumerate(self.labels)},
            "label2id": {label: i for i, label in enumerate(self.labels)},
            "torch_dtype": "float32",
        } | (self._multi_label_fields if self.is_multi_label else {})

    @property
    def _multi_label_fields(self) -> dict[str, Any]:
        by_label = dict(zip(self.labels, self.thresholds, strict=True))
        return {"problem_type": MULTI_LABEL, THRESHOLDS: by_label}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor with its shape; convolutions are `[F, D, K]`, as PyTorch stores them."""
        shapes: dict[str, tuple[int, ...]] = {"embeddings.weight": (self.vocab_size, self.hidden_size)}
        for size in self.kernel_sizes:
            shapes[f"convolutions.{size}.weight"] = (self.num_filters, self.hidden_size, size)
            shapes[f"convolutions.{size}.bias"] = (self.num_filters,)
        shapes["classifier.weight"] = (len(self.labels), self.num_filters * len(self.kernel_sizes))
        shapes["classifier.bias"] = (len(self.labels),)
        return shapes


def classify(
    config: EncoderConfig,
    weights: Mapping[str, Any],
    tokens: tf.Tensor,
    lengths: tf.Tensor,
    dropout: Callable[[tf.Tensor], tf.Tensor] = tf.identity,
) -> tf.Tensor:
    """Logits of every label. A row's result depends neither on how far it is padded nor on the others.

    Each text is a product of its own, because in one of all texts together a row's last
    bits depend on its place.

    Args:
        config: sizes.
        weights: tensors by name.
        tokens: `[B, T]` int32, padded with anything after `lengths`; PAD_ID
            inside a text stands for a blank.
        lengths: `[B]` int32.
        dropout: applied to the embeddings and to the pooled features.

    Returns:
        `[B, L]` float32; a softmax over L makes scores of them.
    """
    num_rows = tf.shape(tokens)[0]
    missing = [[0, tf.maximum(0, MIN_ROWS - num_rows)]]
    tokens, lengths = tf.pad(tokens, [*missing, [0, 0]]), tf.pad(lengths, missing)
    real = (tf.range(tf.shape(tokens)[1]) < lengths[:, tf.newaxis]) & (tokens != PAD_ID)
    x = tf.gather(weights["embeddings.weight"], tokens) * tf.cast(real, tf.float32)[..., tf.newaxis]
    x = dropout(x)  # [B, T, D]
    pooled = [_strongest(weights, size, x, lengths) for size in config.kernel_sizes]
    features = dropout(tf.concat(pooled, axis=-1))  # [B, F * kernel sizes]
    logits = tf.matmul(features[:, tf.newaxis], weights["classifier.weight"][tf.newaxis], transpose_b=True)[:, 0]
    return (logits + weights["classifier.bias"])[:num_rows]


def scores(config: EncoderConfig, weights: Mapping[str, Any], tokens: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
    """`[B, L]` probabilities: over all labels, or of a multi-label model each label's own."""
    logits = classify(config, weights, tokens, lengths)
    num_rows = tf.shape(logits)[0]
    # Whole registers only: the rest of an array goes through other code, with other roundings.
    logits = tf.pad(logits, [[0, -num_rows % REGISTER], [0, 0]])
    if config.is_multi_label:
        return tf.sigmoid(logits)[:num_rows]
    powers = tf.exp(logits - tf.reduce_max(logits, axis=-1, keepdims=True))
    total = tf.matmul(powers[:, tf.newaxis], tf.ones((1, len(config.labels), 1)))[:, 0]  # [B, 1]
    return (powers / total)[:num_rows]


def _strongest(weights: Mapping[str, Any], size: int, x: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
    """The strongest response of every filter over the windows that touch the text, `[B, F]`."""
    kernel = tf.transpose(weights[f"convolutions.{size}.weight"], (2, 1, 0))  # [K, D, F]
    flat = tf.reshape(kernel, (1, -1, kernel.shape[2]))  # [1, K * D, F]
    wide = tf.pad(x, [[0, 0], [size - 1, size - 1], [0, 0]])
    num_windows = tf.shape(x)[1] + size - 1
    windows = tf.concat([wide[:, at : at + num_windows] for at in range(size)], axis=-1)  # [B, T + K - 1, K * D]
    response = tf.nn.relu(tf.matmul(windows, flat) + weights[f"convolutions.{size}.bias"])
    touches = tf.range(tf.shape(response)[1]) < lengths[:, tf.newaxis] + size - 1
    return tf.reduce_max(response * tf.cast(touches, tf.float32)[..., tf.newaxis], axis=1)
