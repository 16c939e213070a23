"""Documents for generation: read, clean, de-duplicate, split.

Accepts UTF-8 text (`.txt`, one document a file), JSON lines (one object a line),
JSON (an array of objects), or a folder of those. Nothing is dropped silently:
the report counts what was removed and why. Split is in order, never shuffled, so
that a held-out text is one that the model has not seen the middle of.
"""

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.errors import DataError

SUFFIXES = (".txt", ".jsonl", ".json")
# Control characters other than tab and newline say nothing in a text.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ufeff]")
SPACE = re.compile(r"\s+")


@dataclass(frozen=True, slots=True)
class Corpus:
    """Cleaned documents, and what cleaning removed."""

    documents: tuple[str, ...]
    num_read: int
    num_empty: int
    num_duplicates: int

    @property
    def num_characters(self) -> int:
        """Of the documents joined by one separator each."""
        return sum(len(document) + 1 for document in self.documents)


@dataclass(frozen=True, slots=True)
class Split:
    """Train, development (for early stopping) and test (for the reported figures)."""

    train: tuple[str, ...]
    dev: tuple[str, ...]
    test: tuple[str, ...]


def read_corpus(path: Path, text_field: str = "text") -> Corpus:
    """Read and clean every document below `path`.

    Args:
        path: a file, or a folder whose files are read in natural order.
        text_field: of JSON objects; its value is a string, or a list of strings
            that are joined.

    Raises:
        DataError: nothing there, an unknown format, a broken line (with its
            number), or text that is not UTF-8.
    """
    raw = [document for file in list_files(path, SUFFIXES) for document in _documents(file, text_field)]
    cleaned = [document for document in map(clean, raw) if document]
    if not cleaned:
        raise DataError("holds no text", path)
    unique: dict[bytes, str] = {}
    for document in cleaned:
        unique.setdefault(fingerprint(document), document)
    return Corpus(
        documents=tuple(unique.values()),
        num_read=len(raw),
        num_empty=len(raw) - len(cleaned),
        num_duplicates=len(cleaned) - len(unique),
    )


def split_corpus(corpus: Corpus, test_fraction: float, dev_fraction: float) -> Split:
    """Hold out the last characters for test and, of the rest, the first for development.

    Not the last for development: what stands next to the test says most about it
    (the test of a text in order begins in the middle of a scene), and a model that
    is served would know it. A boundary falls between documents; a corpus of one
    document is cut inside it.

    Raises:
        DataError: a part would be empty.
    """
    rest, test = _cut(corpus.documents, 1 - test_fraction)
    dev, train = _cut(rest, dev_fraction)
    if not (train and dev and test):
        raise DataError(f"{corpus.num_characters} characters are too few to hold out {test_fraction:.0%} for testing")
    return Split(train, dev, test)


def clean(text: str) -> str:
    """NFC, Unix newlines, no control characters, no blanks at line ends or around the text."""
    text = unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n"))
    lines = (line.rstrip() for line in CONTROL.sub("", text).split("\n"))
    return "\n".join(lines).strip()


def fingerprint(text: str) -> bytes:
    """Equal for texts that differ only in case and blanks."""
    return hashlib.blake2b(SPACE.sub(" ", text).strip().casefold().encode(), digest_size=16).digest()


def list_files(path: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """The file itself, or a folder's files of these kinds, `part.9` before `part.10`.

    Raises:
        DataError: no such path, or no file of these kinds.
    """
    if not path.exists():
        raise DataError("no such file or folder", path)
    if path.is_dir():
        files = sorted((file for file in path.iterdir() if file.suffix in suffixes), key=_natural)
        if not files:
            raise DataError(f"holds no {', '.join(suffixes)} file", path)
        return files
    if path.suffix not in suffixes:
        raise DataError(f"unknown format; expected one of {', '.join(suffixes)}", path)
    return [path]


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines of a UTF-8 file with their numbers, from 1.

    Raises:
        DataError: a line is not UTF-8, or the file is empty.
    """
    data = path.read_bytes()
    if not data.strip():
        raise DataError("the file is empty", path)
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError("is UTF-16; save it as UTF-8", path, 1)
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        try:
            yield number, line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(
                f"is not UTF-8: byte 0x{line[error.start]:02x} in column {error.start + 1}; save it as UTF-8",
                path,
                number,
            ) from None


def read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Objects of a JSON lines file with their line numbers; blank lines are passed over.

    Raises:
        DataError: a line is not a JSON object, with its number.
    """
    for number, line in read_lines(path):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            raise DataError(f"is not valid JSON: {error}", path, number) from None
        if not isinstance(value, dict):
            raise DataError(f"is {type(value).__name__}, expected a JSON object", path, number)
        yield number, value


def text_of(record: dict[str, Any], field: str, path: Path, line: int) -> str:
    """The string in a record's field.

    Raises:
        DataError: the field is missing or holds something else.
    """
    value = record.get(field)
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        value = "".join(value)
    if not isinstance(value, str):
        found = "is missing" if field not in record else f"is {type(value).__name__}, expected a string"
        raise DataError(f"field '{field}' {found}", path, line)
    return whole(value, field, path, line)


def whole(text: str, field: str, path: Path, line: int) -> str:
    """The same text, which can be written down.

    Raises:
        DataError: JSON's escapes have left half a character in it.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[error.start]):04x}"
        raise DataError(f"field '{field}' has half a character, {half}", path, line) from None
    return text


def _documents(path: Path, text_field: str) -> Iterator[str]:
    if path.suffix == ".txt":
        yield "\n".join(line for _, line in read_lines(path))
    elif path.suffix == ".jsonl":
        for number, record in read_json_lines(path):
            yield text_of(record, text_field, path, number)
    else:
        for number, record in enumerate(_json_array(path), start=1):
            yield text_of(record, text_field, path, number)


def _json_array(path: Path) -> list[dict[str, Any]]:
    text = "\n".join(line for _, line in read_lines(path))
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"is not valid JSON: {error.msg}", path, error.lineno) from None
    if not isinstance(value, list) or not all(isinstance(record, dict) for record in value):
        raise DataError("expected a JSON array of objects", path, 1)
    return value


def _cut(documents: tuple[str, ...], fraction: float) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The first `fraction` of the characters, and the rest."""
    if len(documents) == 1:
        place = int(len(documents[0]) * fraction)
        parts = documents[0][:place], documents[0][place:]
        return tuple(part for part in parts[:1] if part), tuple(part for part in parts[1:] if part)
    budget = fraction * sum(len(document) + 1 for document in documents)
    count = 0
    for index, document in enumerate(documents):
        count += len(document) + 1
        if count > budget:
            return documents[:index], documents[index:]
    return documents, ()


def _natural(path: Path) -> list[tuple[bool, int, str]]:
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", path.name)]
