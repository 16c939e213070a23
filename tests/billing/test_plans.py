"""Prices are exact and never change under a row."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.billing.plans import DEFAULT_PLAN, PRICE_VERSION, PRICES, Price, money
from app.tables import USAGE_KINDS

TOKENS = st.integers(0, 10**12)


def test_every_kind_of_work_has_a_price_in_the_current_version() -> None:
    assert {kind for version, kind in PRICES if version == PRICE_VERSION} == set(USAGE_KINDS)


def test_published_prices_of_version_1_stay_as_they_are() -> None:
    assert PRICES[1, "generation"] == Price(150_000, 75_000, 600_000)
    assert PRICES[1, "classification"] == Price(100_000, 100_000, 0)


def test_a_million_tokens_cost_the_price() -> None:
    assert money(Price(150_000, 75_000, 600_000).cost(10**6, 0, 0)) == {"value": "0.150000", "currency": "usd"}


def test_cached_tokens_cost_their_own_price_instead() -> None:
    price = Price(100, 10, 1000)
    assert price.cost(10, 4, 2) == 6 * 100 + 4 * 10 + 2 * 1000


@given(TOKENS, TOKENS, TOKENS, TOKENS)
def test_the_cost_of_a_sum_is_the_sum_of_the_costs(a: int, b: int, c: int, d: int) -> None:
    price = PRICES[1, "generation"]
    assert price.cost(a, 0, b) + price.cost(c, 0, d) == price.cost(a + c, 0, b + d)


@pytest.mark.parametrize(
    ("pico_usd", "value"),
    [
        (0, "0.000000"),
        (500_000, "0.000000"),
        (500_001, "0.000001"),
        (1_500_000, "0.000002"),
        (10**18, "1000000.000000"),
    ],
)
def test_money_is_rounded_half_to_even_at_the_micro_unit(pico_usd: int, value: str) -> None:
    assert money(pico_usd) == {"value": value, "currency": "usd"}
    assert money(Decimal(pico_usd))["value"] == value


def test_the_default_plan_allows_something() -> None:
    assert DEFAULT_PLAN.requests_per_minute > 0
    assert DEFAULT_PLAN.tokens_per_minute > 0
