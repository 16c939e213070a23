"""A classifier's labels, and from which probability on each holds, as `config.json` says them.

Plain data, no TensorFlow. What Hugging Face leaves out of the file because it is the
default, two labels without names, is filled in here.
"""

from collections.abc import Mapping
from typing import Any

from app.errors import ModelFormatError

THRESHOLDS = "label_thresholds"  # of config.json, by label; ours
DEFAULT_THRESHOLD = 0.5
DEFAULT_LABELS = ("LABEL_0", "LABEL_1")


def read_labels(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the classes, in the order of the scores.

    Raises:
        ModelFormatError: `id2label` names fewer than two, or does not count them from 0.
    """
    by_id = config.get("id2label")
    if by_id is None:
        return DEFAULT_LABELS
    places = [str(place) for place in range(len(by_id))] if isinstance(by_id, Mapping) else []
    if not places or by_id.keys() != set(places):
        raise ModelFormatError("config.json: id2label does not number the labels from 0 on")
    labels = tuple(str(by_id[place]) for place in places)
    if len(labels) < 2:
        raise ModelFormatError("config.json: id2label names fewer than two labels")
    return labels


def read_thresholds(config: Mapping[str, Any], labels: tuple[str, ...]) -> tuple[float, ...]:
    """From which probability on each label of a multi-label model holds; `DEFAULT_THRESHOLD` where nothing is said.

    Raises:
        ModelFormatError: one is named that is no label, or is no probability.
    """
    by_label = config.get(THRESHOLDS) or {}
    unknown = sorted(set(by_label) - set(labels))
    if unknown:
        raise ModelFormatError(f"config.json: {THRESHOLDS} names {', '.join(unknown)}, no labels")
    for label, threshold in by_label.items():
        if not isinstance(threshold, int | float) or not 0 <= threshold <= 1:
            raise ModelFormatError(f"config.json: {THRESHOLDS} of {label!r} is {threshold!r}, no probability")
    return tuple(float(by_label.get(label, DEFAULT_THRESHOLD)) for label in labels)
