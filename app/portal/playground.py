"""/playground: try a model in the browser, see what it costs, and take the request along as code.

The page itself calls ``app.api.playground``; it needs JavaScript, and says so where there is none.
"""

import asyncio
import json
from dataclasses import dataclass

from fastapi import APIRouter, Request, Response

from app.billing.prices import PRICES, price_version
from app.modeling.registry import ModelCard
from app.portal.examples import base_url, published
from app.portal.guide import ERRORS
from app.portal.i18n import Language, language_of
from app.portal.page import PageRoute, render
from app.portal.session import require_user, settings_of

KINDS = ("generation", "classification")

router = APIRouter(include_in_schema=False, route_class=PageRoute)


@dataclass(frozen=True, slots=True)
class TriedModel:
    """A model to choose, with what its tokens cost in micro-USD per million."""

    name: str
    kind: str
    input: int
    cached: int
    output: int


@router.get("/playground")
async def playground(request: Request) -> Response:
    """The models that may be tried, and the form."""
    await require_user(request, "playground.use")
    cards = await asyncio.to_thread(published, settings_of(request).models_dir)
    language = language_of(request)
    models = sorted((_tried(card) for card in cards if card.kind in KINDS), key=lambda model: KINDS.index(model.kind))
    return render(
        request,
        "playground.html",
        models=models,
        base_url=base_url(request),
        samples=json.dumps(_SAMPLES),
        problems=json.dumps(problems_in(language)),
    )


def problems_in(language: Language) -> dict[str, str]:
    """What the API's errors mean, by code; empty where its own messages are understood.

    A code that has two meanings is there with its status as well.
    """
    if not language.is_translated:
        return {}
    told = {code: language.gettext(meaning) for code, meaning in _OF_MEMBERS.items()}
    for one in ERRORS:
        code = f"{one.status} {one.code}" if one.code in told else one.code
        told[code] = language.gettext(one.meaning)
    return told


_OF_MEMBERS = {
    "sign_in_required": "Please sign in.",
    "role_not_allowed": "Your role in this organisation does not allow this.",
}
"""Errors of those who call by a session and not by a key; the texts are those of the pages."""
# What a first visitor is offered to send.
_SAMPLES = {"generation": "Once upon a time", "classification": "My card has not arrived yet."}


def _tried(card: ModelCard) -> TriedModel:
    price = PRICES[price_version(card.name, card.kind), card.kind]
    return TriedModel(card.name, card.kind, price.input, price.cached, price.output)
