"""What a quantity costs under a price: exact, and rounded once, where it becomes a line.

Amounts are in cents (the currency's minor unit) as Decimal, because a price may be a fraction of a cent. A graduated
price gives one part for each tier that the quantity reaches, and each part becomes a line of the invoice, as Stripe
shows them; the quantities of the parts add up to the whole.
"""

from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

Price = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Part:
    """One line's worth.

    Attributes:
        quantity: Units in this part; 0 for a flat fee, which has none.
        unit_amount: Cents a unit; of a flat fee: the fee.
        amount: Cents, exact.
        tier: Counted from 1; None for a price without tiers.
        is_flat_fee: The fee for reaching a tier, whatever the quantity.
    """

    quantity: int
    unit_amount: Decimal
    amount: Decimal
    tier: int | None = None
    is_flat_fee: bool = False


def rate(price: Price, quantity: int) -> list[Part]:
    """What a quantity costs, in at least one part.

    Args:
        price: A Stripe price with its tiers.
        quantity: Whole units, not negative.
    """
    if price["billing_scheme"] == "per_unit":
        return [_per_unit(price, quantity)]
    if price["tiers_mode"] == "volume":
        return _volume(price["tiers"], quantity)
    return _graduated(price["tiers"], quantity)


def total(price: Price, quantity: int) -> Decimal:
    """The sum of the parts, exact, in cents."""
    return sum((part.amount for part in rate(price, quantity)), Decimal(0))


def cents(amount: Decimal) -> int:
    """Whole cents; half a cent goes away from zero."""
    return int(amount.quantize(Decimal(1), ROUND_HALF_UP))


def plain(amount: Decimal) -> str:
    """Without exponent and trailing zeros, as Stripe writes its `*_decimal` fields."""
    return f"{amount.normalize():f}"


def _per_unit(price: Price, quantity: int) -> Part:
    unit = Decimal(price["unit_amount_decimal"])
    return Part(quantity, unit, unit * _transformed(price, quantity))


def _transformed(price: Price, quantity: int) -> int:
    """Packages, where the price counts in packages: whole ones, a broken one counting or not."""
    transform = price.get("transform_quantity")
    if not transform:
        return quantity
    whole, broken = divmod(quantity, int(transform["divide_by"]))
    return whole + (1 if broken and transform["round"] == "up" else 0)


def _graduated(tiers: list[dict[str, Any]], quantity: int) -> list[Part]:
    """Each unit at the price of the tier that it falls into; a quantity of 0 is a line of the first tier."""
    parts: list[Part] = []
    below = 0
    for number, tier in enumerate(tiers, start=1):
        if number > 1 and quantity <= below:
            break
        upper = quantity if tier["up_to"] is None else min(quantity, int(tier["up_to"]))
        parts += _tier(tier, number, upper - below)
        below = upper
    return parts


def _volume(tiers: list[dict[str, Any]], quantity: int) -> list[Part]:
    """All units at the price of the tier that the whole quantity falls into."""
    for number, tier in enumerate(tiers, start=1):
        if tier["up_to"] is None or quantity <= int(tier["up_to"]):
            return _tier(tier, number, quantity)
    return _tier(tiers[-1], len(tiers), quantity)


def _tier(tier: dict[str, Any], number: int, quantity: int) -> list[Part]:
    unit = Decimal(tier.get("unit_amount_decimal") or 0)
    parts = [Part(quantity, unit, unit * quantity, number)]
    if tier.get("flat_amount_decimal") is not None:
        flat = Decimal(tier["flat_amount_decimal"])
        parts.append(Part(0, flat, flat, number, is_flat_fee=True))
    return parts
