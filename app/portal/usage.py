"""/usage: what an organisation used, as chart, table, rows and files: the very rows that are billed."""

import csv
import io
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from itertools import groupby
from typing import Any
from uuid import UUID

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from markupsafe import Markup
from sqlalchemy.ext.asyncio import AsyncConnection

from app import keys as api_keys
from app.accounts.sessions import PortalUser
from app.billing.prices import money
from app.billing.receipts import ReceiptCursor, ReceiptQuery, cursor_of, read_receipts
from app.billing.statement import Cursor, Line, Query, Receipt, read_lines
from app.portal.chart import MAX_SERIES, Series, stacked_bars, swatch
from app.portal.i18n import Language, language_of
from app.portal.page import PageRoute, render
from app.portal.session import database_of, require_user
from app.portal.usage_filter import GROUPS, SPANS, UsageFilter

PAGE_LINES = 50
PAGE_ROWS = 50
CSV_LINES = 1_000
"""Read in one transaction while a file is written."""
MAX_SUMS = 50
"""Shown one by one; the rest is one line."""
MAX_KEYS = 200
"""That can be chosen from."""

_HOURS_A_DAY = 24

router = APIRouter(include_in_schema=False, route_class=PageRoute)


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


@router.get("/usage")
async def show_usage(request: Request) -> Response:
    """Chart, sums and lines."""
    user = await require_user(request, "usage.read")
    chosen = UsageFilter.parse(request.query_params, datetime.now(UTC))
    after = request.query_params.get("after")
    page = replace(chosen.query(user.org_id, PAGE_LINES), after=Cursor.parse(after) if after else None)
    async with database_of(request).begin() as connection:
        sums = await _read_sums(connection, chosen.query(user.org_id, CSV_LINES, bucket="month"))
        bars = [] if after else await _read_bars(connection, chosen, user, sums)
        lines, has_more = await read_lines(connection, page)
        keys = await api_keys.list_keys(connection, user.org_id, limit=MAX_KEYS)
    language = language_of(request)
    names = {str(key.id): f"{key.name} …{key.last4}" for key in keys}
    return render(
        request,
        "usage.html",
        chosen=chosen,
        chart=_chart(language, chosen, bars, names) if any(any(one.values) for one in bars) else None,
        swatch=swatch,
        sums=sums[:MAX_SUMS],
        others=_added("", sums[MAX_SUMS:]) if len(sums) > MAX_SUMS else None,
        total=_added("", sums),
        lines=lines,
        keys=keys,
        names=names,
        models=_models(sums, chosen),
        groups=GROUPS,
        spans=SPANS,
        value_of=_value_of(chosen),
        first_page=chosen.address("/usage") if after else "",
        next_page=chosen.address("/usage", after=lines[-1].cursor.token) if has_more else "",
    )


@router.get("/usage/rows")
async def show_rows(request: Request) -> Response:
    """The rows one by one, newest first."""
    user = await require_user(request, "usage.read")
    chosen = UsageFilter.parse(request.query_params, datetime.now(UTC))
    after = request.query_params.get("after")
    query = replace(_rows_of(user, chosen, PAGE_ROWS), after=ReceiptCursor.parse(after) if after else None)
    async with database_of(request).begin() as connection:
        rows, has_more = await read_receipts(connection, query)
        keys = await api_keys.list_keys(connection, user.org_id, limit=MAX_KEYS)
    return render(
        request,
        "usage_rows.html",
        chosen=chosen,
        rows=rows,
        names={key.id: f"{key.name} …{key.last4}" for key in keys},
        first_page=chosen.address("/usage/rows") if after else "",
        next_page=chosen.address("/usage/rows", after=cursor_of(rows[-1]).token) if has_more else "",
    )


@router.get("/usage/lines.csv")
async def lines_csv(request: Request) -> Response:
    """Every line of the choice, as ``GET /v1/usage?format=csv`` has them."""
    user = await require_user(request, "usage.read")
    chosen = UsageFilter.parse(request.query_params, datetime.now(UTC))
    column = {"model": "model", "key": "key_id", "kind": "kind"}[chosen.group]
    value_of = _value_of(chosen)
    counts = ("requests", "input_tokens", "cached_tokens", "output_tokens", "total_tokens")

    async def pages() -> AsyncIterator[Sequence[Sequence[object]]]:
        yield [["start", "end", column, *counts, "cost", "currency"]]
        query, has_more = chosen.query(user.org_id, CSV_LINES), True
        while has_more:
            async with database_of(request).begin() as connection:
                lines, has_more = await read_lines(connection, query)
            yield [[_utc(line.start), _utc(line.end), value_of(line), *_numbers(line)] for line in lines]
            query = replace(query, after=lines[-1].cursor) if has_more else query

    return _csv(pages(), "usage")


@router.get("/usage/rows.csv")
async def rows_csv(request: Request) -> Response:
    """Every row of the choice, newest first."""
    user = await require_user(request, "usage.read")
    chosen = UsageFilter.parse(request.query_params, datetime.now(UTC))
    columns = ("request_id", "billed_at", "model", "kind", "key_id", "finish_reason")
    counts = ("input_tokens", "cached_tokens", "output_tokens", "total_tokens")

    async def pages() -> AsyncIterator[Sequence[Sequence[object]]]:
        yield [[*columns, *counts, "cost", "currency"]]
        query, has_more = _rows_of(user, chosen, CSV_LINES), True
        while has_more:
            async with database_of(request).begin() as connection:
                rows, has_more = await read_receipts(connection, query)
            yield [
                [row.id, _utc(row.billed_at), row.model, row.kind, row.key_id, row.finish_reason, *_numbers(row)[-6:]]
                for row in rows
            ]
            query = replace(query, after=cursor_of(rows[-1])) if has_more else query

    return _csv(pages(), "usage-rows")


async def _read_sums(connection: AsyncConnection, query: Query) -> list[Sums]:
    """The whole span by what it is grouped by, dearest first."""
    found, has_more = await read_lines(connection, query)
    while has_more:
        lines, has_more = await read_lines(connection, replace(query, after=found[-1].cursor))
        found += lines
    value_of = _value_of_group(query.group_by[0])
    sums = [_added(value, list(same)) for value, same in groupby(sorted(found, key=value_of), key=value_of)]
    sums.sort(key=lambda one: (-one.cost, one.value))
    num_filled = len(sums) if len(sums) <= MAX_SERIES else MAX_SERIES - 1
    return [replace(one, fill=index) if index < num_filled else one for index, one in enumerate(sums)]


async def _read_bars(
    connection: AsyncConnection, chosen: UsageFilter, user: PortalUser, sums: Sequence[Sums]
) -> list[Series]:
    """Costs by time of those with a fill, then of all others together; the name is the value."""
    shown = [one for one in sums if one.fill is not None]
    starts = {start: index for index, start in enumerate(chosen.buckets)}
    query = chosen.query(user.org_id, len(starts) * MAX_SERIES)
    values = [one.value for one in shown]
    if chosen.group == "model":
        query = replace(query, models=values)
    elif chosen.group == "key":
        query = replace(query, key_ids=[UUID(value) for value in values])
    costs = {value: [Decimal(0)] * len(starts) for value in values}
    lines, _ = await read_lines(connection, query)
    value_of = _value_of(chosen)
    for line in lines:
        costs[value_of(line)][starts[line.start]] += line.cost
    bars = [Series(value, costs[value]) for value in values]
    if len(shown) < len(sums):
        everything = [Decimal(0)] * len(starts)
        lines, _ = await read_lines(connection, chosen.query(user.org_id, len(starts), is_grouped=False))
        for line in lines:
            everything[starts[line.start]] += line.cost
        rest = [whole - sum(parts) for whole, *parts in zip(everything, *costs.values(), strict=True)]
        bars.append(Series("", rest))
    return bars


def _chart(language: Language, chosen: UsageFilter, bars: Sequence[Series], names: dict[str, str]) -> Markup:
    titles = {
        "hour": language.gettext("Cost by hour"),
        "day": language.gettext("Cost by day"),
        "month": language.gettext("Cost by month"),
    }
    others = language.gettext("Others")
    named = [replace(one, name=names.get(one.name, one.name) or others) for one in bars]
    return stacked_bars(_labels(language, chosen), named, titles[chosen.bucket], language.dollars)


def _labels(language: Language, chosen: UsageFilter) -> list[str]:
    starts = chosen.buckets
    if chosen.bucket == "month":
        return [language.month(at) for at in starts]
    if chosen.bucket == "day":
        return [language.short_day(at) for at in starts]
    if len(starts) <= _HOURS_A_DAY:
        return [f"{at:%H:%M}" for at in starts]
    return [f"{language.short_day(at)} {at:%H:%M}" for at in starts]


def _rows_of(user: PortalUser, chosen: UsageFilter, limit: int) -> ReceiptQuery:
    return ReceiptQuery(
        user.org_id,
        chosen.start,
        chosen.end,
        limit,
        models=None if chosen.model is None else [chosen.model],
        key_ids=None if chosen.key_id is None else [chosen.key_id],
    )


def _models(sums: Sequence[Sums], chosen: UsageFilter) -> list[str]:
    """Those that can be chosen: where lines are by model, those that were used."""
    used = {one.value for one in sums} if chosen.group == "model" else set()
    return sorted(used | ({chosen.model} if chosen.model else set()))


def _added(value: str, parts: Sequence[Line | Sums]) -> Sums:
    return Sums(
        value,
        requests=sum(part.requests for part in parts),
        input_tokens=sum(part.input_tokens for part in parts),
        cached_tokens=sum(part.cached_tokens for part in parts),
        output_tokens=sum(part.output_tokens for part in parts),
        cost=sum((part.cost for part in parts), Decimal(0)),
    )


def _value_of(chosen: UsageFilter) -> Callable[[Line], str]:
    return _value_of_group(chosen.group)


def _value_of_group(group: str) -> Callable[[Line], str]:
    field = {"model": "model", "key": "key_id", "kind": "kind"}[group]
    return lambda line: str(getattr(line, field))


def _numbers(line: Line | Receipt) -> list[object]:
    total = line.input_tokens + line.output_tokens
    cost = money(line.cost)
    counts = [getattr(line, "requests", 1), line.input_tokens, line.cached_tokens, line.output_tokens, total]
    return [*counts, cost["value"], cost["currency"]]


def _csv(pages: AsyncIterator[Sequence[Sequence[object]]], name: str) -> Response:
    """A file that is written while it is read; nothing in it is what a spreadsheet takes for a formula."""

    async def text() -> AsyncIterator[str]:
        async for page in pages:
            table = io.StringIO()
            csv.writer(table).writerows([[_cell(value) for value in row] for row in page])
            yield table.getvalue()

    headers = {"content-disposition": f'attachment; filename="{name}.csv"'}
    return StreamingResponse(text(), headers=headers, media_type="text/csv")


def _cell(value: Any) -> Any:  # noqa: ANN401 - as the writer takes it
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def _utc(value: datetime) -> str:
    return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
