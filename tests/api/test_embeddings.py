"""POST /v1/embeddings, by hand and with the official client."""

import asyncio
import base64
import struct

import grpc
import pytest
from openai import BadRequestError

from app.api.text_schemas import EmbeddingList
from app.rpc import engine_pb2 as pb
from tests.api.world import CONTEXT, Refusal, World, error_of


async def test_the_official_client_gets_floats_of_its_texts_in_order(world: World) -> None:
    answer = await world.openai().embeddings.create(model="vectors", input=["a", "bcd"])

    # The scripted engine puts the number of tokens into the middle.
    assert [item.embedding for item in answer.data] == [[0.5, 1.0, -0.25], [0.5, 3.0, -0.25]]
    assert [item.index for item in answer.data] == [0, 1]
    assert (answer.model, answer.usage.prompt_tokens, answer.usage.total_tokens) == ("vectors", 4, 4)
    (row,) = await world.usage_rows()
    assert (row.kind, row.input_tokens, row.output_tokens, row.engine_ms) == ("embedding", 4, 0, 2.0)


async def test_base64_holds_little_endian_floats(world: World) -> None:
    response = await world.post("/v1/embeddings", {"model": "vectors", "input": "ab", "encoding_format": "base64"})

    answer = EmbeddingList.model_validate(response.json())
    assert isinstance(answer.data[0].embedding, str)
    assert struct.unpack("<3f", base64.b64decode(answer.data[0].embedding)) == (0.5, 2.0, -0.25)


@pytest.mark.parametrize(
    ("given", "counts"), [("ab", [2]), ([97, 98, 99], [3]), ([[97], [98, 99]], [1, 2]), (["a"], [1])]
)
async def test_texts_and_token_ids_alone_and_in_lists(world: World, given: object, counts: list[int]) -> None:
    response = await world.post("/v1/embeddings", {"model": "vectors", "input": given, "encoding_format": "float"})

    assert [item["embedding"][1] for item in response.json()["data"]] == counts


async def test_a_vector_is_cut_where_the_model_allows_it_and_keeps_its_length(world: World) -> None:
    body = {"model": "vectors", "input": "abcd", "dimensions": 2}
    (item,) = (await world.post("/v1/embeddings", body)).json()["data"]

    x, y = item["embedding"]
    assert y / x == pytest.approx(4 / 0.5)
    assert x * x + y * y == pytest.approx(0.25 + 16 + 0.0625)


async def test_the_catalogue_tells_the_size(world: World) -> None:
    model = (await world.get("/v1/models/vectors")).json()
    assert (model["kind"], model["embedding_size"]) == ("embedding", 3)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"input": ""}, (400, "invalid_request_error", "input")),
        ({"input": ["a", " "]}, (400, "invalid_request_error", "input[1]")),
        ({"input": []}, (400, "invalid_request_error", "input")),
        ({"input": [[]]}, (400, "invalid_request_error", "input[0]")),
        ({"input": ["a"] * 257}, (400, "invalid_request_error", "input")),
        ({"input": [257]}, (400, "invalid_request_error", "input")),
        ({"input": [[97], [257]]}, (400, "invalid_request_error", "input[1]")),
        ({"input": [-1]}, (400, "invalid_request_error", "input[0]")),
        ({"input": ["a", 97]}, (400, "invalid_request_error", "input[1]")),
        ({"input": "a" * (CONTEXT + 1)}, (400, "context_length_exceeded", "input")),
        ({"input": "a", "dimensions": 1}, (400, "invalid_request_error", "dimensions")),
        ({"input": "a", "dimensions": 0}, (400, "invalid_request_error", "dimensions")),
        ({"input": "a", "encoding_format": "hex"}, (400, "invalid_request_error", "encoding_format")),
        ({"input": "a", "user": 7}, (400, "invalid_request_error", "user")),
        ({"input": "a", "pooling": "max"}, (400, "unknown_parameter", "pooling")),
        ({"input": "a", "model": "labels"}, (400, "wrong_model_kind", "model")),
        ({"input": "a", "model": "nothing"}, (404, "model_not_found", "model")),
        ({}, (400, "missing_required_parameter", "input")),
    ],
)
async def test_what_cannot_be_embedded_is_refused_and_free(
    world: World, body: dict[str, object], expected: tuple[int, str, str]
) -> None:
    assert error_of(await world.post("/v1/embeddings", {"model": "vectors", **body})) == expected
    assert await world.usage_rows() == []


async def test_the_official_client_learns_which_parameter_was_wrong(world: World) -> None:
    with pytest.raises(BadRequestError) as error:
        await world.openai().embeddings.create(model="vectors", input="a", dimensions=7)
    assert error.value.param == "dimensions"


async def test_an_engine_that_is_full_costs_nothing(world: World) -> None:
    async def full(_: pb.EmbedRequest) -> pb.EmbedResponse:
        raise Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED)

    world.engine.embed = full
    response = await world.post("/v1/embeddings", {"model": "vectors", "input": "a"})
    assert error_of(response) == (503, "overloaded", None)
    assert "retry-after" in response.headers
    assert await world.usage_rows() == []


async def test_a_deadline_that_passes_costs_nothing(world: World) -> None:
    async def never(_: pb.EmbedRequest) -> pb.EmbedResponse:
        raise Refusal(grpc.StatusCode.DEADLINE_EXCEEDED)

    world.engine.embed = never
    response = await world.post("/v1/embeddings", {"model": "vectors", "input": "a"}, **{"x-request-timeout-ms": "1"})
    assert error_of(response)[:2] == (504, "deadline_exceeded")
    assert await world.usage_rows() == []


async def test_a_client_that_leaves_stops_the_engine_and_pays_for_the_input(world: World) -> None:
    async def never(_: pb.EmbedRequest) -> pb.EmbedResponse:
        await asyncio.Event().wait()
        raise AssertionError

    world.engine.embed = never
    leaving = asyncio.create_task(world.post("/v1/embeddings", {"model": "vectors", "input": "abc"}))
    await world.engine.started.wait()
    leaving.cancel()
    await world.engine.cancelled.wait()
    rows: list[object] = []
    while not rows:
        rows = await world.usage_rows()
    assert len(rows) == 1
