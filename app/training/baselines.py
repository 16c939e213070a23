"""What a model must beat to be worth serving, measured on its own split."""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

WORD = r"(?u)\w+|[^\w\s]"  # punctuation counts as a word: a question mark tells much


def ngram_nats_per_character(train: str, test: str, order: int) -> float:
    """Character n-gram model with Witten-Bell interpolation (Witten & Bell 1991, method C).

    Args:
        train: text to count.
        test: text to score.
        order: characters of the n-gram; 1 ignores the context.

    Returns:
        Mean negative log-likelihood of `test`, nats a character.
    """
    counts = [_followers(train, length) for length in range(order)]
    uniform = 1.0 / (len(set(train)) + 1)  # one share for every character never seen
    total = 0.0
    for place, character in enumerate(test):
        probability = uniform
        for length, followers in enumerate(counts[: place + 1]):
            seen = followers.get(test[place - length : place])
            if seen is None:
                break
            probability = (seen[character] + len(seen) * probability) / (seen.total() + len(seen))
        total -= math.log(probability)
    return total / len(test)


def majority_accuracy(train: np.ndarray, test: np.ndarray) -> float:
    """Share of the test set `[N, L]` that the most frequent training label gets right."""
    return float(test[:, train.sum(axis=0).argmax()].mean())


def commonest_labels(targets: np.ndarray) -> np.ndarray:
    """Which labels hold for at least half of the texts `[N, L]` of training, `[L]`: predicted for every text."""
    return np.asarray(targets.mean(axis=0) >= 0.5)


def linear_svm_predictions(train: Sequence[str], targets: np.ndarray, texts: Sequence[str]) -> np.ndarray:
    """Labels by a linear SVM over TF-IDF of words and word pairs, scikit-learn's defaults otherwise.

    Args:
        train: texts to learn from.
        targets: their class `[N]`; or `[N, L]`, which labels hold, each with an SVM of its own.
        texts: to label.

    Returns:
        As `targets`, of `texts`.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.svm import LinearSVC

    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=WORD)
    known, unknown = words.fit_transform(train), words.transform(texts)

    def predict(classes: np.ndarray) -> np.ndarray:
        if len(np.unique(classes)) == 1:  # nothing to tell apart
            return np.full(len(texts), classes[0])
        return np.asarray(LinearSVC(random_state=0).fit(known, classes).predict(unknown))

    return predict(targets) if targets.ndim == 1 else np.stack([predict(column) for column in targets.T], axis=1)


def _followers(text: str, length: int) -> dict[str, Counter[str]]:
    """Counts of the character after every context of this length."""
    followers: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for place in range(length, len(text)):
        followers[text[place - length : place]][text[place]] += 1
    return followers
