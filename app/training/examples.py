"""Labelled texts for classification: read, clean, de-duplicate, split.

Accepts UTF-8 JSON lines and CSV or TSV with a header. A text that stands there
twice counts once; a text with two different labels teaches nothing and is left
out; a training text that is also a test text would be cheating and is left out
of training. The report counts all of it.
"""

import csv
import io
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from app.errors import DataError
from app.training.corpus import clean, fingerprint, list_files, read_json_lines, read_lines, text_of

SUFFIXES = (".jsonl", ".csv", ".tsv")


@dataclass(frozen=True, slots=True)
class Example:
    """One text and its label."""

    text: str
    label: str


@dataclass(frozen=True, slots=True)
class ExampleSet:
    """Cleaned examples, and what cleaning removed."""

    examples: tuple[Example, ...]
    num_read: int
    num_duplicates: int
    num_conflicts: int

    @property
    def labels(self) -> tuple[str, ...]:
        """Every label, sorted: the order of the scores."""
        return tuple(sorted({example.label for example in self.examples}))


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
    raw = [e for file in list_files(path, SUFFIXES) for e in _examples(file, text_field, label_field)]
    by_text: defaultdict[bytes, list[Example]] = defaultdict(list)
    for example in raw:
        by_text[fingerprint(example.text)].append(example)
    agreed = [group for group in by_text.values() if len({example.label for example in group}) == 1]
    kept = ExampleSet(
        examples=tuple(group[0] for group in agreed),
        num_read=len(raw),
        num_duplicates=sum(len(group) - 1 for group in agreed),
        num_conflicts=sum(len(group) for group in by_text.values() if len({e.label for e in group}) > 1),
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
        rest, held_out = data.examples, test.examples
    seen = {fingerprint(example.text) for example in held_out}
    clean_rest = [example for example in rest if fingerprint(example.text) not in seen]
    train, dev = _stratified(clean_rest, dev_fraction, seed + 1)
    if not (train and dev and held_out):
        raise DataError(f"{data.num_read} examples are too few to hold some out of every label")
    return LabelledSplit(train, dev, tuple(held_out), len(rest) - len(clean_rest))


def _examples(path: Path, text_field: str, label_field: str) -> Iterator[Example]:
    records = read_json_lines(path) if path.suffix == ".jsonl" else _read_table(path)
    for number, record in records:
        text = clean(text_of(record, text_field, path, number))
        label = record.get(label_field)
        if not text:
            raise DataError(f"field '{text_field}' is empty", path, number)
        if not isinstance(label, (str, int)) or isinstance(label, bool) or str(label) == "":
            raise DataError(f"field '{label_field}' is missing or not a name", path, number)
        yield Example(text, str(label))


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
    """Split off `fraction` of every label, at least one where it has two or more."""
    order = np.random.default_rng(seed).permutation(len(examples))
    wanted = {
        label: max(1, round(count * fraction)) if count > 1 else 0
        for label, count in Counter(example.label for example in examples).items()
    }
    held_out: set[int] = set()
    taken: Counter[str] = Counter()
    for index in order:
        label = examples[index].label
        if taken[label] < wanted[label]:
            taken[label] += 1
            held_out.add(int(index))
    return (
        tuple(example for index, example in enumerate(examples) if index not in held_out),
        tuple(example for index, example in enumerate(examples) if index in held_out),
    )
