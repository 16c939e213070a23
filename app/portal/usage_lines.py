"""What is made of the lines of a statement: sums, bars of a chart, pages of a table. Pure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from itertools import groupby

from app.billing.statement import Cursor, Group, Line
from app.portal.chart import MAX_SERIES, Series
from app.portal.usage_filter import UsageFilter

_FIELDS: dict[Group, str] = {"model": "model", "key": "key_id", "kind": "kind"}


@dataclass(frozen=True, slots=True)
class Sums:
    """What one model, key or kind used in the whole span; ``cost`` in 10^-12 USD.

    Attributes:
        fill: Which pattern it has in the chart; None: it is among the others.
    """

    value: str
    requests: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    cost: Decimal
    fill: int | None = None


def value_of(group: Group) -> Callable[[Line], str]:
    """Reads off a line what it is grouped by."""
    field = _FIELDS[group]
    return lambda line: str(getattr(line, field))


def added(value: str, parts: Sequence[Line | Sums]) -> Sums:
    """The parts together, under one name."""
    return Sums(
        value,
        requests=sum(part.requests for part in parts),
        input_tokens=sum(part.input_tokens for part in parts),
        cached_tokens=sum(part.cached_tokens for part in parts),
        output_tokens=sum(part.output_tokens for part in parts),
        cost=sum((part.cost for part in parts), Decimal(0)),
    )


def sums_of(lines: Sequence[Line], group: Group) -> list[Sums]:
    """One for each model, key or kind, dearest first; as many have a fill as there are patterns."""
    name = value_of(group)
    sums = [added(value, list(same)) for value, same in groupby(sorted(lines, key=name), key=name)]
    sums.sort(key=lambda one: (-one.cost, one.value))
    num_filled = len(sums) if len(sums) <= MAX_SERIES else MAX_SERIES - 1
    return [replace(one, fill=index) if index < num_filled else one for index, one in enumerate(sums)]


def bars_of(lines: Sequence[Line], sums: Sequence[Sums], chosen: UsageFilter) -> list[Series]:
    """Costs by time of those with a fill, then of all others together; those have no name."""
    starts = {start: index for index, start in enumerate(chosen.buckets)}
    name, names = value_of(chosen.group), [one.value for one in sums if one.fill is not None]
    if len(names) < len(sums):
        names.append("")
    costs = {value: [Decimal(0)] * len(starts) for value in names}
    for line in lines:
        value = name(line)
        costs[value if value in costs else ""][starts[line.start]] += line.cost
    return [Series(value, values) for value, values in costs.items()]


def page_of(lines: Sequence[Line], after: Cursor | None, limit: int) -> tuple[Sequence[Line], bool]:
    """A page of lines that are in the order of statements; and whether there are more."""
    left = lines if after is None else [line for line in lines if _place(line.cursor) > _place(after)]
    return left[:limit], len(left) > limit


def _place(cursor: Cursor) -> tuple[object, ...]:
    return cursor.start, cursor.model, cursor.key_id, cursor.kind
