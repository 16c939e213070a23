"""What many measurements of one thing come to: mean and percentiles, and how a table shows them."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True, slots=True)
class Summary:
    """Of one quantity, in its own unit; every field is NaN where nothing was measured."""

    count: int
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Summary":
        """Sum up; the values need no order."""
        ordered = sorted(values)
        if not ordered:
            return cls(0, math.nan, math.nan, math.nan, math.nan, math.nan, math.nan)
        p50, p90, p95, p99 = (percentile(ordered, rank) for rank in PERCENTILES)
        return cls(len(ordered), math.fsum(ordered) / len(ordered), p50, p90, p95, p99, ordered[-1])

    def as_json(self, digits: int = 3) -> dict[str, float | int | None]:
        """By name; what was not measured is null, because JSON has no NaN."""
        values = asdict(self)
        return {name: None if math.isnan(value) else round(value, digits) for name, value in values.items()}


def percentile(ordered: Sequence[float], rank: float) -> float:
    """The value below which ``rank`` percent lie, interpolated between neighbours.

    Args:
        ordered: Rising, at least one.
        rank: 0 to 100.
    """
    position = (len(ordered) - 1) * rank / 100
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns as wide as they need to be: the first to the left, the others to the right."""
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(cell) for cell in column) for column in zip(*cells, strict=True)]
    lines = []
    for first, *rest in cells:
        columns = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))]
        lines.append("  ".join(columns).rstrip())
    return "\n".join(lines)


def number(value: float, digits: int = 1) -> str:
    """A figure of a table; a dash where nothing was measured."""
    return "-" if math.isnan(value) else f"{value:,.{digits}f}"
