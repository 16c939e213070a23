"""POST /v1/classifications."""

import asyncio

import grpc
import pytest

from app.api.text_schemas import ClassificationList
from app.rpc import engine_pb2 as pb
from tests.api.world import CONTEXT, Refusal, World, error_of


async def test_labels_come_by_falling_score(world: World) -> None:
    response = await world.post("/v1/classifications", {"model": "labels", "input": "my cash"})
    answer = ClassificationList.model_validate(response.json())
    (result,) = answer.data
    assert (result.index, result.label, result.score) == (0, "cash", 0.5)
    assert [(score.label, score.score) for score in result.scores] == [("cash", 0.5), ("card", 0.25), ("loan", 0.25)]
    (row,) = await world.usage_rows()
    assert (row.kind, row.input_tokens, row.output_tokens, row.engine_ms) == ("classification", 7, 0, 2.0)
    assert (answer.id, answer.usage.prompt_tokens) == (f"clas-{row.id.hex}", 7)


async def test_a_list_is_answered_in_order_and_top_k_cuts(world: World) -> None:
    response = await world.post("/v1/classifications", {"model": "labels", "input": ["a", "bc"], "top_k": 1})
    answer = response.json()
    assert [item["index"] for item in answer["data"]] == [0, 1]
    assert [len(item["scores"]) for item in answer["data"]] == [1, 1]
    assert answer["usage"] == {"prompt_tokens": 3, "total_tokens": 3}


async def test_a_doubtful_text_gets_no_label_but_its_score(world: World) -> None:
    body = {"model": "labels", "input": "my cash", "abstain_below": 0.6, "top_k": 1}
    (result,) = (await world.post("/v1/classifications", body)).json()["data"]
    assert result == {
        "index": 0,
        "label": None,
        "score": 0.5,
        "abstained": True,
        "scores": [{"label": "cash", "score": 0.5}],
    }


async def test_a_certain_text_keeps_its_label_and_says_that_it_did_not_abstain(world: World) -> None:
    body = {"model": "labels", "input": "my cash", "abstain_below": 0.5}
    (result,) = (await world.post("/v1/classifications", body)).json()["data"]
    assert (result["label"], result["abstained"]) == ("cash", False)


async def test_what_was_not_asked_for_is_not_answered(world: World) -> None:
    (result,) = (await world.post("/v1/classifications", {"model": "labels", "input": "a"})).json()["data"]
    assert set(result) == {"index", "label", "score", "scores"}


@pytest.mark.parametrize(
    ("more", "labels"),
    [
        # Scores are 0.25, 0.5 and 0.25; the model's own thresholds 0.2, 0.6 and 0.5.
        ({}, ["card"]),
        ({"threshold": 0.25}, ["cash", "card", "loan"]),
        ({"threshold": 0.3, "top_k": 1}, ["cash"]),
        ({"threshold": 0.9}, []),
        ({"threshold": 0.3, "abstain_below": 0.6}, []),
    ],
)
async def test_several_labels_hold_from_their_thresholds_on(
    world: World, more: dict[str, float], labels: list[str]
) -> None:
    body = {"model": "topics", "input": "my cash", **more}
    (result,) = (await world.post("/v1/classifications", body)).json()["data"]
    assert result["labels"] == labels
    assert result["score"] == 0.5


async def test_the_catalogue_tells_thresholds(world: World) -> None:
    topics = (await world.get("/v1/models/topics")).json()
    assert topics["thresholds"] == {"card": 0.2, "cash": 0.6, "loan": 0.5}
    assert "thresholds" not in (await world.get("/v1/models/labels")).json()


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"input": ""}, (400, "invalid_request_error", "input")),
        ({"input": ["a", " "]}, (400, "invalid_request_error", "input[1]")),
        ({"input": []}, (400, "invalid_request_error", "input")),
        ({"input": ["a"] * 257}, (400, "invalid_request_error", "input")),
        ({"input": 7}, (400, "invalid_request_error", "input")),
        ({"input": "a" * (CONTEXT + 1)}, (400, "context_length_exceeded", "input")),
        ({"input": "a", "top_k": 0}, (400, "invalid_request_error", "top_k")),
        ({"input": "a", "threshold": 0.5}, (400, "invalid_request_error", "threshold")),
        ({"input": "a", "threshold": 1.5, "model": "topics"}, (400, "invalid_request_error", "threshold")),
        ({"input": "a", "abstain_below": -0.1}, (400, "invalid_request_error", "abstain_below")),
        ({"input": "a", "abstain_below": "often"}, (400, "invalid_request_error", "abstain_below")),
        ({"input": [97, 98]}, (400, "invalid_request_error", "input[0]")),
        ({"input": "a", "model": "vectors"}, (400, "wrong_model_kind", "model")),
        ({"input": "a", "explain": True}, (400, "unknown_parameter", "explain")),
        ({"input": "a", "model": "bytes"}, (400, "wrong_model_kind", "model")),
        ({"input": "a", "model": "nothing"}, (404, "model_not_found", "model")),
        ({}, (400, "missing_required_parameter", "input")),
    ],
)
async def test_what_cannot_be_classified_is_refused_and_free(
    world: World, body: dict[str, object], expected: tuple[int, str, str]
) -> None:
    assert error_of(await world.post("/v1/classifications", {"model": "labels", **body})) == expected
    assert await world.usage_rows() == []


async def test_an_engine_that_is_full_costs_nothing(world: World) -> None:
    async def full(_: pb.ClassifyRequest) -> pb.ClassifyResponse:
        raise Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED)

    world.engine.classify = full
    response = await world.post("/v1/classifications", {"model": "labels", "input": "a"})
    assert error_of(response) == (503, "overloaded", None)
    assert "retry-after" in response.headers
    assert await world.usage_rows() == []


async def test_a_client_that_leaves_stops_the_engine_and_pays_for_the_input(world: World) -> None:
    async def never(_: pb.ClassifyRequest) -> pb.ClassifyResponse:
        await asyncio.Event().wait()
        raise AssertionError

    world.engine.classify = never
    leaving = asyncio.create_task(world.post("/v1/classifications", {"model": "labels", "input": "abc"}))
    await world.engine.started.wait()
    leaving.cancel()
    await world.engine.cancelled.wait()
    rows: list[object] = []
    while not rows:
        rows = await world.usage_rows()
    assert len(rows) == 1


async def test_what_cannot_be_shown_is_not_billed(world: World) -> None:
    """The engine serves a version of the model with other labels."""

    async def fewer(_: pb.ClassifyRequest) -> pb.ClassifyResponse:
        return pb.ClassifyResponse(results=[pb.LabelScores(scores=[1.0])])

    world.engine.classify = fewer
    failed = await world.post("/v1/classifications", {"model": "labels", "input": "a"})
    assert error_of(failed)[:2] == (500, "internal_error")
    assert not await world.usage_rows()
