"""Log-probabilities of text completions: each token by a name of its own, and its place in the text."""

import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from app.api.logprobs import scored_prompt
from app.config import Settings
from app.db import Database
from app.modeling.tokenizer import Tokenizer
from app.rpc import engine_pb2 as pb
from tests.api.world import BOS, World, raw_byte_tokenizer, score, serving, write_model
from tests.factories import make_key


async def test_echo_with_logprobs_scores_the_prompt_too(world: World) -> None:
    async def scored(_: pb.GenerateRequest) -> AsyncIterator[pb.GenerateChunk]:
        yield pb.GenerateChunk(tokens=b"c", logprobs=[score(99)], prompt_logprobs=[score(98)])
        yield pb.GenerateChunk(index=1, finish_reason="length")

    world.engine.answer = scored
    answer = await world.openai().completions.create(model="bytes", prompt="ab", echo=True, logprobs=2, max_tokens=1)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens == ["a", "b", "c"]
    assert logprobs.text_offset == [0, 1, 2]
    assert logprobs.token_logprobs == [None, -1.0, -1.0]
    assert logprobs.top_logprobs is not None
    assert logprobs.top_logprobs[1:] == [{"b": -1.0, "!": -2.0}, {"c": -1.0, "!": -2.0}]
    (request,) = world.engine.requests
    assert (request.logprobs, request.prompt_logprobs) == (2, True)


@pytest.mark.parametrize("stream", [False, True])
async def test_offsets_are_places_in_the_echoed_text_whatever_its_tokens_are_named(world: World, stream: bool) -> None:
    prompt = [BOS, *"né".encode()]

    async def scored(_: pb.GenerateRequest) -> AsyncIterator[pb.GenerateChunk]:
        said = "ö!".encode()
        scores = [score(token) for token in said]
        yield pb.GenerateChunk(tokens=said, logprobs=scores, prompt_logprobs=[score(t) for t in prompt[1:]])
        yield pb.GenerateChunk(index=3, finish_reason="stop")

    world.engine.answer = scored
    body = {"model": "bytes", "prompt": prompt, "echo": True, "logprobs": 2, "stream": stream}
    response = await world.post("/v1/completions", body)
    first = response.text.split("\n\n")[0].removeprefix("data: ")
    (choice,) = json.loads(first)["choices"]
    assert choice["text"] == "néö!"
    logprobs = choice["logprobs"]
    assert logprobs["tokens"] == ["<bos>", "n", r"bytes:\xc3", r"bytes:\xa9", r"bytes:\xc3", r"bytes:\xb6", "!"]
    assert logprobs["text_offset"] == [0, 0, 1, 1, 2, 2, 3]
    assert logprobs["token_logprobs"] == [None, *[-1.0] * 6]


def test_a_prompt_of_broken_characters_takes_no_longer_for_each_of_its_tokens() -> None:
    lengths: list[int] = []

    class Counting(Tokenizer):
        def decode(self, ids: Sequence[int]) -> str:
            lengths.append(len(ids))
            return super().decode(ids)

    tokens = scored_prompt(Counting(raw_byte_tokenizer(), {}, None), [0x80] * 1000, ())
    assert max(lengths) < 100
    assert [token.offset for token in tokens][-1] in range(950, 1000)


async def test_no_alternative_is_lost_to_another_one_and_the_token_itself_is_there(world: World) -> None:
    async def scored(_: pb.GenerateRequest) -> AsyncIterator[pb.GenerateChunk]:
        tops = {0xC3: -1.0, 0xC4: -2.0, ord("a"): -3.0}
        found = pb.TokenLogprob(token=ord("z"), logprob=-9.0, top_tokens=tops.keys(), top_logprobs=tops.values())
        yield pb.GenerateChunk(tokens=b"z", logprobs=[found], finish_reason="stop")

    world.engine.answer = scored
    answer = await world.openai().completions.create(model="bytes", prompt="a", logprobs=3)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.top_logprobs == [{r"bytes:\xc3": -1.0, r"bytes:\xc4": -2.0, "a": -3.0, "z": -9.0}]


@pytest.mark.parametrize("chat", [False, True])
async def test_a_number_without_a_token_has_a_name_and_no_text(
    settings: Settings, database: Database, chat: bool
) -> None:
    """Networks are often wider than their vocabulary."""
    write_model(settings.models_dir)
    config = settings.models_dir / "bytes" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"vocab_size": 300}))
    async with serving(settings, database) as world:
        world.key = await make_key(database, settings)

        async def padded(_: pb.GenerateRequest) -> AsyncIterator[pb.GenerateChunk]:
            found = pb.TokenLogprob(token=299, logprob=-1.0, top_tokens=[299, 298], top_logprobs=[-1.0, -2.0])
            yield pb.GenerateChunk(tokens=[299], logprobs=[found], finish_reason="length")

        world.engine.answer = padded
        if chat:
            body: dict[str, Any] = {"messages": [{"role": "user", "content": "a"}], "logprobs": True, "top_logprobs": 2}
            choice = (await world.post("/v1/chat/completions", {"model": "bytes", **body})).json()["choices"][0]
            (token,) = choice["logprobs"]["content"]
            assert (choice["message"]["content"], token["token"], token["bytes"]) == ("", "", [])
        else:
            body = {"model": "bytes", "prompt": [97, 297], "logprobs": 2, "echo": True}
            choice = (await world.post("/v1/completions", body)).json()["choices"][0]
            assert choice["text"] == "a"
            assert choice["logprobs"]["tokens"] == ["a", "token_id:297", "token_id:299"]
            assert choice["logprobs"]["top_logprobs"][-1] == {"token_id:299": -1.0, "token_id:298": -2.0}
