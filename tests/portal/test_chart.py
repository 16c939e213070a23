"""Charts: what is drawn, and that it needs nothing that pages forbid."""

import re
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.portal.chart import MAX_SERIES, Series, stacked_bars, swatch, ticks


def draw(*series: Series, labels: tuple[str, ...] = ("a", "b")) -> str:
    return str(stacked_bars(labels, series, "Cost", lambda value: f"{value:f} USD"))


def values(*numbers: int) -> list[Decimal]:
    return [Decimal(number) for number in numbers]


def heights(svg: str, fill: int) -> list[float]:
    found = re.findall(rf'<rect x="[\d.]+" y="[\d.]+" width="[\d.]+" height="([\d.]+)" fill="url\(#fill-{fill}\)"', svg)
    return [float(height) for height in found]


def test_bars_are_as_high_as_their_values() -> None:
    svg = draw(Series("one", values(10, 20)), Series("two", values(30, 0)))
    first, second = heights(svg, 0)
    assert second == pytest.approx(2 * first, abs=0.2)
    (other,) = heights(svg, 1)
    assert other == pytest.approx(3 * first, abs=0.2)


def test_each_bar_says_what_it_is_and_nothing_is_drawn_of_nothing() -> None:
    svg = draw(Series("one", values(10, 0)), Series("two", values(0, 30)))
    assert re.findall("<title>(.*?)</title>", svg) == ["a · one: 10 USD", "b · two: 30 USD"]


def test_what_customers_called_something_is_text() -> None:
    svg = draw(Series("<script>alert(1)</script>", values(1, 2)), labels=('"><b>', "]]>"))
    assert "<script" not in svg
    assert "<b>" not in svg
    assert "&lt;script&gt;" in svg


def test_there_is_nothing_inline_in_it() -> None:
    svg = draw(*(Series(f"s{n}", values(n + 1, 2)) for n in range(MAX_SERIES)))
    for forbidden in ("<style", "style=", "<script", "onclick", "xlink", "<!--", "ns0:", "http://pygal"):
        assert forbidden not in svg
    assert 'role="img"' in svg
    assert 'aria-label="Cost"' in svg


def test_a_key_has_the_pattern_of_its_series() -> None:
    svg = draw(Series("one", values(1, 1)), Series("two", values(1, 1)))
    assert 'id="fill-1"' in svg
    assert "url(#fill-1)" in swatch(1)


def test_long_charts_name_some_of_their_bars() -> None:
    labels = tuple(f"day {number}" for number in range(62))
    svg = draw(Series("one", values(*range(62))), labels=labels)
    named = re.findall(r"<text[^>]*>(day \d+)</text>", svg)
    assert 4 <= len(named) <= 8
    assert named[0] == "day 0"


@given(st.decimals(min_value="0.000001", max_value=10**15, places=6))
def test_marks_reach_the_top_in_few_steps(top: Decimal) -> None:
    marks = ticks(top)
    assert marks[0] == 0
    assert marks[-2] < top <= marks[-1]
    assert 3 <= len(marks) <= 6
