"""POST /v1/completions, spoken by the official client."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import httpx
import openai
import pytest

from app.api.completion_schemas import Completion
from app.rpc import engine_pb2 as pb
from tests.api.world import BOS, CONTEXT, MS_A_TOKEN, Refusal, World, error_of, say


async def test_text_usage_and_row_agree(world: World) -> None:
    answer = await world.openai().completions.create(model="bytes", prompt="Hi", max_tokens=8)

    assert answer.choices[0].text == "Hello"
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (2, 5, 7)
    (row,) = await world.usage_rows()
    assert (row.input_tokens, row.output_tokens, row.finish_reason, row.kind) == (2, 5, "length", "generation")
    assert (row.engine_ms, row.model, row.state) == (5 * MS_A_TOKEN, "bytes", "final")
    assert answer.id == f"cmpl-{row.id.hex}"


async def test_the_answer_has_every_documented_field_and_header(world: World) -> None:
    response = await world.post("/v1/completions", {"model": "bytes", "prompt": "Hi"})
    assert response.status_code == 200
    parsed = Completion.model_validate(response.json())
    assert parsed.system_fingerprint.startswith("fp_")
    (row,) = await world.usage_rows()
    assert response.headers["x-request-id"] == str(row.id)
    assert int(response.headers["openai-processing-ms"]) >= 0
    assert response.headers["x-ratelimit-remaining-requests"] == "11999"
    for name in ("limit-requests", "limit-tokens", "remaining-tokens", "reset-requests", "reset-tokens"):
        assert f"x-ratelimit-{name}" in response.headers


async def test_parameters_reach_the_engine(world: World) -> None:
    body = {
        "model": "bytes",
        "prompt": "ab",
        "max_tokens": 3,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 4,
        "min_p": 0.1,
        "presence_penalty": 1,
        "frequency_penalty": -1,
        "logit_bias": {"97": -100},
        "seed": -1,
        "user": "u",
        "metadata": {"a": "b"},
    }
    assert (await world.post("/v1/completions", body)).status_code == 200
    (request,) = world.engine.requests
    sampling = request.sampling
    assert (list(request.prompt_tokens), request.max_tokens) == ([97, 98], 3)
    assert (sampling.temperature, sampling.top_k) == (0.5, 4)
    assert [sampling.top_p, sampling.min_p] == pytest.approx([0.9, 0.1])
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (1.0, -1.0)
    assert dict(sampling.logit_bias) == {97: -100.0}
    assert sampling.seed == 2**64 - 1
    assert 0 < request.deadline_ms <= 600_000


async def test_null_means_the_default(world: World) -> None:
    body = {
        "model": "bytes",
        "prompt": "a",
        "temperature": None,
        "top_p": None,
        "n": None,
        "stop": None,
        "stream": None,
    }
    assert (await world.post("/v1/completions", body)).status_code == 200
    (request,) = world.engine.requests
    assert (request.sampling.temperature, request.sampling.top_p, request.max_tokens) == (1.0, 1.0, 16)


async def test_the_same_seed_gives_the_same_seeds_to_all_choices(world: World) -> None:
    for _ in range(2):
        await world.post("/v1/completions", {"model": "bytes", "prompt": "a", "seed": 7, "n": 3})
    seeds = [sorted(r.sampling.seed for r in world.engine.requests[at : at + 3]) for at in (0, 3)]
    assert seeds[0] == seeds[1]
    assert len(set(seeds[0])) == 3
    assert 7 in seeds[0]


async def test_a_prompt_that_is_sent_twice_is_drawn_twice(world: World) -> None:
    await world.post("/v1/completions", {"model": "bytes", "prompt": ["a", "a"], "n": 2, "seed": 7})
    assert len({request.sampling.seed for request in world.engine.requests}) == 4


async def test_choices_of_several_prompts_are_numbered_in_order_and_a_prompt_is_billed_once(world: World) -> None:
    async def echo(request: pb.GenerateRequest) -> AsyncIterator[pb.GenerateChunk]:
        async for chunk in say(bytes(request.prompt_tokens).upper()):
            yield chunk

    world.engine.answer = echo
    answer = await world.openai().completions.create(model="bytes", prompt=["ab", "c"], n=2)
    assert [(choice.index, choice.text) for choice in answer.choices] == [(0, "AB"), (1, "AB"), (2, "C"), (3, "C")]
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 6)


@pytest.mark.parametrize("prompt", [[72, 105], [[72, 105]]])
async def test_token_ids_are_a_prompt(world: World, prompt: list[int]) -> None:
    answer = await world.openai().completions.create(model="bytes", prompt=prompt, echo=True)
    assert answer.choices[0].text == "HiHello"


async def test_the_stop_string_ends_the_answer_and_the_engines_work(world: World) -> None:
    async def endless(_: pb.GenerateRequest) -> AsyncIterator[pb.GenerateChunk]:
        async for chunk in say("one, two"):
            if chunk.tokens:
                yield chunk
        await asyncio.Event().wait()

    world.engine.answer = endless
    answer = await world.openai().completions.create(model="bytes", prompt="a", stop=[", t", "zzz"])
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("one", "stop")
    assert answer.usage is not None
    assert answer.usage.completion_tokens == len("one, t")
    (row,) = await world.usage_rows()
    assert row.engine_ms == len("one, t") * MS_A_TOKEN
    await world.engine.cancelled.wait()


async def test_a_character_in_two_tokens_arrives_whole(world: World) -> None:
    world.engine.answer = lambda _: say("né 語!")
    stream = await world.openai().completions.create(model="bytes", prompt="a", stream=True)
    texts = [chunk.choices[0].text async for chunk in stream]
    assert "".join(texts) == "né 語!"
    assert "\ufffd" not in "".join(texts)
    assert (await world.usage_rows())[0].output_tokens == len("né 語!".encode())


async def test_no_output_is_asked_for_with_max_tokens_0(world: World) -> None:
    answer = await world.openai().completions.create(model="bytes", prompt="ab", echo=True, max_tokens=0)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("ab", "length")
    assert (await world.usage_rows())[0].output_tokens == 0


async def test_best_of_returns_and_bills_the_likeliest(world: World) -> None:
    async def candidate(request: pb.GenerateRequest) -> AsyncIterator[pb.GenerateChunk]:
        likely = request.sampling.seed == 5
        value = -0.1 if likely else -3.0
        text = b"yes" if likely else b"never"
        logprobs = [pb.TokenLogprob(token=t, logprob=value) for t in text]
        yield pb.GenerateChunk(tokens=text, logprobs=logprobs, accelerator_ms=0.5)
        yield pb.GenerateChunk(index=len(text), finish_reason="stop", cached_tokens=1, accelerator_ms=1.0)

    world.engine.answer = candidate
    answer = await world.openai().completions.create(model="bytes", prompt="a", best_of=3, seed=5)
    assert [(choice.index, choice.text, choice.logprobs) for choice in answer.choices] == [(0, "yes", None)]
    (row,) = await world.usage_rows()
    assert (row.output_tokens, row.cached_tokens, row.engine_ms) == (3, 1, 3.0)


async def test_each_prompt_gets_the_best_of_its_own_candidates_in_order(world: World) -> None:
    async def candidate(request: pb.GenerateRequest) -> AsyncIterator[pb.GenerateChunk]:
        rank = request.sampling.seed % 1000
        said = bytes(request.prompt_tokens).upper() + b"%03d" % rank
        logprobs = [pb.TokenLogprob(token=token, logprob=-rank) for token in said]
        yield pb.GenerateChunk(tokens=said, logprobs=logprobs, finish_reason="stop")

    world.engine.answer = candidate
    answer = await world.openai().completions.create(model="bytes", prompt=["ab", "c"], best_of=4, n=2, echo=True)
    ranks: dict[str, list[int]] = {"abAB": [], "cC": []}
    for request in world.engine.requests:
        prompt = bytes(request.prompt_tokens).decode()
        ranks[prompt + prompt.upper()].append(request.sampling.seed % 1000)
    best = [f"{said}{rank:03d}" for said, found in ranks.items() for rank in sorted(found)[:2]]
    assert [choice.text for choice in answer.choices] == best
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 5 + 5 + 4 + 4)


async def test_a_streams_pieces_join_to_the_answer_and_end_once(world: World) -> None:
    stream = await world.openai().completions.create(
        model="bytes", prompt="Hi", stream=True, echo=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    texts = [choice.text for chunk in chunks for choice in chunk.choices]
    assert "".join(texts) == "HiHello"
    assert [c.finish_reason for chunk in chunks for c in chunk.choices][-1] == "length"
    assert sum(bool(c.finish_reason) for chunk in chunks for c in chunk.choices) == 1
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 7
    assert all(chunk.usage is None for chunk in chunks[:-1])


async def test_streamed_choices_interleave_as_they_happen(world: World) -> None:
    turns = {seed: asyncio.Event() for seed in (0, 1)}
    order: list[int] = []

    async def in_turn(request: pb.GenerateRequest) -> AsyncIterator[pb.GenerateChunk]:
        me = 0 if request.sampling.seed == 9 else 1
        for index, token in enumerate(b"xy"):
            if me == 1 or index == 1:
                await turns[me].wait()
                turns[me].clear()
            yield pb.GenerateChunk(index=index, tokens=[token])
        yield pb.GenerateChunk(index=2, finish_reason="stop")

    world.engine.answer = in_turn
    stream = await world.openai().completions.create(model="bytes", prompt="a", n=2, seed=9, stream=True)
    async for chunk in stream:
        choice = chunk.choices[0]
        if choice.text:
            order.append(choice.index)
            turns[1 - choice.index].set()
    assert order == [0, 1, 0, 1]
    assert (await world.usage_rows())[0].output_tokens == 4


async def test_the_row_is_committed_before_done_arrives(world: World) -> None:
    async with world.http.stream(
        "POST", "/v1/completions", json={"model": "bytes", "prompt": "a", "stream": True}, headers=world.auth()
    ) as response:
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        async for line in response.aiter_lines():
            if line == "data: [DONE]":
                assert len(await world.usage_rows()) == 1


async def test_a_client_that_leaves_a_stream_stops_the_engine_and_pays_for_what_it_got(world: World) -> None:
    async def endless(_: pb.GenerateRequest) -> AsyncIterator[pb.GenerateChunk]:
        yield pb.GenerateChunk(tokens=b"a", accelerator_ms=1.0)
        yield pb.GenerateChunk(index=1, tokens=b"bc", accelerator_ms=1.5)
        await asyncio.Event().wait()

    world.engine.answer = endless
    stream = await world.openai().completions.create(model="bytes", prompt="Hi", stream=True)
    events = aiter(stream)
    assert [(await anext(events)).choices[0].text for _ in range(2)] == ["a", "bc"]
    await stream.close()
    await world.engine.cancelled.wait()
    row = await settled(world)
    assert (row.input_tokens, row.output_tokens, row.finish_reason, row.engine_ms) == (2, 3, "aborted", 1.5)


async def test_a_client_that_leaves_a_whole_answer_pays_for_the_prompt_only(world: World) -> None:
    world.engine.answer = never
    with pytest.raises(httpx.ReadTimeout):
        await world.http.post(
            "/v1/completions", json={"model": "bytes", "prompt": "Hi"}, headers=world.auth(), timeout=0.5
        )
    await world.engine.cancelled.wait()
    row = await settled(world)
    assert (row.input_tokens, row.output_tokens, row.finish_reason) == (2, 0, "aborted")


async def test_an_engine_that_breaks_off_in_mid_stream_ends_it_with_an_error_event(world: World) -> None:
    async def broken(_: pb.GenerateRequest) -> AsyncIterator[pb.GenerateChunk]:
        yield pb.GenerateChunk(tokens=b"ab")
        raise Refusal(grpc.StatusCode.UNAVAILABLE)

    world.engine.answer = broken
    body = {"model": "bytes", "prompt": "a", "stream": True}
    response = await world.post("/v1/completions", body)
    assert response.status_code == 200
    events = [line for line in response.text.split("\n\n") if line]
    assert '"code":"engine_unavailable"' in events[-1]
    assert "[DONE]" not in response.text
    row = await settled(world)
    assert (row.output_tokens, row.finish_reason) == (2, "error")
    with pytest.raises(openai.APIError):
        async for _ in await world.openai().completions.create(model="bytes", prompt="a", stream=True):
            pass


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (grpc.StatusCode.UNAVAILABLE, (503, "engine_unavailable", None)),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, (503, "overloaded", None)),
        (grpc.StatusCode.DEADLINE_EXCEEDED, (504, "deadline_exceeded", None)),
        (grpc.StatusCode.NOT_FOUND, (404, "model_not_found", None)),
    ],
)
async def test_a_failure_before_the_first_token_is_an_ordinary_error_and_free(
    world: World, stream: bool, status: grpc.StatusCode, expected: tuple[int, str, None]
) -> None:
    async def refuse(_: pb.GenerateRequest) -> AsyncIterator[pb.GenerateChunk]:
        async for chunk in refusing(status):
            yield chunk

    world.engine.answer = refuse
    response = await world.post("/v1/completions", {"model": "bytes", "prompt": "a", "stream": stream})
    assert error_of(response) == expected
    assert await world.usage_rows() == []


async def test_the_callers_deadline_goes_to_the_engine(world: World) -> None:
    await world.post("/v1/completions", {"model": "bytes", "prompt": "a"}, **{"x-request-timeout-ms": "1500"})
    assert 0 < world.engine.requests[0].deadline_ms <= 1500


@pytest.mark.parametrize("value", ["0", "-1", "soon", "1.5", "9" * 20])
async def test_a_deadline_is_a_positive_number(world: World, value: str) -> None:
    response = await world.post("/v1/completions", {"model": "bytes", "prompt": "a"}, **{"x-request-timeout-ms": value})
    assert error_of(response) == (400, "invalid_request_error", "x-request-timeout-ms")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": "a" * CONTEXT}, "prompt"),
        ({"prompt": "a", "max_tokens": CONTEXT}, "prompt"),
        ({"prompt": "a" * CONTEXT, "max_tokens": 0, "echo": True, "logprobs": 0}, "prompt"),
        ({"prompt": ["a", "a" * 200_000]}, "prompt"),
    ],
)
async def test_what_does_not_fit_the_context_is_refused_not_cut(world: World, body: object, param: str) -> None:
    response = await world.post("/v1/completions", {"model": "bytes", **body})  # type: ignore[dict-item]
    assert error_of(response) == (400, "context_length_exceeded", param)
    assert await world.usage_rows() == []


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": [BOS + 1]}, "prompt"),
        ({"logit_bias": {"300": 1}}, "logit_bias"),
        ({"prompt": ["a"] * 64, "n": 3}, "n"),
        ({"n": 3, "best_of": 2}, "best_of"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
    ],
)
async def test_what_cannot_be_answered_is_refused(world: World, change: dict[str, object], param: str) -> None:
    response = await world.post("/v1/completions", {"model": "bytes", "prompt": "a", **change})
    assert error_of(response) == (400, "invalid_request_error", param)


async def test_a_silent_stream_is_kept_open_by_comments(world_with_short_silence: World) -> None:
    world = world_with_short_silence
    goes_on = asyncio.Event()

    async def slow(_: pb.GenerateRequest) -> AsyncIterator[pb.GenerateChunk]:
        yield pb.GenerateChunk(tokens=b"a")
        await goes_on.wait()
        yield pb.GenerateChunk(index=1, finish_reason="stop")

    world.engine.answer = slow
    lines = []
    async with world.http.stream(
        "POST", "/v1/completions", json={"model": "bytes", "prompt": "a", "stream": True}, headers=world.auth()
    ) as response:
        async for line in response.aiter_lines():
            lines.append(line)
            if line == ": keep-alive":
                goes_on.set()
    assert lines[-2] == "data: [DONE]"


async def never(_: pb.GenerateRequest) -> AsyncIterator[pb.GenerateChunk]:
    """Says nothing."""
    await asyncio.Event().wait()
    yield pb.GenerateChunk()


async def refusing(status: grpc.StatusCode) -> AsyncIterator[pb.GenerateChunk]:
    """Refuses before the first chunk."""
    if status is not grpc.StatusCode.OK:
        raise Refusal(status)
    yield pb.GenerateChunk()


async def settled(world: World) -> Any:
    """The one usage row, as soon as it is there; the test's time limit bounds the wait."""
    rows: list[Any] = []
    while not rows:
        rows = await world.usage_rows()
    return rows[0]
