"""Prices are exact and never change under a row."""

import pytest

from app.billing.prices import OWN_VERSIONS, PRICE_VERSION, PRICES, check_prices, price_version
from app.settlements import Price
from app.tables import USAGE_KINDS


def test_every_kind_of_work_has_a_price_in_the_current_version() -> None:
    assert {kind for version, kind in PRICES if version == PRICE_VERSION} == set(USAGE_KINDS)


def test_published_prices_stay_as_they_are() -> None:
    assert PRICES[1, "generation"] == Price(150_000, 75_000, 600_000)
    assert PRICES[1, "classification"] == Price(100_000, 100_000, 0)
    assert PRICES[1, "embedding"] == Price(20_000, 20_000, 0)
    assert PRICES[2, "generation"] == Price(100_000, 50_000, 400_000)


def test_a_model_with_a_price_of_its_own_is_sold_at_it_and_any_other_at_that_of_its_kind() -> None:
    for (model, kind), version in OWN_VERSIONS.items():
        assert price_version(model, kind) == version
        assert (version, kind) in PRICES
    assert price_version("any other", "generation") == PRICE_VERSION
    assert price_version("tang-poetry", "embedding") == PRICE_VERSION


@pytest.mark.parametrize("price", [Price(150_500, 75_000, 0), Price(1_000, 2_000, 0), Price(-1_000, -2_000, 0)])
def test_a_price_that_the_meter_cannot_count_is_refused(price: Price) -> None:
    with pytest.raises(ValueError, match="version 3 of the price of generation"):
        check_prices({**PRICES, (3, "generation"): price})
