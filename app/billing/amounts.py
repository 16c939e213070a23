"""Amounts of USD: how people write them, and how the interface shows them.

What is kept is a whole number of 10^-12 USD. People, and requests, write six decimals at most and
nothing but digits: what others take for a number (1e3, NaN, 1_000, digits of other scripts) is
refused, and nothing is rounded on its way in.
"""

import re
from decimal import ROUND_HALF_EVEN, Decimal

from app.errors import BadRequest

CURRENCY = "usd"
PICO_USD_PER_USD = 10**12
MAX_USD = 9_000_000
"""A column holds a little more."""

_WRITTEN = re.compile(r"(-?)([0-9]+)(?:\.([0-9]{1,6}))?")
_DECIMALS = 12
_MICRO_USD = Decimal("0.000001")


def parse_usd(text: str, param: str, *, is_signed: bool = False) -> int:
    """An amount that somebody has written, in 10^-12 USD.

    Args:
        text: Digits, and up to six more after a point.
        param: Names the field or option in what is raised.
        is_signed: Whether it may be below 0.

    Raises:
        BadRequest: It is something else, or beyond nine million.
    """
    match = _WRITTEN.fullmatch(text)
    if match is None or (match[1] and not is_signed):
        raise BadRequest("Please enter an amount such as 25 or 12.50.", param=param)
    sign, whole, fraction = match.groups(default="")
    # No number is made of thousands of digits.
    amount = int(whole[-_DECIMALS:]) * PICO_USD_PER_USD + int(fraction.ljust(_DECIMALS, "0"))
    if amount > MAX_USD * PICO_USD_PER_USD or whole[:-_DECIMALS].strip("0"):
        raise BadRequest("Please enter at most 9,000,000.", param=param)
    return -amount if sign else amount


def written(pico_usd: int) -> str:
    """An amount as somebody would write it: ``12.5``."""
    return f"{(Decimal(pico_usd) / PICO_USD_PER_USD).normalize():f}"


def money(pico_usd: int | Decimal) -> dict[str, str]:
    """An amount as the interface shows it: rounded half to even, to the micro-USD.

    Args:
        pico_usd: Exact, in 10^-12 USD.
    """
    value = (Decimal(pico_usd) / PICO_USD_PER_USD).quantize(_MICRO_USD, ROUND_HALF_EVEN)
    return {"value": f"{value:f}", "currency": CURRENCY}
