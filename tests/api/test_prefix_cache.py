"""What the engine found in its prefix cache: shared within an organisation only, shown and billed as such."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import select

from app.rpc import engine_pb2 as pb
from app.tables import ApiKey
from tests.api.world import Generate, World
from tests.factories import make_key

BODY: dict[str, Any] = {"model": "bytes", "prompt": "a" * 10}


def finding(number: int, *, first: int | None = None, where: str = "last") -> Generate:
    """An engine that finds so much of a prompt, ``first`` for the choice with the request's own seed, 5."""

    async def found(request: pb.GenerateRequest) -> AsyncIterator[pb.GenerateChunk]:
        cached = number if first is None or request.sampling.seed != 5 else first
        yield pb.GenerateChunk(tokens=b"ab,", cached_tokens=cached if where == "first" else 0)
        yield pb.GenerateChunk(index=3, tokens=b"c", finish_reason="stop", cached_tokens=cached)

    return found


async def salts(world: World, *keys: str) -> list[str]:
    """What each key's request was salted with."""
    world.engine.requests.clear()
    for key in keys:
        chat = {"model": "bytes", "messages": [{"role": "user", "content": "a"}]}
        assert (await world.post("/v1/completions", BODY, key)).status_code == 200
        assert (await world.post("/v1/chat/completions", chat, key)).status_code == 200
    found = [request.cache_salt for request in world.engine.requests]
    assert found[::2] == found[1::2]
    return found[::2]


async def test_prefixes_are_shared_within_an_organisation_only(world: World) -> None:
    async with world.database.begin() as connection:
        org_id = (await connection.execute(select(ApiKey.org_id))).scalar_one()
    colleague = await make_key(world.database, world.settings, org_id)
    stranger = await make_key(world.database, world.settings)
    mine, theirs, other = await salts(world, world.key, colleague, stranger)
    assert mine == theirs != other
    assert min(map(len, (mine, other))) >= 32
    # The engine learns nobody's name.
    assert org_id.hex not in mine.replace("-", "")


@pytest.mark.parametrize("where", ["first", "last"])
@pytest.mark.parametrize("stream", [False, True])
async def test_usage_and_row_say_what_was_cached(world: World, stream: bool, where: str) -> None:
    world.engine.answer = finding(8, where=where)
    options: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    response = await world.post("/v1/completions", BODY | options)
    assert '"prompt_tokens":10' in response.text
    assert '"prompt_tokens_details":{"cached_tokens":8}' in response.text
    (row,) = await world.usage_rows()
    assert (row.input_tokens, row.cached_tokens) == (10, 8)


async def test_a_prompt_of_several_answers_is_billed_once_as_its_first_found_it(world: World) -> None:
    world.engine.answer = finding(10, first=4)
    usage = (await world.post("/v1/completions", BODY | {"n": 4, "seed": 5})).json()["usage"]
    assert (usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]) == (10, 4)


async def test_of_several_prompts_each_counts(world: World) -> None:
    world.engine.answer = finding(10, first=3)
    usage = (await world.post("/v1/completions", BODY | {"prompt": ["a" * 10, "b" * 10], "n": 2, "seed": 5})).json()[
        "usage"
    ]
    assert (usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]) == (20, 13)


async def test_no_more_is_cached_than_was_sent(world: World) -> None:
    world.engine.answer = finding(99)
    usage = (await world.post("/v1/completions", BODY)).json()["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] == 10


async def test_an_answer_that_a_stop_string_ends_counts_what_was_cached(world: World) -> None:
    world.engine.answer = finding(8, where="first")
    usage = (await world.post("/v1/completions", BODY | {"stop": ","})).json()["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] == 8


async def test_a_stream_that_is_left_pays_the_price_of_what_was_cached(world: World) -> None:
    async def endless(_: pb.GenerateRequest) -> AsyncIterator[pb.GenerateChunk]:
        yield pb.GenerateChunk(tokens=b"a", cached_tokens=8)
        yield pb.GenerateChunk(index=1, tokens=b"b")
        await asyncio.Event().wait()

    world.engine.answer = endless
    stream = await world.openai().completions.create(stream=True, **BODY)
    events = aiter(stream)
    assert [(await anext(events)).choices[0].text for _ in range(2)] == ["a", "b"]
    await stream.close()
    await world.engine.cancelled.wait()
    rows: list[Any] = []
    while not rows:
        rows = await world.usage_rows()
    assert (rows[0].input_tokens, rows[0].cached_tokens, rows[0].finish_reason) == (10, 8, "aborted")
