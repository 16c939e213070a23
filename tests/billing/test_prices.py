"""Prices are exact and never change under a row."""

from decimal import Decimal

import pytest

from app.billing.prices import PRICE_VERSION, PRICES, money
from app.metering import Price
from app.tables import USAGE_KINDS


def test_every_kind_of_work_has_a_price_in_the_current_version() -> None:
    assert {kind for version, kind in PRICES if version == PRICE_VERSION} == set(USAGE_KINDS)


def test_published_prices_of_version_1_stay_as_they_are() -> None:
    assert PRICES[1, "generation"] == Price(150_000, 75_000, 600_000)
    assert PRICES[1, "classification"] == Price(100_000, 100_000, 0)


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
