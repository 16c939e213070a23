"""/overview: where the organisation stands this month, and what to do next."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from fastapi import APIRouter, Request, Response

from app import keys as api_keys
from app.billing.standing import RATE_SPAN, forecast, read_standing
from app.billing.statement import Line, Query, read_lines
from app.portal.chart import Series, stacked_bars
from app.portal.examples import base_url, example_of, published
from app.portal.i18n import language_of
from app.portal.page import PageRoute, render
from app.portal.session import database_of, require_user, settings_of

DAYS = 30
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
        days, _ = await read_lines(
            connection, Query(user.org_id, min(month, today - (DAYS - 1) * _DAY), today + _DAY, "day", (), DAYS + 31)
        )
        models, _ = await read_lines(connection, Query(user.org_id, month, today + _DAY, "month", ("model",), 1000))
        keys = await api_keys.list_keys(connection, user.org_id, limit=1)
    cards = await asyncio.to_thread(published, settings_of(request).models_dir)
    spent = sum((line.cost for line in models), Decimal(0))
    recent = sum((line.cost for line in days if line.start > now - RATE_SPAN), Decimal(0))
    models.sort(key=lambda line: -line.cost)
    return render(
        request,
        "overview.html",
        now=now,
        standing=standing,
        spent=spent,
        requests=sum(line.requests for line in models),
        forecast=forecast(spent, recent, standing.created_at, now),
        chart=_chart(request, days, today),
        models=models[:_NUM_MODELS],
        is_new=not days,
        has_key=bool(keys),
        base_url=base_url(request),
        example=example_of(cards),
    )


def _chart(request: Request, days: Sequence[Line], today: datetime) -> str:
    """Cost by day; empty where there was none."""
    language = language_of(request)
    starts = [today - back * _DAY for back in reversed(range(DAYS))]
    costs = {line.start: line.cost for line in days}
    values = [costs.get(start, Decimal(0)) for start in starts]
    if not any(values):
        return ""
    series = Series(language.gettext("All models"), values)
    title = language.gettext("Cost by day, last 30 days")
    return stacked_bars([language.short_day(start) for start in starts], [series], title, language.dollars)
