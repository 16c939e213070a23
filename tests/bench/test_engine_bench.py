import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.bench.engine_bench import Plan, measure
from app.bench.random_model import Sizes, TextSizes, write_random_classifier, write_random_model
from app.bench.roofline import Roofline
from app.errors import ConfigError


@pytest.mark.slow
def test_every_phase_of_a_tiny_model_has_a_figure(tmp_path: Path) -> None:
    write_random_model(
        tmp_path / "m", Sizes(layers=1, width=16, feed_forward=32, heads=2, key_heads=2, vocab=50, context=64)
    )
    plan = Plan(
        tmp_path / "m", tmp_path, prompts=(4, 8), batches=(1, 2), contexts=(8,), num_steps=4, rounds=1, num_slots=2
    )
    report = measure(plan)
    assert [(line.phase, line.batch, line.tokens) for line in report.lines] == [
        ("prefill", 1, 4),
        ("prefill", 1, 8),
        ("decode", 1, 8),
        ("decode", 2, 8),
    ]
    assert all(line.step_ms > 0 and line.tokens_per_s > 0 and 0 < line.roofline < 1 for line in report.lines)
    assert report.compilations == 0
    assert json.loads(json.dumps(report.as_json()))["num_slots"] == 2
    assert "of roofline" in report.as_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompts": (8, 64)}, "64 tokens leave no room for an answer in a context of 64"),
        ({"contexts": (100,)}, "100 tokens leave no room"),
        ({"batches": (1, 4), "num_slots": 2}, "4 rows do not fit into 2 slots"),
        ({"batches": (0,)}, "at least 1"),
        ({"prompts": (-3,)}, "at least 1"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is_compiled(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    write_random_model(
        tmp_path / "m", Sizes(layers=1, width=16, feed_forward=32, heads=2, key_heads=2, vocab=50, context=64)
    )

    with pytest.raises(ConfigError, match=message):
        measure(replace(Plan(tmp_path / "m", tmp_path, prompts=(8,), contexts=(8,), batches=(1,)), **change))


@pytest.mark.parametrize(("num_bytes", "num_operations", "least_s"), [(200, 30, 2.0), (100, 300, 3.0)])
def test_the_slower_of_reading_and_computing_is_the_limit(
    num_bytes: float, num_operations: float, least_s: float
) -> None:
    assert Roofline(100, 100).least_s(num_bytes, num_operations) == least_s


def test_what_does_not_generate_is_refused(tmp_path: Path) -> None:
    write_random_classifier(tmp_path / "m", TextSizes(layers=1, width=16, feed_forward=32, heads=2, vocab=60))
    with pytest.raises(ConfigError, match="no decoder"):
        measure(Plan(tmp_path / "m", tmp_path))
