import math

import numpy as np
import pytest

from app.training import baselines


def test_unigram_is_counted_by_hand() -> None:
    # 3 a and 1 b in 4 characters of 2 kinds: p(a) = (3 + 2 u) / 6, p(b) = (1 + 2 u) / 6 with u = 1/3.
    nats = baselines.ngram_nats_per_character("aaab", "ab", order=1)

    assert nats == pytest.approx(-(math.log((3 + 2 / 3) / 6) + math.log((1 + 2 / 3) / 6)) / 2)


def test_bigram_is_counted_by_hand() -> None:
    unigram = {"a": (2 + 2 / 3) / 6, "b": (2 + 2 / 3) / 6}
    # After "a" came b twice; after "b" came a once.
    after_a_b, after_b_a = (2 + 1 * unigram["b"]) / 3, (1 + 1 * unigram["a"]) / 2

    nats = baselines.ngram_nats_per_character("abab", "aba", order=2)

    assert nats == pytest.approx(-(math.log(unigram["a"]) + math.log(after_a_b) + math.log(after_b_a)) / 3)


def test_character_never_seen_costs_something_finite() -> None:
    assert math.isfinite(baselines.ngram_nats_per_character("aaa", "z", order=3))


def test_majority_is_that_of_training() -> None:
    train, test = np.eye(3)[[0, 0, 1]], np.eye(3)[[1, 1, 0, 2]]

    assert baselines.majority_accuracy(train, test) == 0.25


def test_labels_of_most_texts_are_the_commonest() -> None:
    targets = np.array([[1, 1, 0], [1, 0, 0], [0, 1, 1], [1, 0, 0]])

    assert baselines.commonest_labels(targets).tolist() == [True, True, False]


FILMS = ["good film", "good play", "bad film", "bad play"]


def test_linear_baseline_learns_words() -> None:
    found = baselines.linear_svm_predictions(FILMS, np.array([1, 1, 0, 0]), ["a good one", "a bad one"])

    assert found.tolist() == [1, 0]


def test_linear_baseline_learns_each_label_for_itself() -> None:
    targets = np.array([[1, 1, 0], [1, 0, 0], [0, 1, 0], [0, 0, 0]])

    found = baselines.linear_svm_predictions(FILMS, targets, ["good play", "bad film"])

    assert found.tolist() == [[1, 0, 0], [0, 1, 0]]
