"""/usage: what an organisation used, as chart, table, rows and files: the very rows that are billed."""

import asyncio
import csv
import io
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, cast
from uuid import UUID

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from markupsafe import Markup
from sqlalchemy.ext.asyncio import AsyncConnection

from app import keys as api_keys
from app.accounts.sessions import PortalUser
from app.billing import account
from app.billing.amounts import PICO_USD_PER_USD, money
from app.billing.receipts import ReceiptCursor, ReceiptQuery, cursor_of, read_receipts
from app.billing.statement import Cursor, Line, Query, Receipt, read_lines
from app.errors import NotFound
from app.keys import KeyListing
from app.portal.chart import Series, stacked_bars, swatch
from app.portal.examples import published
from app.portal.i18n import Language, language_of
from app.portal.page import PageRoute, render
from app.portal.session import database_of, require_user, settings_of
from app.portal.usage_filter import GROUPS, SPANS, UsageFilter
from app.portal.usage_lines import Sums, added, bars_of, page_of, sums_of, value_of

PAGE_LINES = 50
PAGE_ROWS = 50
MAX_LINES = 5_000
"""Read at once for a page."""
CSV_LINES = 1_000
"""Read in one transaction while a file is written."""
MAX_SUMS = 50
"""Shown one by one; the rest is one line."""
MAX_KEYS = 200
"""That can be chosen from, the newest; others are named where they were used."""

_HOURS_A_DAY = 24

router = APIRouter(include_in_schema=False, route_class=PageRoute)


@router.get("/usage")
async def show_usage(request: Request) -> Response:
    """Chart, sums and lines."""
    user = await require_user(request, "usage.read")
    chosen = UsageFilter.parse(request.query_params, datetime.now(UTC))
    after = request.query_params.get("after")
    place = Cursor.parse(after) if after else None
    async with database_of(request).begin() as connection:
        lines = await _read_all(connection, chosen.query(user.org_id, MAX_LINES))
        sums = sums_of(lines, chosen.group)
        keys = await _read_keys(connection, user, chosen, [line.key_id for line in lines])
    cards = await asyncio.to_thread(published, settings_of(request).models_dir)
    page, has_more = page_of(lines, place, PAGE_LINES)
    language = language_of(request)
    names = {str(key.id): key.label for key in keys}
    return render(
        request,
        "usage.html",
        chosen=chosen,
        chart=_chart(language, chosen, bars_of(lines, sums, chosen), names) if place is None else None,
        swatch=swatch,
        sums=sums[:MAX_SUMS],
        others=added("", sums[MAX_SUMS:]) if len(sums) > MAX_SUMS else None,
        total=added("", sums),
        lines=page,
        keys=keys,
        names=names,
        models=_models(sums, chosen, [card.name for card in cards]),
        groups=GROUPS,
        spans=SPANS,
        value_of=value_of(chosen.group),
        first_page=chosen.address("/usage") if after else "",
        next_page=chosen.address("/usage", after=page[-1].cursor.token) if has_more else "",
    )


@router.get("/usage/rows")
async def show_rows(request: Request) -> Response:
    """The rows one by one, newest first."""
    user = await require_user(request, "usage.read")
    chosen = UsageFilter.parse(request.query_params, datetime.now(UTC))
    after = request.query_params.get("after")
    place = ReceiptCursor.parse(after) if after else None
    query = await _rows_of(request, user, chosen, PAGE_ROWS)
    async with database_of(request).begin() as connection:
        rows, has_more = await read_receipts(connection, replace(query, after=place))
        keys = await api_keys.find_keys(connection, user.org_id, {row.key_id for row in rows})
    return render(
        request,
        "usage_rows.html",
        chosen=replace(chosen, start=query.start, end=query.end),
        rows=rows,
        names={key.id: key.label for key in keys},
        first_page=chosen.address("/usage/rows") if after else "",
        next_page=chosen.address("/usage/rows", after=cursor_of(rows[-1]).token) if has_more else "",
    )


@router.get("/usage/lines.csv")
async def lines_csv(request: Request) -> Response:
    """Every line of the choice, as ``GET /v1/usage?format=csv`` has them."""
    user = await require_user(request, "usage.read")
    chosen = UsageFilter.parse(request.query_params, datetime.now(UTC))
    column = {"model": "model", "key": "key_id", "kind": "kind"}[chosen.group]
    name = value_of(chosen.group)
    counts = ("requests", "input_tokens", "cached_tokens", "output_tokens", "total_tokens")

    async def pages() -> AsyncIterator[Sequence[Sequence[object]]]:
        yield [["start", "end", column, *counts, "cost", "currency"]]
        query, has_more = chosen.query(user.org_id, CSV_LINES), True
        while has_more:
            async with database_of(request).begin() as connection:
                lines, has_more = await read_lines(connection, query)
            yield [[_utc(line.start), _utc(line.end), name(line), *_numbers(line)] for line in lines]
            query = replace(query, after=lines[-1].cursor) if has_more else query

    return _csv(pages(), "usage")


@router.get("/usage/rows.csv")
async def rows_csv(request: Request) -> Response:
    """Every row of the choice, newest first; costs are exact, so that they add up to what is billed."""
    user = await require_user(request, "usage.read")
    chosen = UsageFilter.parse(request.query_params, datetime.now(UTC))
    first = await _rows_of(request, user, chosen, CSV_LINES)
    columns = ("request_id", "billed_at", "model", "kind", "key_id", "finish_reason")
    counts = ("input_tokens", "cached_tokens", "output_tokens", "total_tokens")

    async def pages() -> AsyncIterator[Sequence[Sequence[object]]]:
        yield [[*columns, *counts, "cost", "currency"]]
        query, has_more = first, True
        while has_more:
            async with database_of(request).begin() as connection:
                rows, has_more = await read_receipts(connection, query)
            yield [
                [row.id, _utc(row.billed_at), row.model, row.kind, row.key_id, row.finish_reason, *_exact(row)]
                for row in rows
            ]
            query = replace(query, after=cursor_of(rows[-1])) if has_more else query

    return _csv(pages(), "usage-rows")


async def _read_keys(
    connection: AsyncConnection, user: PortalUser, chosen: UsageFilter, used: Sequence[UUID | None]
) -> list[KeyListing]:
    """The newest keys, and before them older ones that the page names."""
    keys = await api_keys.list_keys(connection, user.org_id, limit=MAX_KEYS)
    missing = {chosen.key_id, *used} - {None, *(key.id for key in keys)}
    return [*await api_keys.find_keys(connection, user.org_id, cast("set[UUID]", missing)), *keys]


async def _read_all(connection: AsyncConnection, query: Query) -> list[Line]:
    """Every line; one reading of the database unless there are very many."""
    found, has_more = await read_lines(connection, query)
    while has_more:
        lines, has_more = await read_lines(connection, replace(query, after=found[-1].cursor))
        found += lines
    return found


def _chart(language: Language, chosen: UsageFilter, bars: Sequence[Series], names: dict[str, str]) -> Markup | None:
    if not any(any(one.values) for one in bars):
        return None
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


async def _rows_of(request: Request, user: PortalUser, chosen: UsageFilter, limit: int) -> ReceiptQuery:
    query = ReceiptQuery(
        user.org_id,
        chosen.start,
        chosen.end,
        limit,
        models=None if chosen.model is None else [chosen.model],
        key_ids=None if chosen.key_id is None else [chosen.key_id],
    )
    if chosen.invoice is None:
        return query
    await require_user(request, "billing.read")
    async with database_of(request).begin() as connection:
        invoice = await account.read_invoice(connection, user.org_id, chosen.invoice)
    period = account.metered_period(invoice.lines)
    if period is None:
        raise NotFound("There is no usage on this invoice.", code="invoice_not_found")
    return replace(query, start=period[0], end=period[1], is_claimed=True)


def _models(sums: Sequence[Sums], chosen: UsageFilter, served: Sequence[str]) -> list[str]:
    """Those that can be chosen: what is served and, where lines are by model, what was used."""
    used = {one.value for one in sums} if chosen.group == "model" else set()
    return sorted({*served, *used, *([chosen.model] if chosen.model else [])})


def _numbers(line: Line) -> list[object]:
    cost = money(line.cost)
    return [line.requests, *_tokens(line), cost["value"], cost["currency"]]


def _exact(row: Receipt) -> list[object]:
    # Rounded one by one, a million rows could be off by half a dollar.
    return [*_tokens(row), f"{Decimal(row.cost) / PICO_USD_PER_USD:.12f}", money(row.cost)["currency"]]


def _tokens(used: Line | Receipt) -> list[object]:
    return [used.input_tokens, used.cached_tokens, used.output_tokens, used.input_tokens + used.output_tokens]


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
