"""Training of a convolutional classifier: network, batches and logits."""

from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf
from tokenizers import Tokenizer

from app.modeling.encoder import PAD_ID, EncoderConfig, classify
from app.training.network import Network
from app.training.trainer import warm_up_then_decay

EVAL_BATCH = 256
EVAL_TOKENS = 2**15  # at most in a batch, padding included: attention over long texts fills a memory

Tokens = tuple[np.ndarray, np.ndarray]


def encode_texts(tokenizer: Tokenizer, texts: Sequence[str], context: int) -> Tokens:
    """Padded tokens `[N, context]` int32 and lengths `[N]` int32; for training, longer texts lose their end."""
    tokens = np.full((len(texts), context), PAD_ID, np.int32)
    lengths = np.zeros(len(texts), np.int32)
    for row, encoding in enumerate(tokenizer.encode_batch(list(texts))):
        ids = encoding.ids[:context]
        tokens[row, : len(ids)] = ids
        lengths[row] = len(ids)
    return tokens, lengths


def build_network(config: EncoderConfig, dropout: float, seed: int) -> Network:
    """A classifier to train: embeddings of standard deviation 0.1, matrices of 1 / sqrt(inputs)."""

    def scale(name: str, shape: tuple[int, ...]) -> float:
        return 0.1 if name.startswith("embeddings") else float(np.prod(shape[1:])) ** -0.5

    return Network(
        config.shapes,
        lambda weights, inputs, drop: classify(config, weights, inputs[0], inputs[1], drop),
        dropout=dropout,
        seed=seed,
        scale=scale,
    )


def build_optimizer(learning_rate: float, steps: int) -> keras.optimizers.Optimizer:
    """AdamW with a short linear warm-up and cosine decay to zero."""
    return keras.optimizers.AdamW(warm_up_then_decay(learning_rate, steps), weight_decay=0.01)


def sample_batch(
    data: Tokens, targets: np.ndarray, batch: int, token_dropout: float, seed: int, step: int
) -> tuple[Tokens, np.ndarray]:
    """The batch of a step: every epoch is one permutation, and each token is blanked with `token_dropout`.

    Args:
        data: tokens and lengths of the training set.
        targets: `[N, L]` float32, which labels hold.
        batch: rows.
        token_dropout: share of tokens that become PAD_ID.
        seed: of the run.
        step: from 0.
    """
    tokens, lengths = data
    per_epoch = max(1, len(tokens) // batch)
    epoch, place = divmod(step, per_epoch)
    order = np.random.default_rng((seed, epoch)).permutation(len(tokens))
    rows = order[place * batch : (place + 1) * batch]
    blank = np.random.default_rng((seed, epoch, place)).random((len(rows), tokens.shape[1])) < token_dropout
    return (np.where(blank, PAD_ID, tokens[rows]), lengths[rows]), targets[rows]


def predict_logits(predict: Callable[[Tokens], tf.Tensor], data: Tokens) -> np.ndarray:
    """Logits `[N, L]` of a whole set, in batches of one shape."""
    tokens, lengths = data
    num_rows = max(1, min(EVAL_BATCH, EVAL_TOKENS // tokens.shape[1]))
    padding = -len(tokens) % num_rows
    tokens = np.pad(tokens, ((0, padding), (0, 0)))
    lengths = np.pad(lengths, (0, padding), constant_values=1)
    pieces = [
        predict((tokens[start : start + num_rows], lengths[start : start + num_rows])).numpy()
        for start in range(0, len(tokens), num_rows)
    ]
    return np.concatenate(pieces)[: len(data[0])]


def fold_temperature(weights: dict[str, np.ndarray], temperature: float) -> dict[str, np.ndarray]:
    """Divide the output layer by the temperature, so that every reader gets calibrated scores."""
    folded = {name: weights[name] / np.float32(temperature) for name in ("classifier.weight", "classifier.bias")}
    return weights | folded
