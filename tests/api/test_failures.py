"""Bad input has a status, a code and a name; never a 422, a traceback or a charge."""

import asyncio
import json
import re
from collections import Counter
from typing import Any

import pytest
from pydantic import ValidationError

from app.api.chat_schemas import ChatBody
from app.api.completion_schemas import CompletionBody
from app.api.schemas import Body
from app.api.text_schemas import ClassificationBody, EmbeddingBody
from tests.api.world import CONTEXT, World, error_of

COMPLETION = {"model": "bytes", "prompt": "a"}


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"nonsense", b'{"model": "bytes", "prompt": "\xff\xfe"}', b"\xff\xfe", b'{"model":"\\ud800"}']
)
async def test_a_body_that_is_not_json_is_refused(world: World, raw: bytes) -> None:
    assert error_of(await world.post("/v1/completions", raw)) == (400, "invalid_json", None)


@pytest.mark.parametrize("raw", [b"[]", b"5", b'"text"', b"null"])
async def test_a_body_that_is_no_object_is_refused(world: World, raw: bytes) -> None:
    assert error_of(await world.post("/v1/completions", raw)) == (400, "invalid_request_error", None)


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"temprature": 1}, "unknown_parameter", "temprature"),
        ({"tools": []}, "unknown_parameter", "tools"),
        ({"stream": True, "stream_options": {"usage": True}}, "unknown_parameter", "stream_options.usage"),
        ({"suffix": None}, "unknown_parameter", "suffix"),
        ({"max_tokens": "5"}, "invalid_request_error", "max_tokens"),
        ({"max_tokens": 5.5}, "invalid_request_error", "max_tokens"),
        ({"max_tokens": True}, "invalid_request_error", "max_tokens"),
        ({"max_tokens": -1}, "invalid_request_error", "max_tokens"),
        ({"max_tokens": 10**30}, "invalid_request_error", "max_tokens"),
        ({"temperature": 2.1}, "invalid_request_error", "temperature"),
        ({"top_p": -0.1}, "invalid_request_error", "top_p"),
        ({"stream": "yes"}, "invalid_request_error", "stream"),
        ({"prompt": 5}, "invalid_request_error", "prompt"),
        ({"prompt": [1, "a"]}, "invalid_request_error", "prompt[1]"),
        ({"prompt": ["a", "b", 1]}, "invalid_request_error", "prompt[2]"),
        ({"prompt": [[1], [1, -1]]}, "invalid_request_error", "prompt[1][1]"),
        ({"prompt": []}, "invalid_request_error", "prompt"),
        ({"prompt": [[]]}, "invalid_request_error", "prompt[0]"),
        ({"prompt": [-1]}, "invalid_request_error", "prompt[0]"),
        ({"prompt": ["a"] * 65}, "invalid_request_error", "prompt"),
        ({"model": ""}, "invalid_request_error", "model"),
        ({"model": 5}, "invalid_request_error", "model"),
        ({"n": 0}, "invalid_request_error", "n"),
        ({"best_of": 17}, "invalid_request_error", "best_of"),
        ({"stop": ""}, "invalid_request_error", "stop"),
        ({"stop": ["x" * 257]}, "invalid_request_error", "stop[0]"),
        ({"logit_bias": {"a": 1}}, "invalid_request_error", "logit_bias.a"),
        ({"logit_bias": {"1": 101}}, "invalid_request_error", "logit_bias.1"),
        ({"logit_bias": {str(i): 0 for i in range(301)}}, "invalid_request_error", "logit_bias"),
        ({"logprobs": 21}, "invalid_request_error", "logprobs"),
        ({"seed": 2**63}, "invalid_request_error", "seed"),
        ({"metadata": {"a": 1}}, "invalid_request_error", "metadata.a"),
        ({"model": "nothing"}, "model_not_found", "model"),
        ({"model": "labels"}, "wrong_model_kind", "model"),
    ],
)
async def test_a_wrong_parameter_is_named_and_free(world: World, change: dict[str, Any], code: str, param: str) -> None:
    status, found, named = error_of(await world.post("/v1/completions", {**COMPLETION, **change}))
    assert (found, named) == (code, param)
    assert status == (404 if code == "model_not_found" else 400)
    assert await world.usage_rows() == []
    assert world.engine.requests == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": 5}, "Invalid value for 'prompt': input should be a valid string or a valid array."),
        ({"prompt": {}}, "Invalid value for 'prompt': input should be a valid string or a valid array."),
        ({"stop": False}, "Invalid value for 'stop': input should be a valid string or a valid array."),
        ({"n": 9}, "Invalid value for 'n': input should be less than or equal to 8."),
    ],
)
async def test_a_refusal_reads_well(world: World, change: dict[str, Any], message: str) -> None:
    response = await world.post("/v1/completions", {**COMPLETION, **change})
    assert response.json()["error"]["message"] == message


@pytest.mark.parametrize("item", ["{}", "-1", "[]", "[-1]"])
@pytest.mark.parametrize(
    ("schema", "body"),
    [
        (CompletionBody, '"prompt": [{}]'),
        (ChatBody, '"messages": [{{"role": "user", "content": [{}]}}]'),
        (EmbeddingBody, '"input": [{}]'),
        (ClassificationBody, '"input": [{}]'),
    ],
)
def test_a_body_full_of_faults_is_given_up_early(schema: type[Body], body: str, item: str) -> None:
    raw = f'{{"model": "m", {body.format(",".join([item] * 10_000))}}}'.encode()
    with pytest.raises(ValidationError) as refused:
        schema.model_validate_json(raw)
    assert refused.value.error_count() < 10


LONG = "a" * (128 * CONTEXT + 1)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("completions", {"model": "bytes", "prompt": LONG}, "prompt"),
        ("completions", {"model": "bytes", "prompt": ["a", LONG]}, "prompt"),
        ("chat/completions", {"model": "bytes", "messages": [{"role": "user", "content": LONG}]}, "messages"),
        ("classifications", {"model": "labels", "input": LONG}, "input"),
        ("embeddings", {"model": "vectors", "input": ["a", LONG]}, "input[1]"),
    ],
)
async def test_a_text_that_cannot_fit_is_refused_unread(
    world: World, path: str, body: dict[str, Any], param: str
) -> None:
    response = await world.post(f"/v1/{path}", body)
    assert error_of(response) == (400, "context_length_exceeded", param)
    assert f"{len(LONG):,} characters" in response.json()["error"]["message"]


async def test_numbers_that_json_does_not_have_are_refused(world: World) -> None:
    raw = b'{"model": "bytes", "prompt": "a", "temperature": NaN}'
    assert error_of(await world.post("/v1/completions", raw))[0] == 400


@pytest.mark.parametrize("missing", ["model", "prompt"])
async def test_a_missing_parameter_is_named(world: World, missing: str) -> None:
    body = {name: value for name, value in COMPLETION.items() if name != missing}
    response = await world.post("/v1/completions", body)
    assert error_of(response) == (400, "missing_required_parameter", missing)


async def test_ten_megabytes_are_refused_before_they_are_read(world: World) -> None:
    response = await world.post("/v1/completions", json.dumps({"model": "bytes", "prompt": "a" * 10_000_000}).encode())
    assert error_of(response) == (413, "request_too_large", None)


async def test_a_body_of_unknown_length_is_refused_while_it_is_read(world: World) -> None:
    async def endless() -> Any:
        for _ in range(5 * 16):
            yield b" " * 2**16

    response = await world.http.post("/v1/completions", content=endless(), headers=world.auth())
    assert error_of(response) == (413, "request_too_large", None)


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/v1/completions"), ("DELETE", "/v1/models"), ("PUT", "/v1/usage"), ("POST", "/v1/models/bytes")],
)
async def test_a_wrong_method_is_405_and_names_the_right_one(world: World, method: str, path: str) -> None:
    response = await world.http.request(method, path, headers=world.auth())
    assert error_of(response) == (405, "method_not_allowed", None)
    assert response.headers["allow"]


@pytest.mark.parametrize("path", ["/v1/nothing", "/nothing", "/v1/models/", "/static/nothing.css"])
async def test_an_unknown_route_is_404(world: World, path: str) -> None:
    assert error_of(await world.http.get(path)) == (404, "unknown_url", None)


async def test_an_unexpected_exception_is_a_500_that_tells_nothing(world: World) -> None:
    world.app.state.models = None
    response = await world.post("/v1/completions", COMPLETION)
    assert error_of(response) == (500, "internal_error", None)
    assert "NoneType" not in response.text
    assert await world.usage_rows() == []


async def test_a_callers_own_request_id_is_not_adopted(world: World) -> None:
    response = await world.http.get("/livez", headers={"x-request-id": "mine"})
    assert response.headers["x-request-id"] != "mine"


async def test_a_length_that_is_no_number_is_refused(world: World) -> None:
    host, port = world.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: many\r\n\r\n")
    assert b" 400 " in await reader.readline()
    writer.close()
    await writer.wait_closed()


async def answered(world: World) -> Counter[str]:
    """Requests for completions by the status that is counted for them, in this process."""
    metrics = (await world.http.get("/metrics")).text
    lines = re.findall(
        r'^tollgate_http_requests_total{.*route="/v1/completions".*status="(\d+)".*} (\S+)', metrics, re.MULTILINE
    )
    return Counter({status: int(float(count)) for status, count in lines})


async def test_who_leaves_in_the_middle_of_a_body_is_no_fault_of_ours(world: World) -> None:
    before = await answered(world)
    host, port = world.url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    head = (
        f"POST /v1/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {world.key}\r\ncontent-length: 99\r\n\r\n"
    )
    writer.write(head.encode() + b"{")
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    while not (new := await answered(world) - before):
        pass
    assert new == {"499": 1}
