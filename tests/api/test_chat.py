"""POST /v1/chat/completions, spoken by the official client."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from app.api.chat_schemas import ChatChunk, ChatCompletion
from app.config import Settings
from app.db import Database
from app.rpc import engine_pb2 as pb
from tests.api.world import CONTEXT, World, error_of, say, serving, write_model
from tests.factories import make_key

HI: list[Any] = [{"role": "user", "content": "Hi"}]


async def test_the_plain_template_names_each_turn(world: World) -> None:
    answer = await world.openai().chat.completions.create(model="bytes", messages=HI)
    message = answer.choices[0].message
    assert (message.role, message.content, message.refusal) == ("assistant", "Hello", None)
    assert bytes(world.engine.requests[0].prompt_tokens) == b"user: Hi\n\nassistant:"
    (row,) = await world.usage_rows()
    assert answer.id == f"chatcmpl-{row.id.hex}"
    assert answer.usage is not None
    assert (row.input_tokens, row.output_tokens) == (answer.usage.prompt_tokens, answer.usage.completion_tokens)


async def test_a_models_own_template_is_used(settings: Settings, database: Database) -> None:
    write_model(settings.models_dir, chat_template="{% for m in messages %}[{{ m.role }}|{{ m.content }}]{% endfor %}")
    async with serving(settings, database) as world:
        world.key = await make_key(database, settings)
        messages = [
            {"role": "developer", "content": "S"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": "c", "refusal": None},
        ]
        response = await world.post("/v1/chat/completions", {"model": "bytes", "messages": messages})
        assert response.status_code == 200
        assert bytes(world.engine.requests[0].prompt_tokens) == b"[system|S][user|ab][assistant|c]"


async def test_an_answer_is_sent_back_as_the_client_wrote_it_down(world: World) -> None:
    chat = world.openai().chat.completions
    answer = (await chat.create(model="bytes", messages=HI, max_tokens=5)).choices[0].message
    messages: list[Any] = [*HI, answer.model_dump(), answer]
    await chat.create(model="bytes", messages=messages, max_tokens=5)
    said = b"assistant: Hello\n\n"
    assert bytes(world.engine.requests[1].prompt_tokens) == b"user: Hi\n\n" + said + said + b"assistant:"


async def test_a_template_may_refuse_the_conversation(settings: Settings, database: Database) -> None:
    write_model(settings.models_dir, chat_template="{{ raise_exception('user first') }}")
    async with serving(settings, database) as world:
        world.key = await make_key(database, settings)
        response = await world.post("/v1/chat/completions", {"model": "bytes", "messages": HI})
        assert error_of(response) == (400, "invalid_request_error", "messages")


async def test_without_a_limit_the_answer_may_fill_the_context(world: World) -> None:
    await world.post("/v1/chat/completions", {"model": "bytes", "messages": HI})
    await world.post("/v1/chat/completions", {"model": "bytes", "messages": HI, "max_completion_tokens": 3})
    await world.post("/v1/chat/completions", {"model": "bytes", "messages": HI, "max_tokens": 4})
    prompt = len("user: Hi\n\nassistant:")
    assert [request.max_tokens for request in world.engine.requests] == [CONTEXT - prompt, 3, 4]


async def test_the_answer_has_every_documented_field(world: World) -> None:
    response = await world.post("/v1/chat/completions", {"model": "bytes", "messages": HI})
    assert ChatCompletion.model_validate(response.json()).object == "chat.completion"


async def test_a_stream_names_the_role_then_gains_text_then_ends_once(world: World) -> None:
    stream = await world.openai().chat.completions.create(
        model="bytes",
        messages=HI,
        stream=True,
        stream_options={"include_usage": True},
        n=2,
    )
    chunks = [chunk async for chunk in stream]
    roles = [choice.index for chunk in chunks for choice in chunk.choices if choice.delta.role == "assistant"]
    assert roles == [0, 1]
    for index in (0, 1):
        mine = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
        assert "".join(choice.delta.content or "" for choice in mine) == "Hello"
        assert [choice.finish_reason for choice in mine if choice.finish_reason] == ["length"]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 10
    assert chunks[-1].choices == []


async def test_every_event_of_a_stream_has_the_documented_fields(world: World) -> None:
    body = {"model": "bytes", "messages": HI, "stream": True, "logprobs": True}
    response = await world.post("/v1/chat/completions", body)
    events = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert events.pop() == "[DONE]"
    for event in events:
        assert ChatChunk.model_validate_json(event).object == "chat.completion.chunk"
        assert '"finish_reason":' in event
        assert '"usage"' not in event


async def test_logprobs_name_tokens_bytes_and_alternatives(world: World) -> None:
    world.engine.answer = lambda _: say("é")
    answer = await world.openai().chat.completions.create(
        model="bytes",
        messages=HI,
        logprobs=True,
        top_logprobs=2,
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert [token.bytes for token in logprobs.content] == [[byte] for byte in "é".encode()]
    assert [top.token for top in logprobs.content[0].top_logprobs][1] == "!"
    assert world.engine.requests[0].logprobs == 2


async def test_a_client_that_leaves_before_the_first_token_pays_for_the_prompt_only(world: World) -> None:
    async def never(_: pb.GenerateRequest) -> AsyncIterator[pb.GenerateChunk]:
        await asyncio.Event().wait()
        yield pb.GenerateChunk()

    world.engine.answer = never
    body = {"model": "bytes", "messages": HI, "stream": True}
    leaving = asyncio.create_task(world.post("/v1/chat/completions", body))
    await world.engine.started.wait()
    leaving.cancel()
    await world.engine.cancelled.wait()
    rows: list[Any] = []
    while not rows:
        rows = await world.usage_rows()
    assert (rows[0].output_tokens, rows[0].finish_reason) == (0, "aborted")


async def test_a_client_that_leaves_a_stream_stops_the_engine(world: World) -> None:
    async def endless(_: pb.GenerateRequest) -> AsyncIterator[pb.GenerateChunk]:
        yield pb.GenerateChunk(tokens=b"abc")
        await asyncio.Event().wait()

    world.engine.answer = endless
    stream = await world.openai().chat.completions.create(model="bytes", messages=HI, stream=True)
    async for chunk in stream:
        if chunk.choices[0].delta.content:
            break
    await stream.close()
    await world.engine.cancelled.wait()


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"max_tokens": 1, "max_completion_tokens": 1}, "max_tokens"),
        ({"temperature": "hot"}, "temperature"),
        ({"n": 9}, "n"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
    ],
)
async def test_what_is_wrong_is_named(world: World, change: dict[str, Any], param: str) -> None:
    response = await world.post("/v1/chat/completions", {"model": "bytes", "messages": HI, **change})
    status, _, named = error_of(response)
    assert (status, named) == (400, param)


async def test_a_conversation_that_does_not_fit_is_refused(world: World) -> None:
    body = {"model": "bytes", "messages": [{"role": "user", "content": "x" * 5000}]}
    assert error_of(await world.post("/v1/chat/completions", body)) == (400, "context_length_exceeded", "messages")
