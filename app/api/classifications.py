"""POST /v1/classifications: texts get labels with probabilities."""

import asyncio
from collections.abc import Sequence

from fastapi import APIRouter, Response
from starlette.types import Receive

from app.api.answers import ABORTED, json_response
from app.api.call import Call, RequiredCall
from app.api.openapi import body_of, responses
from app.api.schemas import (
    Classification,
    ClassificationBody,
    ClassificationList,
    ClassificationUsage,
    LabelScore,
)
from app.api.served import ServedModel
from app.errors import BadRequest, ContextLengthExceeded
from app.rpc import engine_pb2 as pb
from app.telemetry import CLIENTS_GONE

FINISHED = "stop"

router = APIRouter(tags=["classification"])


@router.post("/v1/classifications", **body_of(ClassificationBody), **responses(ClassificationList))
async def create_classification(call: RequiredCall) -> Response:
    """Scores one or several texts against every label of the model."""
    call.key.require("classification")
    body = await call.body(ClassificationBody)
    served = await call.services.models.get(body.model, "classification")
    inputs = await _inputs(body, served)
    num_tokens = sum(len(ids) for ids in inputs)
    await call.admit(num_tokens, body.model)
    meter = call.meter(served, "classification", num_tokens)
    answer = await _classify(call, served, inputs)
    if answer is None:
        CLIENTS_GONE.labels(body.model).inc()
        await meter.settle(call.services.database, ABORTED)
        return Response(status_code=499)
    meter.report(0, answer.accelerator_ms)
    await meter.settle(call.services.database, FINISHED)
    return json_response(_rendered(call, body, served, answer, num_tokens))


async def _inputs(body: ClassificationBody, served: ServedModel) -> list[list[int]]:
    """Token ids of each text.

    Raises:
        BadRequest: A text holds no tokens.
        ContextLengthExceeded: A text is longer than the model reads.
    """
    texts = [body.input] if isinstance(body.input, str) else body.input
    longest = served.card.context_length
    inputs = []
    for index, text in enumerate(texts):
        param = "input" if isinstance(body.input, str) else f"input[{index}]"
        ids = await served.encode(text)
        if not text.strip() or not ids:
            raise BadRequest("The input is empty.", param=param)
        if len(ids) > longest:
            raise ContextLengthExceeded(
                f"This model reads at most {longest} tokens, but the input has {len(ids)}. Please shorten it.",
                param=param,
            )
        inputs.append(ids)
    return inputs


async def _classify(call: Call, served: ServedModel, inputs: Sequence[Sequence[int]]) -> pb.ClassifyResponse | None:
    """The engine's scores; None if the client left before they were there."""
    request = pb.ClassifyRequest(
        request_id=call.id.hex,
        model=served.card.name,
        inputs=[pb.TokenIds(ids=ids) for ids in inputs],
        deadline_ms=int(call.timeout_s * 1000),
    )
    work = asyncio.ensure_future(call.services.engine.classify(request))
    gone = asyncio.create_task(_client_gone(call.request.receive))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        return work.result() if work.done() else None
    finally:
        for task in (work, gone):
            task.cancel()
        await asyncio.gather(work, gone, return_exceptions=True)


async def _client_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _rendered(
    call: Call, body: ClassificationBody, served: ServedModel, answer: pb.ClassifyResponse, num_tokens: int
) -> ClassificationList:
    results = [_one(index, result, served, body.top_k) for index, result in enumerate(answer.results)]
    return ClassificationList(
        id=f"clas-{call.id.hex}",
        object="list",
        model=served.card.name,
        data=results,
        usage=ClassificationUsage(prompt_tokens=num_tokens, total_tokens=num_tokens),
    )


def _one(index: int, result: pb.LabelScores, served: ServedModel, top_k: int | None) -> Classification:
    """The labels by falling score; of equal scores the model's first label wins."""
    ranked = sorted(zip(served.card.labels, result.scores, strict=True), key=lambda pair: -pair[1])
    scores = [LabelScore(label=label, score=score) for label, score in ranked[:top_k]]
    return Classification(index=index, label=scores[0].label, score=scores[0].score, scores=scores)
