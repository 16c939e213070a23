"""The oracle of the year, by numbers that were worked out on paper."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from app.tables import new_id
from tests.year import oracle
from tests.year.oracle import Billed, Life, Row, Segment

START = datetime(2024, 1, 31, 12, tzinfo=UTC)
ORG = new_id()
USD = oracle.USD


def life(**terms: Any) -> Life:
    return Life("sub_1", ORG, START, **{"plans": [(START, "starter")], **terms})


def row(at: datetime, tokens: int, **terms: Any) -> Row:
    fields: dict[str, Any] = {"version": 1, "kind": "generation", "cached_tokens": 0, "output_tokens": 0}
    return Row(new_id(), ORG, at, input_tokens=tokens, **{**fields, "is_prepaid": False, **terms})


def test_months_end_where_the_anchor_says_or_on_the_last_day() -> None:
    ends = [oracle.later(START, number) for number in (1, 2, 3, 11, 12)]
    assert [(end.year, end.month, end.day) for end in ends] == [
        (2024, 2, 29), (2024, 3, 31), (2024, 4, 30), (2024, 12, 31), (2025, 1, 31),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("plan", "value", "cents"),
    [
        ("starter", 15 * USD, 0),
        ("starter", 15 * USD + 5_000_000, 1),  # half a cent
        ("starter", 15 * USD + 4_999_999, 0),
        ("growth", 500 * USD, 410_00),
        ("growth", 600 * USD, 410_00 + 90_00),
        ("scale", 12_000 * USD, (1_520 * 90 + 8_000 * 80 + 2_000 * 70)),
    ],
)
def test_tiers_are_rated_and_rounded_one_by_one(plan: str, value: int, cents: int) -> None:
    assert oracle.cents_of(plan, value) == cents


def test_a_row_costs_its_tokens_at_its_own_version() -> None:
    assert row(START, 100, cached_tokens=40, output_tokens=10).pico_usd == 60 * 150_000 + 40 * 75_000 + 10 * 600_000
    assert row(START, 100, version=2, output_tokens=10).pico_usd == 100 * 100_000 + 10 * 400_000


def test_a_life_is_cut_at_months_changes_and_its_end() -> None:
    change, end = START + timedelta(days=10), datetime(2024, 3, 10, tzinfo=UTC)
    parts = list(oracle.segments(life(plans=[(START, "starter"), (change, "growth")], end=end), end))
    assert [(part.start, part.end, part.plan, part.is_period_end) for part in parts] == [
        (START, change, "starter", False),
        (change, oracle.later(START, 1), "growth", True),
        (oracle.later(START, 1), end, "growth", True),
    ]
    assert list(oracle.segments(life(), START + timedelta(days=3))) == []


def test_every_unit_and_cent_that_differs_is_drift() -> None:
    segment = Segment("sub_1", ORG, START, oracle.later(START, 1), "starter", is_period_end=True)
    key = ("sub_1", int(segment.end.timestamp()), "starter")
    rows = [
        row(START, 110_000_000),
        row(segment.end, 1),
        row(START - timedelta(microseconds=1), 1),
        row(START, 5, is_prepaid=True),
    ]
    right = Billed("in_1", 110_000_000 * 150, 1_50)
    assert oracle.compare([segment], rows, {key: right}).drift_nano_usd == 0
    for counted, cents in ((right.counted + 1, right.cents), (right.counted, right.cents - 1), (0, 0)):
        outcome = oracle.compare([segment], rows, {key: Billed("in_1", counted, cents)})
        assert outcome.drift_nano_usd == abs(counted - right.counted) + abs(cents - right.cents) * USD // 100
        assert len(outcome.problems) == 1
    assert oracle.compare([segment], rows, {}).drift_nano_usd == right.counted + 150 * USD // 100
    assert oracle.compare([], rows, {key: right}).problems
    assert not oracle.compare([], rows, {key: Billed("in_1")}).problems


def test_lines_of_usage_are_added_up_by_period_and_plan() -> None:
    def line(price: str | None, quantity: int, amount: int, description: str = "usage") -> dict[str, Any]:
        pricing = None if price is None else {"price_details": {"price": price}}
        return {
            "pricing": pricing,
            "quantity": quantity,
            "amount": amount,
            "description": description,
            "period": {"start": 1, "end": 9},
        }

    parent = {"subscription_details": {"subscription": "sub_1"}}
    lines = [
        line("p", 5, 0),
        line("p", 7, 3),
        line("flat", 1, 19_00),
        line(None, 1, 1),
        line("p", 9, 0, "Free trial for"),
    ]
    invoice = {"id": "in_1", "status": "paid", "parent": parent, "lines": {"data": lines}}
    draft = {**invoice, "status": "draft"}
    assert oracle.billed([invoice, draft], {"p": "starter"}) == {("sub_1", 9, "starter"): Billed("in_1", 12, 3)}
