"""The code-defined, versioned catalogue: what a token costs, what a plan allows.

A version that a usage row refers to never changes: a new price is a new version,
and rows keep the one they were written under. All amounts are exact integers in
micro-USD per million tokens, so tokens x price is a whole number of 10^-12 USD; it
is rounded once, at the line a customer sees.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal
from types import MappingProxyType

from app.errors import BadRequest
from app.metering import Price

CURRENCY = "usd"
PRICE_VERSION = 1
"""The version that new usage rows are written under."""

_PICO_USD_PER_USD = Decimal(10**12)
_MICRO_USD = Decimal("0.000001")


@dataclass(frozen=True, slots=True)
class Plan:
    """What a customer may do, unless the key or the organisation's budget says otherwise.

    Attributes:
        requests_per_minute: With one key.
        tokens_per_minute: Likewise.
        max_concurrent: Requests of the organisation that run at once.
    """

    name: str
    requests_per_minute: int
    tokens_per_minute: int
    max_concurrent: int


PRICES: Mapping[tuple[int, str], Price] = MappingProxyType(
    {
        (1, "generation"): Price(input=150_000, cached=75_000, output=600_000),
        (1, "classification"): Price(input=100_000, cached=100_000, output=0),
        (1, "embedding"): Price(input=20_000, cached=20_000, output=0),
    }
)
"""By version and kind of usage event."""

DEFAULT_PLAN = Plan(name="standard", requests_per_minute=12_000, tokens_per_minute=6_000_000, max_concurrent=1_000)


def pico_usd(usd: Decimal) -> int:
    """An amount of USD in 10^-12 USD.

    Raises:
        BadRequest: It has more than 12 decimals, or is beyond nine million.
    """
    amount = usd * _PICO_USD_PER_USD if usd.is_finite() else Decimal("NaN")
    if not amount.is_finite() or amount != amount.to_integral_value() or abs(amount) >= 2**63:
        raise BadRequest(f"{usd} is not an amount of USD that can be held.")
    return int(amount)


def money(pico_usd: int | Decimal) -> dict[str, str]:
    """An amount as the interface shows it: rounded half to even, to the micro-USD.

    Args:
        pico_usd: Exact, in 10^-12 USD.
    """
    value = (Decimal(pico_usd) / _PICO_USD_PER_USD).quantize(_MICRO_USD, ROUND_HALF_EVEN)
    return {"value": f"{value:f}", "currency": CURRENCY}
