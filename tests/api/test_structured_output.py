"""Answers in a form: on the wire, refused, cut short, and followed by a real engine that draws at random."""

import json
import re
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

import grpc
import openai
import pytest
from pydantic import BaseModel, Field

from app.config import Settings
from app.db import Database
from app.rpc import engine_pb2 as pb
from tests import fakes
from tests.api.world import BOS, Generate, Refusal, World, error_of, say, serving, write_model
from tests.engine.grammars import RandomRunner
from tests.factories import make_key

HI: list[Any] = [{"role": "user", "content": "Hi"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"model": "bytes", "prompt": "Hi", "max_tokens": 100},
    "/v1/chat/completions": {"model": "bytes", "messages": HI},
}
BOTH = pytest.mark.parametrize("path", list(BODIES))
# In an order that sorting would change.
SCHEMA = {"type": "object", "properties": {"z": {"type": "string"}, "a": {"const": 1}}}
JSON_SCHEMA = {"type": "json_schema", "json_schema": {"name": "thing", "schema": SCHEMA}}
# One token per byte, and an end that stands for no text.
BYTES: tuple[bytes | None, ...] = (*(bytes([byte]) for byte in range(256)), None)


class Play(BaseModel):
    title: Annotated[str, Field(max_length=6)]
    genre: Literal["tragedy", "comedy"]
    acts: Annotated[int, Field(ge=1, le=5)]


@BOTH
@pytest.mark.parametrize(
    ("asked", "grammar"),
    [
        ({}, None),
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": None, "choice": None, "regex": None}, None),
        ({"response_format": {"type": "json_object"}}, pb.Grammar(json_object=True)),
        (
            {"response_format": JSON_SCHEMA},
            pb.Grammar(json_schema='{"type":"object","properties":{"z":{"type":"string"},"a":{"const":1}}}'),
        ),
        ({"response_format": {"type": "text"}, "regex": "[ab]+"}, pb.Grammar(regex="[ab]+")),
        ({"choice": ["ja", "né"]}, pb.Grammar(choice=pb.Choice(texts=["ja", "né"]))),
    ],
)
async def test_a_form_reaches_the_engine(
    world: World, path: str, asked: dict[str, Any], grammar: pb.Grammar | None
) -> None:
    assert (await world.post(path, BODIES[path] | asked)).status_code == 200
    (request,) = world.engine.requests
    assert request.HasField("grammar") == (grammar is not None)
    assert grammar is None or request.grammar == grammar


@BOTH
@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"choice": ["a"], "regex": "a"}, "regex"),
        ({"choice": ["a"], "response_format": {"type": "json_object"}}, "choice"),
        ({"regex": "a", "response_format": JSON_SCHEMA}, "regex"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {**JSON_SCHEMA, "type": "json_object"}}, "response_format.json_schema"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {}}, "response_format.type"),
        ({"response_format": "json_object"}, "response_format"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
            "response_format.json_schema.schema",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
            "response_format.json_schema.name",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}}},
            "response_format.json_schema.name",
        ),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "a", "schema": {"const": "x" * 65_536}},
                }
            },
            "response_format",
        ),
        ({"choice": []}, "choice"),
        ({"choice": [""]}, "choice[0]"),
        ({"choice": "yes"}, "choice"),
        ({"choice": ["a"] * 257}, "choice"),
        ({"choice": ["x" * 32_769] * 2}, "choice"),
        ({"regex": ""}, "regex"),
        ({"regex": "a" * 4_097}, "regex"),
    ],
)
async def test_what_is_no_form_is_refused_by_name(world: World, path: str, asked: dict[str, Any], param: str) -> None:
    status, _, blamed = error_of(await world.post(path, BODIES[path] | asked))
    assert (status, blamed) == (400, param)
    assert world.engine.requests == []


@BOTH
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("asked", "param"),
    [({"response_format": JSON_SCHEMA}, "response_format"), ({"choice": ["a"]}, "choice"), ({"regex": "("}, "regex")],
)
async def test_what_the_engine_refuses_has_the_callers_name(
    world: World, path: str, stream: bool, asked: dict[str, Any], param: str
) -> None:
    world.engine.answer = refusing(
        Refusal(grpc.StatusCode.INVALID_ARGUMENT, "The grammar cannot be used: no.", "grammar")
    )
    response = await world.post(path, BODIES[path] | asked | {"stream": stream, "n": 2})
    assert error_of(response) == (400, "invalid_request_error", param)
    assert response.json()["error"]["message"] == "The grammar cannot be used: no."
    assert await world.usage_rows() == []


async def test_another_refusal_keeps_what_it_blames(world: World) -> None:
    world.engine.answer = refusing(Refusal(grpc.StatusCode.INVALID_ARGUMENT))
    response = await world.post("/v1/completions", BODIES["/v1/completions"] | {"regex": "a"})
    assert error_of(response) == (400, "invalid_request_error", None)


@BOTH
@pytest.mark.parametrize(("asked", "reason"), [({}, "stop"), ({"regex": "[a-z]+,[a-z]+"}, "length")])
async def test_a_sentence_that_a_stop_string_cut_is_not_whole(
    world: World, path: str, asked: dict[str, Any], reason: str
) -> None:
    world.engine.answer = lambda _: say("one,two")
    answer = (await world.post(path, BODIES[path] | asked | {"stop": ","})).json()
    assert answer["choices"][0]["finish_reason"] == reason
    (row,) = await world.usage_rows()
    assert row.finish_reason == reason


@BOTH
async def test_a_stop_string_that_does_not_appear_changes_nothing(world: World, path: str) -> None:
    world.engine.answer = lambda _: say("one,two")
    answer = (await world.post(path, BODIES[path] | {"choice": ["one,two"], "stop": "!"})).json()
    assert answer["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(("asked", "text"), [({}, "likely"), ({"regex": ".*"}, "whole")])
async def test_of_candidates_in_a_form_a_whole_one_is_best(world: World, asked: dict[str, Any], text: str) -> None:
    async def candidate(request: pb.GenerateRequest) -> AsyncIterator[pb.GenerateChunk]:
        said, value, reason = (b"likely", -0.1, "length") if request.sampling.seed == 5 else (b"whole", -3.0, "stop")
        logprobs = [pb.TokenLogprob(token=token, logprob=value) for token in said]
        yield pb.GenerateChunk(tokens=said, logprobs=logprobs, finish_reason=reason)

    world.engine.answer = candidate
    body = {"model": "bytes", "prompt": "a", "best_of": 2, "seed": 5, **asked}
    assert (await world.post("/v1/completions", body)).json()["choices"][0]["text"] == text


@pytest.fixture
async def random_world(settings: Settings, database: Database) -> AsyncIterator[World]:
    """A world whose engine is a real one and follows grammars, with a device that draws at random what is allowed."""
    write_model(settings.models_dir)
    card = fakes.make_card("bytes", eos_token_ids=(BOS,))
    async with (
        fakes.serving(lambda _: RandomRunner(3, BYTES, closing=4), card) as (_, server, _),
        serving(settings, database, engine_url=f"127.0.0.1:{server.port}") as world,
    ):
        world.key = await make_key(database, settings)
        yield world


async def test_the_official_client_parses_a_model(random_world: World) -> None:
    answer = await random_world.openai().chat.completions.parse(model="bytes", messages=HI, response_format=Play)
    (choice,) = answer.choices
    assert choice.finish_reason == "stop"
    assert isinstance(choice.message.parsed, Play)
    (row,) = await random_world.usage_rows()
    assert (row.finish_reason, row.output_tokens) == ("stop", len((choice.message.content or "").encode()))


async def test_the_official_client_parses_a_stream(random_world: World) -> None:
    client = random_world.openai()
    async with client.chat.completions.stream(model="bytes", messages=HI, response_format=Play) as stream:
        answer = await stream.get_final_completion()
    assert answer.choices[0].finish_reason == "stop"
    assert isinstance(answer.choices[0].message.parsed, Play)


async def test_the_official_client_is_told_of_an_answer_that_does_not_fit(random_world: World) -> None:
    client = random_world.openai()
    with pytest.raises(openai.LengthFinishReasonError):
        await client.chat.completions.parse(
            model="bytes", messages=HI, response_format=Play, max_completion_tokens=len('{"title":')
        )


async def test_a_stream_of_several_answers_has_each_of_them_whole(random_world: World) -> None:
    choices = ["yes", "no", "né"]
    stream = await random_world.openai().chat.completions.create(
        model="bytes",
        messages=HI,
        n=4,
        stream=True,
        logit_bias={"121": -100, "110": -100},
        extra_body={"choice": choices},
    )
    texts, reasons = [""] * 4, set()
    async for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons.add(choice.finish_reason)
    # Every way begins with a token that the bias bans as far as a bias can.
    assert {*texts} <= {*choices}
    assert reasons == {None, "stop"}


async def test_an_expression_matches_all_of_the_answer_but_not_the_echo(random_world: World) -> None:
    answer = await random_world.openai().completions.create(
        model="bytes", prompt="On ", max_tokens=20, echo=True, extra_body={"regex": r"\d{4}-\d{2}"}
    )
    assert re.fullmatch(r"On \d{4}-\d{2}", answer.choices[0].text)
    assert answer.choices[0].finish_reason == "stop"


async def test_a_whole_answer_may_be_shorter_than_the_least(random_world: World) -> None:
    body = {"model": "bytes", "prompt": "a", "choice": ["yes"], "min_tokens": 10}
    answer = (await random_world.post("/v1/completions", body)).json()["choices"][0]
    assert (answer["text"], answer["finish_reason"]) == ("yes", "stop")


async def test_the_least_is_reached_where_the_form_allows_it(random_world: World) -> None:
    body = {"model": "bytes", "prompt": "a", "regex": "[ab]+", "min_tokens": 10, "max_tokens": 100}
    answer = (await random_world.post("/v1/completions", body)).json()["choices"][0]
    assert len(answer["text"]) >= 10
    assert answer["finish_reason"] == "stop"


async def test_any_object_is_one_or_says_that_it_was_cut(random_world: World) -> None:
    body = {"model": "bytes", "prompt": "a", "response_format": {"type": "json_object"}, "max_tokens": 120, "n": 4}
    answers = (await random_world.post("/v1/completions", body)).json()["choices"]
    whole = [answer for answer in answers if answer["finish_reason"] == "stop"]
    assert whole
    assert all(isinstance(json.loads(answer["text"]), dict) for answer in whole)


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"regex": "(a"}, "regex"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "nonsense"}}}},
            "response_format",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"const": 1e999}}}},
            "response_format",
        ),
    ],
)
async def test_a_form_that_cannot_be_used_is_refused(random_world: World, asked: dict[str, Any], param: str) -> None:
    response = await random_world.post("/v1/completions", {"model": "bytes", "prompt": "a", **asked})
    assert error_of(response) == (400, "invalid_request_error", param)


def refusing(refusal: Refusal) -> Generate:
    """An engine that refuses before the first chunk."""

    async def refuse(request: pb.GenerateRequest) -> AsyncIterator[pb.GenerateChunk]:
        if request.max_tokens:
            raise refusal
        yield pb.GenerateChunk()

    return refuse
