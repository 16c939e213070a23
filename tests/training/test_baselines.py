import math

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
    assert baselines.majority_accuracy(["a", "a", "b"], ["b", "b", "a", "c"]) == 0.25


def test_linear_baseline_learns_words() -> None:
    train = [("good film", "yes"), ("good play", "yes"), ("bad film", "no"), ("bad play", "no")]

    assert baselines.linear_svm_predictions(train, ["a good one", "a bad one"]) == ["yes", "no"]
