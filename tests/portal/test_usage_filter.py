"""Which span an address means."""

from datetime import UTC, datetime
from itertools import pairwise
from urllib.parse import parse_qsl, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import QueryParams

from app.portal.usage_filter import MAX_SPAN, UsageFilter
from app.tables import new_id

NOW = datetime(2032, 3, 15, 13, 45, 10, tzinfo=UTC)
KEY = new_id()


def chosen(parameters: dict[str, str], now: datetime = NOW) -> UsageFilter:
    return UsageFilter.parse(QueryParams(parameters), now)


def days(filter: UsageFilter) -> tuple[str, str, str]:
    return f"{filter.start:%Y-%m-%d}", f"{filter.last_day:%Y-%m-%d}", filter.bucket


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({}, ("2032-02-15", "2032-03-15", "day")),
        ({"span": "nonsense", "bucket": "second"}, ("2032-02-15", "2032-03-15", "day")),
        ({"span": "today"}, ("2032-03-15", "2032-03-15", "day")),
        ({"span": "today", "bucket": "hour"}, ("2032-03-15", "2032-03-15", "hour")),
        ({"span": "week"}, ("2032-03-09", "2032-03-15", "day")),
        ({"span": "week", "bucket": "hour"}, ("2032-03-09", "2032-03-15", "day")),
        ({"span": "month"}, ("2032-03-01", "2032-03-15", "day")),
        ({"span": "last-month"}, ("2032-02-01", "2032-02-29", "day")),
        ({"span": "custom"}, ("2032-03-15", "2032-03-15", "day")),
        ({"span": "custom", "start": "2032-03-01", "end": "2032-03-03"}, ("2032-03-01", "2032-03-03", "day")),
        ({"span": "custom", "start": "2032-03-05", "end": "2032-03-03"}, ("2032-03-03", "2032-03-03", "day")),
        ({"span": "custom", "start": "2031-12-01", "end": "2032-03-03"}, ("2031-12-01", "2032-03-03", "month")),
        ({"span": "custom", "start": "1900-01-01", "end": "9999-12-31"}, ("2031-03-16", "2032-03-15", "month")),
        ({"span": "custom", "start": "0001-01-01", "end": "0001-01-01"}, ("2000-01-01", "2000-01-01", "day")),
    ],
)
def test_a_span(parameters: dict[str, str], expected: tuple[str, str, str]) -> None:
    assert days(chosen(parameters)) == expected


def test_last_month_in_january_is_of_last_year() -> None:
    assert days(chosen({"span": "last-month"}, datetime(2032, 1, 31, tzinfo=UTC)))[:2] == ("2031-12-01", "2031-12-31")


def test_a_link_means_the_same_but_for_its_changes() -> None:
    for parameters in (
        {},
        {"span": "today", "bucket": "hour", "group": "key", "model": "a&b=c", "key": str(KEY)},
        {"span": "custom", "start": "2032-03-01", "end": "2032-03-03"},
    ):
        before = chosen(parameters)
        link = urlsplit(before.address("/usage"))
        assert chosen(dict(parse_qsl(link.query))) == before
        changed = urlsplit(before.address("/usage", group="kind", key=None)).query
        after = chosen(dict(parse_qsl(changed)))
        assert (after.group, after.key_id, after.start) == ("kind", None, before.start)


text = st.text(max_size=30)


@given(text, text, text, text, text, text, st.datetimes(datetime(2026, 1, 1), datetime(2100, 1, 1)))  # noqa: DTZ001
def test_any_address_means_a_span_that_has_passed_or_runs(
    span: str, start: str, end: str, bucket: str, model: str, key: str, now: datetime
) -> None:
    now = now.replace(tzinfo=UTC)
    for one in (span, "custom"):
        asked = {"span": one, "start": start, "end": end, "bucket": bucket, "model": model, "key": key, "group": key}
        filter = chosen(asked, now)
        assert filter.start < filter.end
        assert filter.end - filter.start <= MAX_SPAN


@given(st.dates(datetime(2020, 1, 1).date(), NOW.date()), st.sampled_from(["hour", "day"]), st.integers(0, 400))  # noqa: DTZ001
def test_lines_follow_each_other_from_start_to_end(first: datetime, bucket: str, length: int) -> None:
    last = min(first.toordinal() + length, NOW.toordinal())
    end = datetime.fromordinal(last).strftime("%Y-%m-%d")
    filter = chosen({"span": "custom", "start": first.strftime("%Y-%m-%d"), "end": end, "bucket": bucket})
    starts = filter.buckets
    assert starts[0] <= filter.start
    assert starts[-1] < filter.end
    assert all(before < after for before, after in pairwise(starts))
    assert len(starts) <= 72
