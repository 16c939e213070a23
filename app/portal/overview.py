"""/overview: this month's usage and cost, the keys, and how to call."""

import asyncio
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Request, Response

from app import keys as api_keys
from app.billing.statement import Line, Query, read_lines
from app.portal.examples import base_url, example_of, published
from app.portal.page import PageRoute, render
from app.portal.session import database_of, require_user, settings_of

MAX_LINES = 1000

router = APIRouter(include_in_schema=False, route_class=PageRoute)


@router.get("/overview")
async def overview(request: Request) -> Response:
    """This month's usage and cost by model, the keys, and how to call."""
    user = await require_user(request, "overview.read")
    now = datetime.now(UTC)
    month = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    query = Query(user.org_id, month, now, "month", ("model",), MAX_LINES)
    async with database_of(request).begin() as connection:
        lines, _ = await read_lines(connection, query)
        keys = await api_keys.list_keys(connection, user.org_id)
    cards = await asyncio.to_thread(published, settings_of(request).models_dir)
    return render(
        request,
        "overview.html",
        month=month,
        lines=lines,
        total=_total(lines),
        keys=keys,
        now=now,
        base_url=base_url(request),
        example=example_of(cards),
    )


def _total(lines: list[Line]) -> dict[str, Any]:
    return {
        "requests": sum(line.requests for line in lines),
        "input_tokens": sum(line.input_tokens for line in lines),
        "output_tokens": sum(line.output_tokens for line in lines),
        "cost": sum(line.cost for line in lines),
    }
