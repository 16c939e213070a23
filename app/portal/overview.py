"""/overview: where the organisation stands this month, and what to do next."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from fastapi import APIRouter, Request, Response

from app import keys as api_keys
from app.billing.standing import forecast, read_standing
from app.billing.statement import Line, Query, read_lines
from app.portal.chart import Series, stacked_bars
from app.portal.examples import base_url, example_of, published
from app.portal.i18n import language_of
from app.portal.page import PageRoute, render
from app.portal.session import database_of, require_user, settings_of
from app.portal.usage_lines import sums_of

DAYS = 30
RATE_DAYS = 7
"""The past that the forecast goes by, today included."""
MAX_LINES = 10_000
"""Models by day: more than there can be."""
_DAY = timedelta(days=1)
_NUM_MODELS = 5

router = APIRouter(include_in_schema=False, route_class=PageRoute)


@router.get("/overview")
async def overview(request: Request) -> Response:
    """Spend, forecast, quota and cap; the last days; the models; the first steps of somebody new."""
    user = await require_user(request, "overview.read")
    now = datetime.now(UTC)
    today = now.replace(hour=0, minute=0, second=0, microsecond=0)
    month = today.replace(day=1)
    async with database_of(request).begin() as connection:
        standing = await read_standing(connection, user.org_id, now)
        since = min(month, today - (DAYS - 1) * _DAY)
        lines, _ = await read_lines(connection, Query(user.org_id, since, today + _DAY, "day", ("model",), MAX_LINES))
        keys = await api_keys.list_keys(connection, user.org_id, limit=1)
    cards = await asyncio.to_thread(published, settings_of(request).models_dir)
    of_month = [line for line in lines if line.start >= month]
    spent = sum((line.cost for line in of_month), Decimal(0))
    week = today - (RATE_DAYS - 1) * _DAY
    recent = sum((line.cost for line in lines if line.start >= week), Decimal(0))
    return render(
        request,
        "overview.html",
        now=now,
        standing=standing,
        spent=spent,
        requests=sum(line.requests for line in of_month),
        forecast=forecast(spent, recent, max(week, standing.created_at), now),
        chart=_chart(request, lines, today),
        models=sums_of(of_month, "model")[:_NUM_MODELS],
        is_new=not lines,
        has_key=bool(keys),
        base_url=base_url(request),
        example=example_of(cards),
    )


def _chart(request: Request, lines: Sequence[Line], today: datetime) -> str:
    """Cost by day; empty where there was none."""
    language = language_of(request)
    starts = [today - back * _DAY for back in reversed(range(DAYS))]
    costs = dict.fromkeys(starts, Decimal(0))
    for line in lines:
        if line.start in costs:
            costs[line.start] += line.cost
    values = list(costs.values())
    if not any(values):
        return ""
    series = Series(language.gettext("All models"), values)
    title = language.gettext("Cost by day, last 30 days")
    return stacked_bars([language.short_day(start) for start in starts], [series], title, language.dollars)
