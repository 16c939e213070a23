"""Requests are kept as they were sent where the organisation wants it, whole or not at all."""

import json

import pytest
from sqlalchemy import text

from app.api import keeping
from tests.api.world import World

BODY = {"model": "bytes", "prompt": "Hi", "max_tokens": 8}


async def let(world: World, days: int | None) -> None:
    async with world.database.begin() as connection:
        await connection.execute(text("UPDATE orgs SET prompt_retention_days = :days"), {"days": days})
    # As the news of it would.
    world.app.state.key_cache.forget()


async def kept(world: World) -> list[tuple[str, bytes, bytes, int]]:
    await world.app.state.prompts._waiting.join()
    statement = "SELECT route, request, answer, extract(day FROM expires_at - started_at)::int FROM stored_requests"
    async with world.database.begin() as connection:
        return [tuple(row) for row in await connection.execute(text(statement))]


async def test_nothing_is_kept_unasked(world: World) -> None:
    await world.post("/v1/completions", BODY)
    assert await kept(world) == []


async def test_request_and_answer_are_kept_as_they_were(world: World) -> None:
    await let(world, 7)
    response = await world.post("/v1/completions", BODY)
    ((route, request, answer, days),) = await kept(world)
    assert (route, json.loads(request), days) == ("/v1/completions", BODY, 7)
    assert answer == response.content


async def test_a_stream_is_kept_with_all_its_events(world: World) -> None:
    await let(world, 1)
    response = await world.post("/v1/completions", BODY | {"stream": True})
    ((_, _, answer, _),) = await kept(world)
    assert answer == response.content
    assert answer.endswith(b"data: [DONE]\n\n")


async def test_a_refusal_is_not_kept(world: World) -> None:
    await let(world, 7)
    assert (await world.post("/v1/completions", BODY | {"model": "nobody"})).status_code == 404
    assert (await world.post("/v1/completions", BODY | {"max_tokens": -1})).status_code == 400
    assert await kept(world) == []


async def test_an_answer_that_is_too_long_is_not_kept_in_part(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "MAX_ANSWER_BYTES", 100)
    await let(world, 7)
    assert (await world.post("/v1/completions", BODY | {"stream": True})).status_code == 200
    assert await kept(world) == []


async def test_turning_it_off_is_heard_of(world: World) -> None:
    await let(world, 7)
    await world.post("/v1/completions", BODY)
    assert len(await kept(world)) == 1
    await let(world, None)
    await world.post("/v1/completions", BODY)
    assert len(await kept(world)) == 1
