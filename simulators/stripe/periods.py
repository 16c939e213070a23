"""Billing periods: where the boundaries of a cycle fall, counted from its anchor.

A boundary is always counted from the anchor and never from the boundary before it, so that a cycle anchored on
31 January bills on 28 February and on 31 March again. Times are Unix seconds and calendars are UTC, as at Stripe.
"""

import calendar
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

SECONDS_PER_DAY = 86_400

_FIXED_S = {"day": SECONDS_PER_DAY, "week": 7 * SECONDS_PER_DAY}
_MONTHS = {"month": 1, "year": 12}


@dataclass(frozen=True, slots=True)
class Period:
    """Half open: `start` belongs to it, `end` to the next one."""

    start: int
    end: int

    @property
    def length_s(self) -> int:
        """Never zero for a period of a cycle."""
        return self.end - self.start


def add_months(moment: int, months: int) -> int:
    """The same day and time so many months on; the last day of the month where there is no such day."""
    was = datetime.fromtimestamp(moment, UTC)
    year, month = divmod(was.year * 12 + was.month - 1 + months, 12)
    day = min(was.day, calendar.monthrange(year, month + 1)[1])
    return int(was.replace(year=year, month=month + 1, day=day).timestamp())


def boundary(anchor: int, recurring: dict[str, Any], index: int) -> int:
    """The start of the period number `index`, where number 0 starts at the anchor; may be negative.

    Args:
        anchor: Billing cycle anchor, Unix seconds.
        recurring: Of a price: `interval` and `interval_count`.
        index: How many periods after the anchor.
    """
    steps = index * int(recurring["interval_count"])
    if recurring["interval"] in _FIXED_S:
        return anchor + steps * _FIXED_S[recurring["interval"]]
    return add_months(anchor, steps * _MONTHS[recurring["interval"]])


def period_at(anchor: int, recurring: dict[str, Any], moment: int) -> Period:
    """The period of the cycle that holds a moment, before the anchor too."""
    index = _roughly(anchor, recurring, moment)
    while boundary(anchor, recurring, index) > moment:
        index -= 1
    while boundary(anchor, recurring, index + 1) <= moment:
        index += 1
    return Period(boundary(anchor, recurring, index), boundary(anchor, recurring, index + 1))


def _roughly(anchor: int, recurring: dict[str, Any], moment: int) -> int:
    days = {"day": 1, "week": 7, "month": 30, "year": 365}[recurring["interval"]] * int(recurring["interval_count"])
    return (moment - anchor) // (days * SECONDS_PER_DAY)
