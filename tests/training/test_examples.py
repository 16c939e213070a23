from pathlib import Path

import pytest

from app.errors import DataError
from app.training.examples import Example, ExampleSet, read_examples, split_examples


def write(directory: Path, name: str, content: str | bytes) -> Path:
    path = directory / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", "a.csv: the file is empty"),
        ("a.csv", "text,label\nhi,a\nho", r"a.csv:3: has fewer fields than the header"),
        ("a.csv", "text,label\nhi,a,b\n", r"a.csv:2: has more fields than the header"),
        ("a.csv", 'text,label\n"open,a\n', r"a.csv:2: is not valid CSV"),
        ("a.csv", "text,kind\nhi,a\n", r"a.csv:2: field 'label' is missing"),
        ("a.csv", "text,label\nhi,a\n,b\n", r"a.csv:3: field 'text' is empty"),
        ("a.csv", b"text,label\nhi,a\nh\xf6,b\n", r"a.csv:3: is not UTF-8"),
        ("a.jsonl", '{"text": "a", "label": "x"}\n{"text": "b"', r"a.jsonl:2: is not valid JSON"),
        ("a.jsonl", '{"text": "a", "label": {"x": 1}}', r"a.jsonl:1: field 'label' is missing or not a name"),
        ("a.jsonl", '{"text": "a", "label": ["x", null]}', r"a.jsonl:1: field 'label' is missing or not a name"),
        ("a.jsonl", '{"text": "a\\ud83d", "label": "x"}', r"a.jsonl:1: field 'text' has half a character, .ud83d"),
        ("a.jsonl", '{"text": "a", "label": "\\ud83d"}', r"a.jsonl:1: field 'label' has half a character"),
        ("a.jsonl", '{"text": "a", "label": ["x"]}', r"only one label, 'x'"),
        ("a.jsonl", '{"text": "a", "label": "x"}\n{"text": "b", "label": "x"}', r"only one label, 'x'"),
    ],
)
def test_bad_data_is_refused_with_its_line(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        read_examples(write(tmp_path, name, content))

    assert "\n" not in error.value.message


def test_line_number_counts_lines_and_not_records(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", 'text,label\n"two\nlines",a\n,b\n')

    with pytest.raises(DataError, match=r"a.csv:4: field 'text' is empty"):
        read_examples(path)


def test_duplicates_count_once_and_contradictions_not_at_all(tmp_path: Path) -> None:
    rows = [("refund?", "money"), ("Refund?", "money"), ("hello", "greet"), ("bye", "greet"), ("bye", "money")]
    path = write(tmp_path, "a.tsv", "text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows))

    data = read_examples(path)

    assert data.examples == (Example("refund?", ("money",)), Example("hello", ("greet",)))
    assert (data.num_read, data.num_duplicates, data.num_conflicts) == (5, 1, 2)


def test_number_serves_as_a_label(tmp_path: Path) -> None:
    data = read_examples(write(tmp_path, "a.jsonl", '{"text": "a", "label": 1}\n{"text": "b", "label": 0}'))

    assert data.labels == ("0", "1")


def test_several_labels_are_a_set_and_may_be_none(tmp_path: Path) -> None:
    rows = ('["b", "a", "b"]', "[]", '"a"')
    lines = "".join(f'{{"text": "text {n}", "label": {row}}}\n' for n, row in enumerate(rows))

    data = read_examples(write(tmp_path, "a.jsonl", lines + '{"text": "TEXT 0", "label": ["a", "b"]}'))

    assert data.is_multi_label
    assert [example.labels for example in data.examples] == [("a", "b"), (), ("a",)]
    assert (data.labels, data.num_duplicates, data.num_conflicts) == (("a", "b"), 1, 0)


def test_rare_label_of_several_is_held_out_too() -> None:
    examples = tuple(Example(f"text {n}", ("common", "rare") if n % 20 == 0 else ("common",)) for n in range(100))

    split = split_examples(ExampleSet(examples, 100, 0, 0, is_multi_label=True), None, 0.2, 0.2, seed=0)

    assert all(any("rare" in example.labels for example in part) for part in (split.train, split.dev, split.test))


def test_lists_in_the_test_set_alone_are_refused() -> None:
    test = ExampleSet((Example("x", ("a", "b")),), 1, 0, 0, is_multi_label=True)

    with pytest.raises(DataError, match="the training set has not"):
        split_examples(make(40), test, 0.1, 0.1, seed=0)


def make(count: int, labels: str = "ab") -> ExampleSet:
    return ExampleSet(tuple(Example(f"text {n}", (labels[n % len(labels)],)) for n in range(count)), count, 0, 0)


def test_every_label_is_held_out_in_its_share() -> None:
    split = split_examples(make(100), None, test_fraction=0.2, dev_fraction=0.1, seed=0)

    assert sorted(example.labels for example in split.test) == [("a",)] * 10 + [("b",)] * 10
    assert sorted(example.labels for example in split.dev) == [("a",)] * 4 + [("b",)] * 4
    assert len({*split.train, *split.dev, *split.test}) == 100


def test_same_seed_gives_the_same_split_and_another_seed_another() -> None:
    first, again, other = (split_examples(make(100), None, 0.2, 0.1, seed) for seed in (1, 1, 2))

    assert first == again
    assert first != other


def test_training_text_that_is_also_a_test_text_is_left_out() -> None:
    test = ExampleSet((Example("TEXT 3", ("b",)), Example("unseen", ("a",))), 2, 0, 0)

    split = split_examples(make(40), test, 0.1, 0.1, seed=0)

    assert split.num_leaked == 1
    assert "text 3" not in {example.text for example in (*split.train, *split.dev)}
    assert split.test == test.examples


def test_test_set_with_an_unknown_label_is_refused() -> None:
    test = ExampleSet((Example("x", ("z",)),), 1, 0, 0)

    with pytest.raises(DataError, match="labels that the training set lacks: z"):
        split_examples(make(40), test, 0.1, 0.1, seed=0)


def test_too_few_examples_are_refused() -> None:
    with pytest.raises(DataError, match="too few"):
        split_examples(make(2), None, 0.1, 0.1, seed=0)
