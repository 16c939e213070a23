"""How a classifier is judged and calibrated, where exactly one label holds and where any number of them may.

Letters in shapes: `N` texts, `L` labels. Truths are `[N, L]` float32 of zeros and ones.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar

from app.modeling.labels import DEFAULT_THRESHOLD

CALIBRATION_BINS = 15  # as Guo et al. 2017, sec. 4
ABSTAIN_BELOW = (0.3, 0.5, 0.7, 0.9)


@dataclass(frozen=True, slots=True)
class OneLabel:
    """Scores of all labels of a text sum to 1; the best one is the answer."""

    def loss(self, logits: np.ndarray, targets: np.ndarray) -> float:
        """Mean negative log-likelihood of a text's label, nats."""
        return float(-np.mean(np.log((softmax(logits) * targets).sum(axis=-1) + 1e-12)))

    def metrics(self, logits: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        """Accuracy, macro-averaged F1, expected calibration error of the answers, and loss."""
        confidence, right = self.answers(logits, targets)
        return {
            **label_metrics(logits.argmax(axis=1), targets.argmax(axis=1)),
            "calibration_error": round(calibration_error(confidence, right), 4),
            "cross_entropy": round(self.loss(logits, targets), 4),
        }

    def answers(self, logits: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Score of the answer and whether it is right, each `[N]`."""
        return softmax(logits).max(axis=1), logits.argmax(axis=1) == targets.argmax(axis=1)


@dataclass(frozen=True, slots=True)
class SeveralLabels:
    """Each label has a probability of its own, and holds from its threshold on."""

    thresholds: tuple[float, ...]

    def loss(self, logits: np.ndarray, targets: np.ndarray) -> float:
        """Mean negative log-likelihood of a label of a text, nats."""
        return float(np.mean(np.logaddexp(0.0, logits) - targets * logits))

    def metrics(self, logits: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        """Share of texts with all labels right, F1 over all and averaged over labels, calibration error, loss."""
        scores = sigmoid(logits)
        return {
            **set_metrics(scores >= self.thresholds, targets),
            "calibration_error": round(calibration_error(scores.ravel(), targets.ravel()), 4),
            "cross_entropy": round(self.loss(logits, targets), 4),
        }

    def answers(self, logits: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Score of the likeliest label and whether all labels are right, each `[N]`."""
        scores = sigmoid(logits)
        return scores.max(axis=1), ((scores >= self.thresholds) == (targets > 0)).all(axis=1)


Scoring = OneLabel | SeveralLabels


def fit_temperature(scoring: Scoring, logits: np.ndarray, targets: np.ndarray) -> float:
    """The temperature `t` that minimises the loss of `logits / t` (Guo et al. 2017, sec. 4.2).

    Args:
        scoring: whose loss.
        logits: `[N, L]` of the development set.
        targets: its truths.
    """
    found = minimize_scalar(
        lambda log_t: scoring.loss(logits / np.exp(log_t), targets), bounds=(-3.0, 3.0), method="bounded"
    )
    return float(np.exp(found.x))


def fit_thresholds(logits: np.ndarray, targets: np.ndarray) -> tuple[float, ...]:
    """For each label the probability from which on its F1 is highest (Lipton et al. 2014, sec. 3).

    Args:
        logits: `[N, L]` of the development set, calibrated.
        targets: its truths; a label that never holds there has `DEFAULT_THRESHOLD`.
    """
    return tuple(_best_threshold(*column) for column in zip(sigmoid(logits).T, targets.T, strict=True))


def abstention(scoring: Scoring, logits: np.ndarray, targets: np.ndarray) -> list[dict[str, float | None]]:
    """What some values of `abstain_below` buy: the share of texts that get an answer, and how many are right.

    Args:
        scoring: of the model.
        logits: `[N, L]` of the test set, calibrated.
        targets: its truths.
    """
    confidence, right = scoring.answers(logits, targets)
    rows: list[dict[str, float | None]] = []
    for least in ABSTAIN_BELOW:
        answered = confidence >= least
        accuracy = round(float(right[answered].mean()), 4) if answered.any() else None
        rows.append({"abstain_below": least, "answered": round(float(answered.mean()), 4), "accuracy": accuracy})
    return rows


def label_metrics(predicted: np.ndarray, classes: np.ndarray) -> dict[str, float]:
    """Accuracy and macro-averaged F1 of predicted classes `[N]`."""
    from sklearn.metrics import f1_score

    return {
        "accuracy": round(float(np.mean(predicted == classes)), 4),
        "macro_f1": round(float(f1_score(classes, predicted, average="macro", zero_division=0.0)), 4),
    }


def set_metrics(predicted: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """Share of texts with all labels right, and F1 both ways, of predictions `[N, L]`."""
    from sklearn.metrics import f1_score

    predicted, truths = predicted.astype(np.int8), targets.astype(np.int8)
    return {
        "accuracy": round(float(np.mean((predicted == truths).all(axis=1))), 4),
        "micro_f1": round(float(f1_score(truths, predicted, average="micro", zero_division=0.0)), 4),
        "macro_f1": round(float(f1_score(truths, predicted, average="macro", zero_division=0.0)), 4),
    }


def calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """Expected calibration error over equal bins of confidence (Guo et al. 2017, eq. 3), both `[N]`."""
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gaps = (abs(right[bins == b].mean() - confidence[bins == b].mean()) * np.mean(bins == b) for b in np.unique(bins))
    return float(sum(gaps))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Scores `[N, L]` that sum to 1 in each row."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Each label's own probability."""
    return np.asarray(np.exp(-np.logaddexp(0.0, -logits)))


def _best_threshold(scores: np.ndarray, truths: np.ndarray) -> float:
    """Half-way between the lowest score that should hold and the highest that should not."""
    if not truths.any():
        return DEFAULT_THRESHOLD
    order = np.argsort(-scores)
    ordered = np.append(scores[order], 0.0)
    hits = np.cumsum(truths[order])
    f1 = 2 * hits / (np.arange(1, len(hits) + 1) + hits[-1])
    # Equal scores hold together or not at all.
    last = int(np.argmax(np.where(ordered[:-1] > ordered[1:], f1, -1.0)))
    return round(float(ordered[last] + ordered[last + 1]) / 2, 4)
