"""What a token costs, by model and kind of work.

A version that a usage row refers to never changes: a new price is a new version, and
rows keep the one they were written under. Version and kind name a price; which version
a new row gets depends on its model. All amounts are exact integers in micro-USD per
million tokens, so tokens x price is a whole number of 10^-12 USD; it is rounded once, at
the line a customer sees.

Prices are multiples of 1,000, so that any number of tokens costs a whole number of
10^-9 USD, which is the unit that Stripe's meter counts.
"""

from collections.abc import Mapping
from types import MappingProxyType

from app.settlements import Price

PRICE_VERSION = 1
"""The version that new usage rows are written under, unless their model has prices of its own."""
PICO_USD_PER_NANO_USD = 1_000

PRICES: Mapping[tuple[int, str], Price] = MappingProxyType(
    {
        (1, "generation"): Price(input=150_000, cached=75_000, output=600_000),
        (1, "classification"): Price(input=100_000, cached=100_000, output=0),
        (1, "embedding"): Price(input=20_000, cached=20_000, output=0),
        (2, "generation"): Price(input=100_000, cached=50_000, output=400_000),
    }
)
"""By version and kind of usage event; each was, or is, the price of something."""

OWN_VERSIONS: Mapping[tuple[str, str], int] = MappingProxyType({("tang-poetry", "generation"): 2})
"""By model and kind of work: what is not sold at ``PRICE_VERSION``."""


def price_version(model: str, kind: str) -> int:
    """The version under which a usage row of this model and kind is written now."""
    return OWN_VERSIONS.get((model, kind), PRICE_VERSION)


def check_prices(prices: Mapping[tuple[int, str], Price]) -> None:
    """Passes if the meter can count every price exactly.

    Raises:
        ValueError: One is negative or no multiple of 1,000, or what is cached costs more than what is not.
    """
    for (version, kind), price in prices.items():
        amounts = (price.input, price.cached, price.output)
        if any(amount < 0 or amount % PICO_USD_PER_NANO_USD for amount in amounts) or price.cached > price.input:
            raise ValueError(f"version {version} of the price of {kind} is not one that can be metered: {price}")


check_prices(PRICES)
