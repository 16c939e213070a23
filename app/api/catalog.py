"""GET /v1/models: which models can be called, and what they are."""

from typing import Annotated

from fastapi import APIRouter, Path, Response

from app.api.answers import json_response
from app.api.call import RequiredCall
from app.api.model_schemas import Model, ModelList
from app.api.openapi import read_responses
from app.api.served import kind_of
from app.modeling.registry import ModelCard

OWNER = "tollgate"

_EXAMPLE = {
    "id": "shakespeare",
    "object": "model",
    "created": 1763900000,
    "owned_by": OWNER,
    "kind": "generation",
    "context_length": 512,
    "labels": None,
    "description": "English verse in the manner of Shakespeare.",
    "license": "public domain",
}

router = APIRouter(tags=["models"])


@router.get("/v1/models", **read_responses(ModelList, {"object": "list", "data": [_EXAMPLE]}))
async def list_models(call: RequiredCall) -> Response:
    """Every model that requests with this key may name."""
    await call.admit()
    cards = [card for card in await call.services.models.list() if call.key.may_use(card.name)]
    return json_response(ModelList(object="list", data=[_model(card) for card in cards]))


@router.get("/v1/models/{model_id}", **read_responses(Model, _EXAMPLE))
async def get_model(
    call: RequiredCall, model_id: Annotated[str, Path(max_length=128, description="As in the list.")]
) -> Response:
    """One model."""
    await call.admit()
    call.key.require_model(model_id)
    return json_response(_model(await call.services.models.card(model_id)))


def _model(card: ModelCard) -> Model:
    # What a kind does not have is not set, and so is not in the answer.
    more: dict[str, object] = {}
    if card.is_multi_label:
        more["thresholds"] = dict(zip(card.labels, card.thresholds, strict=True))
    if card.embedding_size:
        more["embedding_size"] = card.embedding_size
    known = Model(
        id=card.name,
        object="model",
        created=card.created,
        owned_by=OWNER,
        kind=kind_of(card),
        context_length=card.context_length,
        labels=list(card.labels) or None,
        description=card.description,
        license=card.license,
    )
    return known.model_copy(update=more)
