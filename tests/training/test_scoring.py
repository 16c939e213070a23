import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.training.scoring import (
    OneLabel,
    SeveralLabels,
    abstention,
    calibration_error,
    fit_temperature,
    fit_thresholds,
    sigmoid,
)

HALVES = SeveralLabels((0.5,) * 4)


def log_odds(*probabilities: float) -> np.ndarray:
    return np.asarray(np.log(probabilities) - np.log1p(-np.array(probabilities)))


def test_temperature_undoes_overconfidence() -> None:
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 4, 4000)
    targets = np.eye(4)[classes]
    honest = rng.normal(0, 1, (4000, 4)) + targets  # log-odds of Gaussians: calibrated as they are

    assert fit_temperature(OneLabel(), honest * 3.0, targets) == pytest.approx(3.0, rel=0.1)
    before, after = OneLabel().metrics(honest * 3.0, targets), OneLabel().metrics(honest, targets)
    assert after["calibration_error"] < before["calibration_error"] / 3
    assert after["accuracy"] == before["accuracy"]


def test_temperature_undoes_overconfidence_of_each_label_too() -> None:
    rng = np.random.default_rng(0)
    honest = rng.normal(0, 2, (4000, 4))
    targets = (rng.random((4000, 4)) < sigmoid(honest)).astype(np.float32)

    assert fit_temperature(HALVES, honest * 3.0, targets) == pytest.approx(3.0, rel=0.1)
    before, after = HALVES.metrics(honest * 3.0, targets), HALVES.metrics(honest, targets)
    assert after["calibration_error"] < before["calibration_error"] / 3


def test_calibration_error_is_counted_by_hand() -> None:
    # Three answers of 0.9 of which two are right, one of 0.5 that is: (3 * |2/3 - 0.9| + |1 - 0.5|) / 4.
    found = calibration_error(np.array([0.9, 0.9, 0.9, 0.5]), np.array([1, 1, 0, 1]))

    assert found == pytest.approx((3 * (0.9 - 2 / 3) + 0.5) / 4)


def test_sets_of_labels_are_counted_by_hand() -> None:
    logits = np.stack([log_odds(0.9, 0.4), log_odds(0.2, 0.8)])
    targets = np.array([[1, 1], [0, 1]], np.float32)

    found = SeveralLabels((0.5, 0.5)).metrics(logits, targets)
    lower = SeveralLabels((0.5, 0.3)).metrics(logits, targets)

    assert (found["accuracy"], found["micro_f1"], found["macro_f1"]) == (0.5, 0.8, round((1 + 2 / 3) / 2, 4))
    assert found["cross_entropy"] == round(-np.log([0.9, 0.4, 0.8, 0.8]).mean(), 4)
    assert (lower["accuracy"], lower["micro_f1"]) == (1.0, 1.0)


def test_threshold_lies_between_what_should_hold_and_what_should_not() -> None:
    logits = np.stack([log_odds(0.3, 0.9), log_odds(0.2, 0.7), log_odds(0.1, 0.6)])
    targets = np.array([[1, 1], [1, 0], [0, 0]], np.float32)

    assert fit_thresholds(logits, targets) == pytest.approx((0.15, 0.8), abs=1e-4)


def test_label_that_never_holds_keeps_the_usual_threshold_and_one_that_always_does_gets_a_low_one() -> None:
    logits = np.stack([log_odds(0.3, 0.4), log_odds(0.6, 0.8)])

    assert fit_thresholds(logits, np.array([[0, 1], [0, 1]], np.float32)) == pytest.approx((0.5, 0.2), abs=1e-4)


@given(st.lists(st.tuples(st.integers(1, 99), st.booleans()), min_size=1, max_size=30))
def test_no_other_threshold_has_a_higher_f1(column: list[tuple[int, bool]]) -> None:
    scores = np.array([score / 100 for score, _ in column])
    truths = np.array([truth for _, truth in column], np.float32)[:, np.newaxis]

    def f1(threshold: float) -> float:
        holds = scores >= threshold
        return float(2 * (holds * truths[:, 0]).sum() / max(1, holds.sum() + truths.sum()))

    (found,) = fit_thresholds(log_odds(*scores)[:, np.newaxis], truths)

    if truths.any():
        assert f1(found) == pytest.approx(max(f1(at / 200) for at in range(201)))


@pytest.mark.parametrize("logit", [-1000.0, 0.0, 1000.0])
def test_extreme_logits_neither_overflow_nor_vanish(logit: float) -> None:
    metrics = SeveralLabels((0.5,)).metrics(np.array([[logit]], np.float32), np.ones((1, 1), np.float32))

    assert np.isfinite(metrics["cross_entropy"])


def test_abstaining_trades_answers_for_right_ones() -> None:
    logits = np.log([[0.95, 0.05], [0.6, 0.4], [0.8, 0.2]])
    targets = np.array([[1, 0], [0, 1], [1, 0]], np.float32)

    rows = {row["abstain_below"]: row for row in abstention(OneLabel(), logits, targets)}

    assert rows[0.5] == {"abstain_below": 0.5, "answered": 1.0, "accuracy": round(2 / 3, 4)}
    assert rows[0.7] == {"abstain_below": 0.7, "answered": round(2 / 3, 4), "accuracy": 1.0}
    assert abstention(OneLabel(), np.zeros((1, 2)), targets[:1])[-1]["accuracy"] is None
