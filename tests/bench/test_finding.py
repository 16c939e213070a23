import json
from pathlib import Path

import pytest

from app.bench.finding import Finding, Record, report
from app.errors import ConfigError

FAST = Finding("throughput", "8 x a / b", 30.0, 10.0, "tokens/s", 3.0, 2.0)
SETTINGS = {"seed": 0}


@pytest.mark.parametrize(
    ("figure", "target", "bound", "verdict"),
    [
        (2.0, 2.0, "at least", "met"),
        (1.9, 2.0, "at least", "missed"),
        (2.0, 2.0, "at most", "met"),
        (2.1, 2.0, "at most", "missed"),
        (2.1, None, "at least", ""),
    ],
)
def test_a_figure_meets_its_target_from_the_right_side(figure: float, target: float, bound: str, verdict: str) -> None:
    assert Finding("s", "c", 1.0, 1.0, "ms", figure, target, bound).verdict == verdict  # type: ignore[arg-type]


def test_the_table_shows_target_and_verdict_and_below_it_what_failed() -> None:
    text = report([FAST, Finding.failed("mixed", "a / b", "no such file")])
    assert ">= 2" in text
    assert "met" in text
    assert text.endswith("FAILED mixed: a / b: no such file")


def test_json_of_a_failure_has_no_nan() -> None:
    parsed = json.loads(json.dumps(Finding.failed("mixed", "a / b", "gone").as_json(), allow_nan=False))
    assert parsed["figure"] is None
    assert parsed["verdict"] == "failed"


def test_a_figure_is_found_again_and_a_failure_is_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "figures.jsonl"
    record = Record(path, SETTINGS)
    record.add(FAST)
    record.add(Finding.failed("mixed", "a / b", "gone"))
    again = Record(path, SETTINGS)
    assert again.findings == [FAST]
    assert again.has("throughput", "8 x a / b")
    assert not again.has("mixed", "a / b")


def test_figures_of_other_settings_are_refused(tmp_path: Path) -> None:
    Record(tmp_path / "figures.jsonl", SETTINGS)
    with pytest.raises(ConfigError, match="other settings"):
        Record(tmp_path / "figures.jsonl", {"seed": 1})


def test_without_a_file_a_record_is_a_list() -> None:
    record = Record()
    record.add(FAST)
    assert record.findings == [FAST]
