"""Where billing periods begin and end."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulators.stripe.periods import Period, add_months, boundary, period_at
from tests.simulators.stripe.shop import DAY, at

MONTH = {"interval": "month", "interval_count": 1}
YEAR = {"interval": "year", "interval_count": 1}


def test_month_end_is_counted_from_the_anchor() -> None:
    anchor = at("2026-01-31 10:00")
    days = [boundary(anchor, MONTH, index) for index in range(4)]
    assert days == [anchor, at("2026-02-28 10:00"), at("2026-03-31 10:00"), at("2026-04-30 10:00")]


def test_leap_day_falls_on_the_last_of_february() -> None:
    assert add_months(at("2024-02-29"), 12) == at("2025-02-28")
    assert add_months(at("2024-02-29"), 48) == at("2028-02-29")


def test_months_are_added_backwards_over_a_new_year() -> None:
    assert add_months(at("2026-01-15"), -1) == at("2025-12-15")
    assert add_months(at("2026-01-15"), -13) == at("2024-12-15")


@pytest.mark.parametrize(
    ("recurring", "end"),
    [
        ({"interval": "day", "interval_count": 3}, "2026-01-18"),
        ({"interval": "week", "interval_count": 2}, "2026-01-29"),
        ({"interval": "month", "interval_count": 3}, "2026-04-15"),
        ({"interval": "year", "interval_count": 2}, "2028-01-15"),
    ],
)
def test_interval_has_a_count(recurring: dict[str, object], end: str) -> None:
    assert period_at(at("2026-01-15"), recurring, at("2026-01-15")) == Period(at("2026-01-15"), at(end))


def test_boundary_belongs_to_the_period_that_begins() -> None:
    anchor = at("2026-01-15")
    assert period_at(anchor, MONTH, at("2026-02-15")) == Period(at("2026-02-15"), at("2026-03-15"))
    assert period_at(anchor, MONTH, at("2026-02-15") - 1) == Period(anchor, at("2026-02-15"))


def test_moment_before_the_anchor_has_a_period_too() -> None:
    assert period_at(at("2026-02-01"), MONTH, at("2026-01-20")) == Period(at("2026-01-01"), at("2026-02-01"))


@given(
    anchor=st.integers(at("2020-01-01"), at("2040-01-01")),
    distance=st.integers(-2_000 * DAY, 2_000 * DAY),
    interval=st.sampled_from(["day", "week", "month", "year"]),
    count=st.integers(1, 12),
)
def test_periods_tile_the_time(anchor: int, distance: int, interval: str, count: int) -> None:
    recurring = {"interval": interval, "interval_count": count}
    moment = anchor + distance
    found = period_at(anchor, recurring, moment)
    assert found.start <= moment < found.end
    assert period_at(anchor, recurring, found.end).start == found.end
    assert period_at(anchor, recurring, found.start) == found
