import json
import math

from hypothesis import given
from hypothesis import strategies as st

from app.bench.summary import Summary, number, percentile, table


def test_percentiles_of_a_hundred_numbers_can_be_read_off() -> None:
    summary = Summary.of(reversed(range(101)))
    assert (summary.count, summary.mean, summary.p50, summary.p90, summary.p99) == (101, 50, 50, 90, 99)


def test_a_percentile_between_two_values_is_interpolated() -> None:
    assert percentile([1.0, 2.0], 50) == 1.5
    assert percentile([1.0, 2.0], 99) == 1.99


@given(st.lists(st.floats(-1e6, 1e6), min_size=1))
def test_percentiles_rise_and_stay_among_the_values(values: list[float]) -> None:
    summary = Summary.of(values)
    assert min(values) <= summary.p50 <= summary.p90 <= summary.p95 <= summary.p99 <= summary.max == max(values)


def test_nothing_measured_is_null_in_json_and_a_dash_in_a_table() -> None:
    empty = Summary.of([])
    assert math.isnan(empty.p99)
    assert json.loads(json.dumps(empty.as_json(), allow_nan=False))["p99"] is None
    assert number(empty.mean) == "-"


def test_columns_of_a_table_line_up() -> None:
    lines = table(("name", "ms"), [("a", "1.0"), ("longer", "100.0")]).splitlines()
    assert lines == ["name       ms", "a         1.0", "longer  100.0"]
