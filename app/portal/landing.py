"""/: what this is, what it costs, how to call it. Prices are the catalogue's."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from fastapi import APIRouter, Request, Response

from app.billing.catalog import LISTED
from app.billing.prices import PRICES, price_version
from app.modeling.registry import ModelCard
from app.portal.examples import base_url, example_of, published
from app.portal.page import PageRoute, render
from app.portal.session import find_user, settings_of

_MILLION = 10**6

router = APIRouter(include_in_schema=False, route_class=PageRoute)


@dataclass(frozen=True, slots=True)
class Offer:
    """A model and what a million of its tokens costs, in 10^-12 USD."""

    card: ModelCard
    input: int
    cached: int
    output: int


@router.get("/")
async def landing(request: Request) -> Response:
    """What this is and which models it serves."""
    cards = await asyncio.to_thread(published, settings_of(request).models_dir)
    await find_user(request)
    return render(
        request,
        "landing.html",
        offers=offers_of(cards),
        plans=LISTED,
        example=example_of(cards),
        base_url=base_url(request),
    )


def offers_of(cards: Sequence[ModelCard]) -> list[Offer]:
    """The models at the prices that a request of now is billed at."""
    offers = []
    for card in cards:
        price = PRICES[price_version(card.name, card.kind), card.kind]
        offers.append(Offer(card, price.input * _MILLION, price.cached * _MILLION, price.output * _MILLION))
    return offers
