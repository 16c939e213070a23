"""POST /v1/classifications: texts get labels with probabilities.

Of a single-label model the scores of a text sum to one and the best one is its
label; of a multi-label model each label has a probability of its own, and every
label at or above its threshold holds.
"""

from fastapi import APIRouter, Response

from app.api.answers import ABORTED, json_response
from app.api.call import Call, RequiredCall
from app.api.openapi import body_of, responses
from app.api.parameters import kept
from app.api.served import ServedModel
from app.api.text_schemas import Classification, ClassificationBody, ClassificationList, LabelScore, TextUsage
from app.api.texts import FINISHED, token_ids, unless_gone
from app.errors import BadRequest
from app.modeling.registry import ModelCard
from app.rpc import engine_pb2 as pb
from app.telemetry import CLIENTS_GONE

router = APIRouter(tags=["classification"])


@router.post("/v1/classifications", **body_of(ClassificationBody), **responses(ClassificationList))
async def create_classification(call: RequiredCall) -> Response:
    """Scores one or several texts against every label of the model."""
    call.key.require("classification")
    body = await call.body(ClassificationBody)
    served = await call.model(body.model, "classification")
    _check(body, served)
    texts = [body.input] if isinstance(body.input, str) else body.input
    inputs = await token_ids(served, texts, is_list=not isinstance(body.input, str))
    num_tokens = sum(map(len, inputs))
    await call.reserve(served, "classification", num_tokens)
    meter = call.meter(served, "classification", num_tokens, kept(body))
    request = pb.ClassifyRequest(
        request_id=call.id.hex,
        model=served.card.name,
        inputs=[pb.TokenIds(ids=ids) for ids in inputs],
        deadline_ms=int(call.timeout_s * 1000),
    )
    try:
        answer = await unless_gone(call, call.services.engine.classify(request))
        if answer is None:
            CLIENTS_GONE.labels(body.model).inc()
            await meter.settle(ABORTED)
            return Response(status_code=499)
        meter.report(0, answer.accelerator_ms)
        response = json_response(_rendered(call, body, served, answer, num_tokens))
        await meter.settle(FINISHED)
    finally:
        await meter.release()
    return response


def _check(body: ClassificationBody, served: ServedModel) -> None:
    if body.threshold is not None and not served.card.is_multi_label:
        raise BadRequest(
            f"'{served.card.name}' gives each text one label; 'threshold' is for multi-label models.", param="threshold"
        )


def _rendered(
    call: Call, body: ClassificationBody, served: ServedModel, answer: pb.ClassifyResponse, num_tokens: int
) -> ClassificationList:
    return ClassificationList(
        id=f"clas-{call.id.hex}",
        object="list",
        model=served.card.name,
        data=[_one(index, result, served.card, body) for index, result in enumerate(answer.results)],
        usage=TextUsage(prompt_tokens=num_tokens, total_tokens=num_tokens),
    )


def _one(index: int, result: pb.LabelScores, card: ModelCard, body: ClassificationBody) -> Classification:
    """The labels by falling score; of equal scores the model's first label wins."""
    ranked = sorted(zip(card.labels, result.scores, strict=True), key=lambda pair: -pair[1])
    label, score = ranked[0]
    abstained = body.abstain_below is not None and score < body.abstain_below
    # What was not asked for is not set, and so is not in the answer.
    more: dict[str, object] = {} if body.abstain_below is None else {"abstained": abstained}
    if card.is_multi_label:
        more["labels"] = [] if abstained else _holding(ranked, card, body.threshold)
    scores = [LabelScore(label=label, score=score) for label, score in ranked[: body.top_k]]
    return Classification.model_validate(
        {"index": index, "label": None if abstained else label, "score": score, **more, "scores": scores}
    )


def _holding(ranked: list[tuple[str, float]], card: ModelCard, threshold: float | None) -> list[str]:
    own = dict(zip(card.labels, card.thresholds, strict=True))
    return [label for label, score in ranked if score >= (own[label] if threshold is None else threshold)]
