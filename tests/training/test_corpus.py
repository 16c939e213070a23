from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import DataError
from app.training.corpus import Corpus, clean, read_corpus, split_corpus


def write(directory: Path, name: str, content: str | bytes) -> Path:
    path = directory / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "", "a.txt: the file is empty"),
        ("a.txt", " \n\n ", "a.txt: the file is empty"),
        ("a.txt", b"fine\nna\xefve", r"a.txt:2: is not UTF-8: byte 0xef in column 3"),
        ("a.txt", "text".encode("utf-16"), r"a.txt:1: is UTF-16"),
        ("a.jsonl", '{"text": "a"}\n{"text": \n', r"a.jsonl:2: is not valid JSON"),
        ("a.jsonl", '{"text": "a"}\n\n["b"]', r"a.jsonl:3: is list, expected a JSON object"),
        ("a.jsonl", '{"text": "a"}\n{"txt": "b"}', r"a.jsonl:2: field 'text' is missing"),
        ("a.jsonl", '{"text": 5}', r"a.jsonl:1: field 'text' is int, expected a string"),
        ("a.jsonl", '{"text": "  "}', r"holds no text"),
        ("a.json", '[{"text": "a"},\n {]', r"a.json:2: is not valid JSON"),
        ("a.json", '{"text": "a"}', r"a.json:1: expected a JSON array"),
        ("a.pdf", "x", r"a.pdf: unknown format"),
    ],
)
def test_bad_data_is_refused_with_its_line(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        read_corpus(write(tmp_path, name, content))

    assert "\n" not in error.value.message


def test_missing_path_and_folder_without_data_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_corpus(tmp_path / "nowhere.txt")
    with pytest.raises(DataError, match="holds no"):
        read_corpus(tmp_path)


def test_documents_that_differ_in_case_and_blanks_only_count_once(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", '{"text": "To be"}\n{"text": "or not"}\n{"text": " to  BE "}\n{"text": ""}\n')

    corpus = read_corpus(path)

    assert corpus == Corpus(("To be", "or not"), num_read=4, num_empty=1, num_duplicates=1)


def test_folder_is_read_in_natural_order(tmp_path: Path) -> None:
    for number in (10, 9, 1):
        write(tmp_path, f"part.{number}.json", f'[{{"lines": ["poem ", "{number}"]}}]')

    assert read_corpus(tmp_path, "lines").documents == ("poem 1", "poem 9", "poem 10")


def test_cleaning_unifies_newlines_and_composes_characters() -> None:
    assert clean("\ufeffcafe\u0301 \r\nnext\x00\tline\r\n\n") == "café\nnext\tline"


def test_byte_order_mark_is_not_text(tmp_path: Path) -> None:
    assert read_corpus(write(tmp_path, "a.txt", b"\xef\xbb\xbfhello")).documents == ("hello",)


def test_split_is_in_order_and_between_documents() -> None:
    corpus = Corpus(tuple(f"{n:03}" * 3 for n in range(100)), 100, 0, 0)

    split = split_corpus(corpus, test_fraction=0.1, dev_fraction=0.1)

    assert split.dev + split.train + split.test == corpus.documents
    assert (len(split.test), len(split.dev)) == (10, 9)


def test_single_document_is_cut_inside() -> None:
    split = split_corpus(Corpus(("x" * 1000,), 1, 0, 0), test_fraction=0.1, dev_fraction=0.05)

    assert [len(part[0]) for part in (split.train, split.dev, split.test)] == [855, 45, 100]


def test_too_little_text_to_hold_out_is_refused() -> None:
    with pytest.raises(DataError, match="too few"):
        split_corpus(Corpus(("ab",), 1, 0, 0), test_fraction=0.1, dev_fraction=0.05)


@given(st.lists(st.text(min_size=1), min_size=1), st.floats(0.01, 0.5), st.floats(0.01, 0.5))
def test_split_never_loses_or_repeats_a_character(documents: list[str], test: float, dev: float) -> None:
    try:
        split = split_corpus(Corpus(tuple(documents), len(documents), 0, 0), test, dev)
    except DataError:
        return
    assert "".join(split.dev + split.train + split.test) == "".join(documents)
