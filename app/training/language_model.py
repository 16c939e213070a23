"""Training of a decoder, of either family: token streams, windows, and loss per character.

Documents are laid end to end with END_OF_TEXT before each. A window begins with
END_OF_TEXT and then enters the stream at the start of a document or, inside a
document longer than a window, anywhere; so a prompt that begins with
END_OF_TEXT, as the published tokenizer writes it, looks like what was trained.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf
from tokenizers import Tokenizer

from app.training.trainer import warm_up_then_decay

END_OF_TEXT_ID = 0
EVAL_BATCH = 16
EVAL_TOKENS = 4096  # at most in a batch, whose logits have to fit into memory for a large vocabulary too


@dataclass(frozen=True, slots=True)
class TokenStream:
    """Encoded documents.

    Attributes:
        tokens: `[length]` int32, END_OF_TEXT, or what ends a document, before every document and at the end.
        entries: positions in `tokens` where a window may enter.
        num_characters: of the documents, one separator each included.
        begin_id: what the model expects at the beginning of a window.
    """

    tokens: np.ndarray
    entries: np.ndarray
    num_characters: int
    begin_id: int = END_OF_TEXT_ID


def encode_documents(
    tokenizer: Tokenizer,
    documents: Sequence[str],
    window: int,
    begin_id: int = END_OF_TEXT_ID,
    end_id: int = END_OF_TEXT_ID,
) -> TokenStream:
    """Encode documents into one stream.

    Args:
        tokenizer: of the model.
        documents: cleaned texts.
        window: number of tokens that a window predicts.
        begin_id: stands before every window; that of models trained here by default.
        end_id: stands between documents.
    """
    encodings = tokenizer.encode_batch(list(documents), add_special_tokens=False)
    pieces, entries, length = [], [], 0
    for encoding in encodings:
        ids = np.array([end_id, *encoding.ids], np.int32)
        last_entry = max(0, len(ids) - 1 - window)
        entries.append(length + 1 + np.arange(last_entry + 1))
        pieces.append(ids)
        length += len(ids)
    pieces.append(np.array([end_id], np.int32))
    tokens, starts = np.concatenate(pieces), np.concatenate(entries)
    usable = starts[starts + window <= len(tokens)]
    return TokenStream(tokens, usable, sum(len(document) + 1 for document in documents), begin_id)


def sample_windows(stream: TokenStream, batch: int, window: int, seed: int, step: int) -> tuple[np.ndarray, np.ndarray]:
    """The batch of a step: inputs and targets, each `[batch, window]` int32."""
    rng = np.random.default_rng((seed, step))
    starts = rng.choice(stream.entries, batch)
    targets = stream.tokens[starts[:, np.newaxis] + np.arange(window)]
    first = np.full((batch, 1), stream.begin_id, np.int32)
    return np.concatenate([first, targets[:, :-1]], axis=1), targets


def build_optimizer(learning_rate: float, steps: int) -> keras.optimizers.Optimizer:
    """Muon for the matrices, AdamW for embeddings and norms (Keras), linear warm-up, cosine decay to zero."""
    return keras.optimizers.Muon(
        warm_up_then_decay(learning_rate, steps),
        weight_decay=0.1,
        adam_weight_decay=0.1,
        adam_beta_2=0.98,
        exclude_layers=["embed_tokens", "lm_head"],
    )


@dataclass(frozen=True, slots=True)
class StreamLoss:
    """Negative log-likelihood of a whole stream."""

    total_nats: float
    num_tokens: int
    num_characters: int

    @property
    def nats_per_character(self) -> float:
        """Comparable between tokenizers, unlike the loss of a token."""
        return self.total_nats / self.num_characters

    @property
    def nats_per_token(self) -> float:
        """The natural logarithm of the perplexity."""
        return self.total_nats / self.num_tokens


def measure_stream(predict: Callable[[np.ndarray], tf.Tensor], stream: TokenStream, window: int) -> StreamLoss:
    """Score every token once, each with at least half a window of context where there is any.

    Windows overlap by half; the first half of a window is context only, except
    at the beginning of the stream.

    Args:
        predict: maps tokens `[B, window]` int32 to logits `[B, window, V]`; every batch has as many rows.
        stream: what to score.
        window: tokens that the model sees at once.
    """
    half = window // 2
    num_rows = max(1, min(EVAL_BATCH, EVAL_TOKENS // window))
    starts = range(0, len(stream.tokens) - 1, half)
    total = 0.0
    for first in range(0, len(starts), num_rows):
        inputs, targets, weight = _eval_batch(stream, starts[first : first + num_rows], window, num_rows)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=targets, logits=predict(inputs))
        total += float(tf.reduce_sum(losses * weight))
    return StreamLoss(total, len(stream.tokens) - 1, stream.num_characters)


def _eval_batch(
    stream: TokenStream, starts: range, window: int, num_rows: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs, targets and which of them count, each `[num_rows, window]`."""
    half, targets = window // 2, stream.tokens[1:]
    inputs = np.full((num_rows, window), stream.begin_id, np.int32)
    wanted = np.zeros((num_rows, window), np.int32)
    weight = np.zeros((num_rows, window), np.float32)
    for row, first_scored in enumerate(starts):
        start = max(0, first_scored - half)
        piece = targets[start : first_scored + half]
        wanted[row, : len(piece)] = piece
        inputs[row, 1 : len(piece)] = piece[:-1]
        weight[row, first_scored - start : len(piece)] = 1.0
    return inputs, wanted, weight
