"""Requests are kept as they were sent where the organisation wants it, whole or not at all."""

import json
import logging
from typing import Any

import pytest
from sqlalchemy import text

from app.api import keeping
from app.tables import Base
from app.telemetry import configure_logging
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


async def test_no_text_is_left_anywhere(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    """Neither in a table nor in a file nor in the logs, however talkative they are and whatever went wrong."""
    configure_logging(world.settings.model_copy(update={"log_level": "debug"}))
    logging.getLogger("asyncpg").setLevel(logging.INFO)
    word = "xylophonist"
    chat = {"model": "bytes", "messages": [{"role": "user", "content": word}], "user": word, "metadata": {"who": word}}
    grammar = {"response_format": {"type": "json_schema", "json_schema": {"name": word, "schema": {"const": word}}}}
    sent: list[tuple[str, dict[str, Any]]] = [
        ("/v1/completions", BODY | {"prompt": word, "echo": True}),
        ("/v1/completions", BODY | {"prompt": [word, word], "stream": True}),
        ("/v1/completions", BODY | {"prompt": word, "choice": [word]}),
        ("/v1/completions", BODY | {"prompt": word, "max_tokens": -1}),
        ("/v1/completions", BODY | {"prompt": word * 10_000}),
        ("/v1/completions", BODY | {"prompt": word, "regex": f"({word}"}),
        ("/v1/chat/completions", chat),
        ("/v1/chat/completions", chat | {"stream": True}),
        ("/v1/chat/completions", chat | grammar),
        ("/v1/chat/completions", chat | {"seed": word}),
        ("/v1/classifications", {"model": "labels", "input": word}),
        ("/v1/embeddings", {"model": "vectors", "input": word, "user": word}),
    ]
    statuses = [(await world.post(path, body)).status_code for path, body in sent]
    assert {200, 400} <= set(statuses)
    await world.stop_engine()
    assert (await world.post("/v1/completions", BODY | {"prompt": word})).status_code == 503
    found = [
        str(file) for file in world.settings.data_dir.rglob("*") if file.is_file() and word in file.read_text("latin1")
    ]
    async with world.database.begin() as connection:
        for table in Base.metadata.sorted_tables:
            rows = "\n".join((await connection.execute(text(f"SELECT t::text FROM {table.name} t"))).scalars())
            found += [table.name] if word in rows or word.encode().hex() in rows else []
        assert (await connection.execute(text("SELECT count(*) FROM usage_events"))).scalar_one() >= 6
    logged = capfd.readouterr().err
    assert "request.finished" in logged
    assert found + [line for line in logged.splitlines() if word in line] == []


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
