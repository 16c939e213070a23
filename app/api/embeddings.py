"""POST /v1/embeddings: texts become vectors, in OpenAI's wire format."""

import base64
import math
import sys
from array import array
from collections.abc import Sequence

from fastapi import APIRouter, Response

from app.api.answers import ABORTED, json_response
from app.api.call import RequiredCall
from app.api.openapi import body_of, responses
from app.api.parameters import kept
from app.api.served import ServedModel
from app.api.text_schemas import Embedding, EmbeddingBody, EmbeddingList, TextUsage
from app.api.texts import FINISHED, token_ids, unless_gone
from app.errors import BadRequest
from app.rpc import engine_pb2 as pb
from app.telemetry import CLIENTS_GONE

router = APIRouter(tags=["embeddings"])


@router.post("/v1/embeddings", **body_of(EmbeddingBody), **responses(EmbeddingList))
async def create_embedding(call: RequiredCall) -> Response:
    """Turns one or several texts into vectors whose nearness is nearness in meaning."""
    call.key.require("embedding")
    body = await call.body(EmbeddingBody)
    served = await call.model(body.model, "embedding")
    _check_dimensions(body, served)
    inputs = await token_ids(served, body.inputs, is_list=body.is_list)
    num_tokens = sum(map(len, inputs))
    await call.reserve(served, "embedding", num_tokens)
    meter = call.meter(served, "embedding", num_tokens, kept(body))
    request = pb.EmbedRequest(
        request_id=call.id.hex,
        model=served.card.name,
        inputs=[pb.TokenIds(ids=ids) for ids in inputs],
        deadline_ms=int(call.timeout_s * 1000),
    )
    try:
        answer = await unless_gone(call, call.services.engine.embed(request))
        if answer is None:
            CLIENTS_GONE.labels(body.model).inc()
            await meter.settle(ABORTED)
            return Response(status_code=499)
        meter.report(0, answer.accelerator_ms)
        response = json_response(_rendered(body, answer, num_tokens))
        await meter.settle(FINISHED)
    finally:
        await meter.release()
    return response


def _check_dimensions(body: EmbeddingBody, served: ServedModel) -> None:
    allowed = sorted({*served.card.dimensions, served.card.embedding_size})
    if body.dimensions is not None and body.dimensions not in allowed:
        raise BadRequest(
            f"'{served.card.name}' gives vectors of {' or '.join(map(str, allowed))} numbers, not {body.dimensions}.",
            param="dimensions",
        )


def _rendered(body: EmbeddingBody, answer: pb.EmbedResponse, num_tokens: int) -> EmbeddingList:
    vectors = (_cut(result.values, body.dimensions) for result in answer.results)
    return EmbeddingList(
        object="list",
        data=[
            Embedding(
                object="embedding",
                index=index,
                embedding=_base64(vector) if body.encoding_format == "base64" else list(vector),
            )
            for index, vector in enumerate(vectors)
        ],
        model=body.model,
        usage=TextUsage(prompt_tokens=num_tokens, total_tokens=num_tokens),
    )


def _cut(vector: Sequence[float], dimensions: int | None) -> Sequence[float]:
    """The first numbers, scaled so that the vector keeps its length."""
    if dimensions is None or dimensions == len(vector):
        return vector
    cut = vector[:dimensions]
    length = math.hypot(*cut)
    scale = math.hypot(*vector) / length if length else 1.0
    return [value * scale for value in cut]


def _base64(vector: Sequence[float]) -> str:
    floats = array("f", vector)
    if sys.byteorder == "big":
        floats.byteswap()
    return base64.b64encode(floats.tobytes()).decode()
