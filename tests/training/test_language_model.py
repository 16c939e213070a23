import math

import numpy as np
import pytest
import tensorflow as tf

from app.training.language_model import (
    END_OF_TEXT_ID,
    EVAL_BATCH,
    encode_documents,
    measure_stream,
    sample_windows,
)
from app.training.vocabulary import train_generation_tokenizer

TOKENIZER = train_generation_tokenizer(["abc"], 260)  # bytes and little more


def test_windows_enter_at_documents_and_inside_long_ones_only() -> None:
    stream = encode_documents(TOKENIZER, ["xy", "0123456789", "zz"], window=4)

    first_characters = {TOKENIZER.decode([stream.tokens[entry]]) for entry in stream.entries}

    # "zz" has fewer than four tokens left in the stream, and "789" are too near the document's end.
    assert first_characters == {"x", "0", "1", "2", "3", "4", "5", "6"}
    assert stream.num_characters == 3 + 11 + 3


def test_window_begins_with_the_end_of_text_and_targets_are_one_ahead() -> None:
    stream = encode_documents(TOKENIZER, ["0123456789"], window=4)

    inputs, targets = sample_windows(stream, batch=8, window=4, seed=0, step=0)

    assert (inputs[:, 0] == END_OF_TEXT_ID).all()
    np.testing.assert_array_equal(inputs[:, 1:], targets[:, :-1])


def test_batch_depends_on_seed_and_step_alone() -> None:
    stream = encode_documents(TOKENIZER, ["0123456789" * 9], window=4)

    def batch(seed: int, step: int) -> list[int]:
        return sample_windows(stream, 8, 4, seed, step)[1].ravel().tolist()

    assert batch(0, 5) == batch(0, 5)
    assert batch(0, 5) != batch(0, 6)
    assert batch(0, 5) != batch(1, 5)


@pytest.mark.parametrize("length", [1, 3, 4, 5, 8, 9, 70])
def test_every_token_is_scored_exactly_once(length: int) -> None:
    stream = encode_documents(TOKENIZER, ["a" * length], window=8)
    vocab_size = TOKENIZER.get_vocab_size()

    loss = measure_stream(lambda x: tf.zeros((EVAL_BATCH, 8, vocab_size)), stream, window=8)

    assert loss.total_nats == pytest.approx((length + 1) * math.log(vocab_size), rel=1e-5)
    assert loss.nats_per_character == pytest.approx(math.log(vocab_size), rel=1e-5)


def test_scored_token_sees_at_least_half_a_window() -> None:
    stream = encode_documents(TOKENIZER, ["0123456789abcdefghijklmnopqrstuvwxyz"], window=8)
    vocab_size = TOKENIZER.get_vocab_size()

    def copy_of_four_back(inputs: np.ndarray) -> tf.Tensor:
        """Sure of whatever stood four tokens before the target; a shift by four makes that right here."""
        shifted = np.roll(inputs, 3, axis=1)
        wanted = np.where(shifted == END_OF_TEXT_ID, 1, shifted) + 4
        return tf.one_hot(wanted, vocab_size) * 50

    loss = measure_stream(copy_of_four_back, stream, window=8)

    # Digits then letters: byte values jump once, and the first four have nothing to copy from.
    assert loss.total_nats < 14 * 50


def test_other_models_windows_begin_and_documents_end_with_their_own_tokens() -> None:
    stream = encode_documents(TOKENIZER, ["0123456789", "zz"], window=8, begin_id=5, end_id=7)
    seen: list[np.ndarray] = []

    def predict(inputs: np.ndarray) -> tf.Tensor:
        seen.append(inputs)
        return tf.zeros((*inputs.shape, TOKENIZER.get_vocab_size()))

    loss = measure_stream(predict, stream, window=8)

    assert END_OF_TEXT_ID not in stream.tokens
    assert [*stream.tokens[[0, 11, -1]]] == [7, 7, 7]
    assert all((inputs[:, 0] == 5).all() for inputs in seen)
    assert loss.num_tokens == len(stream.tokens) - 1


def test_batch_of_long_windows_has_fewer_rows() -> None:
    stream = encode_documents(TOKENIZER, ["0123456789" * 500], window=2048)
    shapes = set()

    def predict(inputs: np.ndarray) -> tf.Tensor:
        shapes.add(inputs.shape)
        return tf.zeros((*inputs.shape, 300))

    measure_stream(predict, stream, window=2048)

    assert shapes == {(2, 2048)}
