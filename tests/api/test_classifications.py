"""POST /v1/classifications."""

import asyncio

import grpc
import pytest

from app.api.schemas import ClassificationList
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
