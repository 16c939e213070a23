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


def majority_accuracy(train_labels: Sequence[str], test_labels: Sequence[str]) -> float:
    """Share of the test set that the most frequent training label gets right."""
    commonest = Counter(train_labels).most_common(1)[0][0]
    return sum(label == commonest for label in test_labels) / len(test_labels)


def linear_svm_predictions(train: Sequence[tuple[str, str]], texts: Sequence[str]) -> list[str]:
    """Labels by a linear SVM over TF-IDF of words and word pairs, scikit-learn's defaults otherwise.

    Args:
        train: (text, label) pairs.
        texts: to label.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_pipeline
    from sklearn.svm import LinearSVC

    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=WORD),
        LinearSVC(random_state=0),
    )
    model.fit([text for text, _ in train], [label for _, label in train])
    return [str(label) for label in np.asarray(model.predict(list(texts)))]


def _followers(text: str, length: int) -> dict[str, Counter[str]]:
    """Counts of the character after every context of this length."""
    followers: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for place in range(length, len(text)):
        followers[text[place - length : place]][text[place]] += 1
    return followers
