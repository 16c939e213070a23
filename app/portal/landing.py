"""/: what this is, what it costs, how to call it."""

import asyncio

from fastapi import APIRouter, Request, Response

from app.portal.examples import base_url, example_of, published
from app.portal.page import PageRoute, render
from app.portal.session import find_user, settings_of

router = APIRouter(include_in_schema=False, route_class=PageRoute)


@router.get("/")
async def landing(request: Request) -> Response:
    """What this is and which models it serves."""
    cards = await asyncio.to_thread(published, settings_of(request).models_dir)
    await find_user(request)
    return render(request, "landing.html", cards=cards, example=example_of(cards), base_url=base_url(request))
