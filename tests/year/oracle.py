"""What the invoices of a year have to say, worked out from usage rows by themselves.

Nothing of the program under test is imported: prices, what plans include and their tiers
are written down here a second time, months are counted here, rounding is done here.
"""

import calendar
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

LIST_PRICES = {
    (1, "generation"): (150_000, 75_000, 600_000),
    (1, "classification"): (100_000, 100_000, 0),
    (1, "embedding"): (20_000, 20_000, 0),
    (2, "generation"): (100_000, 50_000, 400_000),
}
"""Micro-USD per million tokens of input, cached input, output."""
USD = 10**9
TIERS: Mapping[str, Sequence[tuple[int | None, int]]] = {
    "starter": ((15 * USD, 0), (None, 100)),
    "growth": ((90 * USD, 0), (500 * USD, 100), (None, 90)),
    "scale": ((480 * USD, 0), (2_000 * USD, 90), (10_000 * USD, 80), (None, 70)),
}
"""By plan: up to how many nano-USD of list price a tier goes, and which percentage of it is paid."""
PICO_USD_PER_NANO_USD = 1_000
_NANO_USD_PER_PERCENT_OF_CENT = 10**9


@dataclass(frozen=True, slots=True)
class Row:
    """A usage row.

    Attributes:
        counts_at: When it was billed; of a late one when it was first seen.
    """

    id: UUID
    org_id: UUID
    counts_at: datetime
    version: int
    kind: str
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    is_prepaid: bool

    @property
    def pico_usd(self) -> int:
        """Its list price in 10^-12 USD."""
        fresh, cached, output = LIST_PRICES[self.version, self.kind]
        return (
            (self.input_tokens - self.cached_tokens) * fresh + self.cached_tokens * cached + self.output_tokens * output
        )


@dataclass(slots=True)
class Life:
    """A subscription as the script has led it.

    Attributes:
        anchor: Where its periods of usage begin; with the first one metering begins.
        plans: From when on which plan is in force, oldest first.
        end: When it ended; None: it has not.
    """

    id: str
    org_id: UUID
    anchor: datetime
    plans: list[tuple[datetime, str]]
    end: datetime | None = None


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a period of usage under one plan; one invoice bills it."""

    subscription: str
    org_id: UUID
    start: datetime
    end: datetime
    plan: str
    is_period_end: bool


@dataclass(slots=True)
class Billed:
    """What an invoice says of usage at one price: nano-USD counted, and cents."""

    invoice: str
    counted: int = 0
    cents: int = 0


@dataclass(slots=True)
class Comparison:
    """How far invoices are from what they have to say.

    Attributes:
        drift_nano_usd: Of counted units, and of amounts in that unit; absolute, added up.
    """

    segments: int = 0
    drift_nano_usd: int = 0
    problems: list[str] = field(default_factory=list)


def segments(life: Life, until: datetime) -> Iterable[Segment]:
    """The parts of a subscription's periods that are over by ``until``."""
    number, start = 0, life.anchor
    while True:
        number += 1
        end = later(life.anchor, number)
        last = end if life.end is None else min(end, life.end)
        if last > until or start >= last:
            return
        cuts = [at for at, _ in life.plans if start < at < last]
        for begin, finish in zip([start, *cuts], [*cuts, last], strict=True):
            plan = [name for at, name in life.plans if at <= begin][-1]
            yield Segment(life.id, life.org_id, begin, finish, plan, finish == last)
        start = end


def later(anchor: datetime, months: int) -> datetime:
    """The same day and time so many months later, or the month's last day."""
    month = anchor.month - 1 + months
    year, month = anchor.year + month // 12, month % 12 + 1
    return anchor.replace(year=year, month=month, day=min(anchor.day, calendar.monthrange(year, month)[1]))


def cents_of(plan: str, value: int) -> int:
    """What usage worth so many nano-USD costs: one line a tier, each rounded half up."""
    total, below = 0, 0
    for up_to, percent in TIERS[plan]:
        upper = value if up_to is None else min(value, up_to)
        units = max(0, upper - below)
        total += (2 * units * percent + _NANO_USD_PER_PERCENT_OF_CENT) // (2 * _NANO_USD_PER_PERCENT_OF_CENT)
        below = max(below, upper)
    return total


def billed(
    invoices: Iterable[Mapping[str, Any]], plan_of_price: Mapping[str, str]
) -> dict[tuple[str, int, str], Billed]:
    """What final invoices say of usage, by subscription, end of the lines' period, and plan.

    Args:
        invoices: Stripe's, with all of their lines.
        plan_of_price: Of the prices of usage.
    """
    found: dict[tuple[str, int, str], Billed] = {}
    for invoice in invoices:
        if invoice["status"] in ("draft", "void"):
            continue
        for line in invoice["lines"]["data"]:
            plan = plan_of_price.get(_price_of(line) or "")
            if plan is None or _is_trial(line):
                continue
            key = (_subscription_of(invoice), line["period"]["end"], plan)
            one = found.setdefault(key, Billed(invoice["id"]))
            one.counted += line["quantity"]
            one.cents += line["amount"]
    return found


def compare(expected: Iterable[Segment], rows: Iterable[Row], found: dict[tuple[str, int, str], Billed]) -> Comparison:
    """Holds what invoices say against the rows; every segment once, every invoiced price once."""
    outcome = Comparison()
    by_org: dict[UUID, list[Row]] = {}
    for row in rows:
        if not row.is_prepaid:
            by_org.setdefault(row.org_id, []).append(row)
    left = dict(found)
    for segment in expected:
        outcome.segments += 1
        mine = (row for row in by_org.get(segment.org_id, ()) if segment.start <= row.counts_at < segment.end)
        value, rest = divmod(sum(row.pico_usd for row in mine), PICO_USD_PER_NANO_USD)
        assert rest == 0
        said = left.pop((segment.subscription, int(segment.end.timestamp()), segment.plan), Billed("none"))
        cents = cents_of(segment.plan, value)
        if (said.counted, said.cents) != (value, cents):
            outcome.drift_nano_usd += abs(said.counted - value) + abs(said.cents - cents) * USD // 100
            outcome.problems.append(
                f"{segment.plan} {segment.start:%m-%d %H:%M:%S}..{segment.end:%m-%d %H:%M:%S} on {said.invoice}:"
                f" {said.counted} units and {said.cents} cents, not {value} and {cents}"
            )
    for (_, end, plan), extra in left.items():
        if extra.counted or extra.cents:
            outcome.drift_nano_usd += extra.counted + abs(extra.cents) * USD // 100
            at = datetime.fromtimestamp(end, UTC)
            outcome.problems.append(f"{plan} until {at:%m-%d %H:%M:%S} on {extra.invoice}: nothing was to be billed")
    return outcome


def _price_of(line: Mapping[str, Any]) -> str | None:
    pricing = line["pricing"] or {}
    price: str | None = (pricing.get("price_details") or {}).get("price")
    return price


def _subscription_of(invoice: Mapping[str, Any]) -> str:
    return str(invoice["parent"]["subscription_details"]["subscription"])


def _is_trial(line: Mapping[str, Any]) -> bool:
    return str(line["description"]).startswith("Free trial")
