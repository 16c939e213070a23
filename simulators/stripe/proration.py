"""What part of a period costs: to the second, rounded once.

Credits follow flexible billing: they give back a share of what was actually debited for the time, net of its
discounts, whatever the price says today. A debit can be credited once; the credit names it.
"""

from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from simulators.stripe.periods import Period
from simulators.stripe.rating import cents


@dataclass(frozen=True, slots=True)
class Debit:
    """A charge in advance for an item's time, which a change may give back in part.

    Attributes:
        item: Id of the subscription item.
        net: Cents, after discounts and without tax.
        period: The time paid for.
        credited_items: How Stripe refers to it: by its invoice line or, while pending, by its invoice item.
    """

    item: str
    net: int
    period: Period
    credited_items: dict[str, Any]


def share(amount: Decimal, whole: Period, part: Period) -> int:
    """The cents of a part of a period, by its seconds."""
    return cents(amount * part.length_s / whole.length_s)


def unused(debit: Debit, moment: int) -> int:
    """The cents that a debit covers from a moment on: all of it before its period, 0 after it."""
    start = min(max(moment, debit.period.start), debit.period.end)
    return share(Decimal(debit.net), debit.period, Period(start, debit.period.end))
