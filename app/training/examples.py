"""Labelled texts for classification: read, clean, de-duplicate, split.

Accepts UTF-8 JSON lines and CSV or TSV with a header. In JSON lines a label may be a
list of labels: then any number of them may hold for a text. A text that stands there
twice counts once; a text that is labelled in two ways teaches nothing and is left out;
a training text that is also a test text would be cheating and is left out of training.
The report counts all of it.
"""

import csv
import io
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from app.errors import DataError
from app.training.corpus import clean, fingerprint, list_files, read_json_lines, read_lines, text_of, whole

SUFFIXES = (".jsonl", ".csv", ".tsv")


@dataclass(frozen=True, slots=True)
class Example:
    """One text and the labels that hold for it, sorted: exactly one, or of multi-label data any number."""

    text: str
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ExampleSet:
    """Cleaned examples, and what cleaning removed."""

    examples: tuple[Example, ...]
    num_read: int
    num_duplicates: int
    num_conflicts: int
    is_multi_label: bool = False

    @property
    def labels(self) -> tuple[str, ...]:
        """Every label, sorted: the order of the scores."""
        return tuple(sorted({label for example in self.examples for label in example.labels}))


@dataclass(frozen=True, slots=True)
class LabelledSplit:
    """Train, development (early stopping, calibration) and test (the reported figures)."""

    train: tuple[Example, ...]
    dev: tuple[Example, ...]
    test: tuple[Example, ...]
    num_leaked: int


def read_examples(path: Path, text_field: str = "text", label_field: str = "label") -> ExampleSet:
    """Read and clean labelled texts.

    Raises:
        DataError: nothing there, a broken line (with its number), text that is
            not UTF-8, or fewer than two labels.
    """
    read = [pair for file in list_files(path, SUFFIXES) for pair in _examples(file, text_field, label_field)]
    by_text: defaultdict[bytes, list[Example]] = defaultdict(list)
    for example, _ in read:
        by_text[fingerprint(example.text)].append(example)
    agreed = [group for group in by_text.values() if len({example.labels for example in group}) == 1]
    kept = ExampleSet(
        examples=tuple(group[0] for group in agreed),
        num_read=len(read),
        num_duplicates=sum(len(group) - 1 for group in agreed),
        num_conflicts=len(read) - sum(map(len, agreed)),
        is_multi_label=any(is_list for _, is_list in read),
    )
    if len(kept.labels) < 2:
        raise DataError(
            f"holds only one label, {', '.join(map(repr, kept.labels)) or 'none'}; expected two or more", path
        )
    return kept


def split_examples(
    data: ExampleSet, test: ExampleSet | None, test_fraction: float, dev_fraction: float, seed: int
) -> LabelledSplit:
    """Hold out a share of every label; with a test set of its own, only the development share.

    Raises:
        DataError: the test set has labels that training does not know, or a part
            would be empty.
    """
    if test is None:
        rest, held_out = _stratified(data.examples, test_fraction, seed)
    else:
        unknown = set(test.labels) - set(data.labels)
        if unknown:
            raise DataError(f"the test set has labels that the training set lacks: {', '.join(sorted(unknown))}")
        if test.is_multi_label and not data.is_multi_label:
            raise DataError("the test set has lists of labels, the training set has not")
        rest, held_out = data.examples, test.examples
    seen = {fingerprint(example.text) for example in held_out}
    clean_rest = [example for example in rest if fingerprint(example.text) not in seen]
    train, dev = _stratified(clean_rest, dev_fraction, seed + 1)
    if not (train and dev and held_out):
        raise DataError(f"{data.num_read} examples are too few to hold some out of every label")
    return LabelledSplit(train, dev, tuple(held_out), len(rest) - len(clean_rest))


def _examples(path: Path, text_field: str, label_field: str) -> Iterator[tuple[Example, bool]]:
    """Each with whether its label is a list."""
    records = read_json_lines(path) if path.suffix == ".jsonl" else _read_table(path)
    for number, record in records:
        text = clean(text_of(record, text_field, path, number))
        if not text:
            raise DataError(f"field '{text_field}' is empty", path, number)
        given = record.get(label_field)
        names = given if isinstance(given, list) else [given]
        for name in names:
            if not isinstance(name, (str, int)) or isinstance(name, bool) or str(name) == "":
                raise DataError(f"field '{label_field}' is missing or not a name", path, number)
        labels = {whole(str(name), label_field, path, number) for name in names}
        yield Example(text, tuple(sorted(labels))), isinstance(given, list)


def _read_table(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    """Rows with the line number at which each ends, as quoted fields may span lines."""
    lines = "\n".join(line for _, line in read_lines(path))
    reader = csv.DictReader(io.StringIO(lines), delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)
    try:
        for record in reader:
            if None in record or None in record.values():
                raise DataError(
                    f"has {'more' if None in record else 'fewer'} fields than the header", path, reader.line_num
                )
            yield reader.line_num, dict(record)
    except csv.Error as error:
        raise DataError(f"is not valid CSV: {error}", path, reader.line_num + 1) from None


def _stratified(
    examples: Sequence[Example], fraction: float, seed: int
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Split off `fraction` of every label, at least one where it has two or more.

    Of several labels of a text its rarest counts, because that one is the hardest to share out.
    """
    order = np.random.default_rng(seed).permutation(len(examples))
    counts = Counter(label for example in examples for label in example.labels)
    rarest = [min(example.labels, key=lambda label: (counts[label], label), default="") for example in examples]
    wanted = {label: max(1, round(count * fraction)) if count > 1 else 0 for label, count in Counter(rarest).items()}
    held_out: set[int] = set()
    taken: Counter[str] = Counter()
    for index in order:
        label = rarest[index]
        if taken[label] < wanted[label]:
            taken[label] += 1
            held_out.add(int(index))
    return (
        tuple(example for index, example in enumerate(examples) if index not in held_out),
        tuple(example for index, example in enumerate(examples) if index in held_out),
    )
