"""Sent again with the same key: the same answer, from any process, whenever it comes, billed once."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from sqlalchemy import text
from starlette.types import Message

from app import auth, idempotency, worker
from app.api.middleware import RequestRecord
from app.api.recording import Recording
from app.billing.check import examine
from app.billing.doctor import CHECKS
from app.config import Settings
from app.db import Database
from app.errors import DatabaseUnavailable
from app.rpc import engine_pb2 as pb
from app.tables import new_id
from tests.api.world import World, error_of, say, serving
from tests.conftest import PEPPER
from tests.factories import make_key, make_org

PLAIN = {"model": "bytes", "prompt": "a", "max_tokens": 5}
STREAM = PLAIN | {"stream": True}
ONCE = {"idempotency-key": "one"}
REQUESTS = [
    ("/v1/completions", PLAIN),
    ("/v1/completions", STREAM),
    ("/v1/chat/completions", {"model": "bytes", "messages": [{"role": "user", "content": "a"}], "max_tokens": 5}),
    ("/v1/classifications", {"model": "labels", "input": ["a", "b"]}),
    ("/v1/embeddings", {"model": "vectors", "input": "a"}),
]


@pytest.fixture
async def other(world: World, settings: Settings, database: Database) -> AsyncIterator[World]:
    """Another API process on the same database, whose engine is never to be asked."""
    async with serving(settings, database) as running:
        running.key = world.key
        yield running
        assert not running.engine.requests


class Gate:
    """An engine that says ``Hel`` and then waits for the test."""

    def __init__(self, world: World) -> None:
        self.opened = asyncio.Event()
        world.engine.answer = self.answer

    async def answer(self, _: pb.GenerateRequest) -> AsyncIterator[pb.GenerateChunk]:
        async for chunk in say("Hel"):
            if not chunk.finish_reason:
                yield chunk
        await self.opened.wait()
        async for chunk in say("lo"):
            yield chunk


async def change(database: Database, values: str) -> None:
    async with database.begin() as connection:
        await connection.execute(text(f"UPDATE idempotency_keys SET {values}"))


async def lose(database: Database, *, parts: str) -> None:
    """Ends the lease of whoever runs the request, once it has written ``parts`` down and will write no more."""
    written = ""
    while parts not in written:
        async with database.begin() as connection:
            statement = "SELECT COALESCE(string_agg(encode(body, 'escape'), ''), '') FROM answer_parts"
            written = (await connection.exec_driver_sql(statement)).scalar_one()
    await change(database, "lease_until = now() - interval '1 second'")


async def first_bytes(stream: httpx.Response) -> tuple[bytes, AsyncIterator[bytes]]:
    """What a stream begins with, and the rest of it."""
    pieces = stream.aiter_raw()
    return await anext(pieces), pieces


def opened(world: World, body: Any = STREAM) -> Any:
    raw = json.dumps(body).encode()
    return world.http.stream("POST", "/v1/completions", content=raw, headers={**world.auth(), **ONCE})


async def held(database: Database) -> tuple[int, int]:
    async with database.begin() as connection:
        row = await connection.exec_driver_sql("SELECT sum(cost_held), sum(num_running) FROM org_budgets")
        return tuple(map(int, row.one()))  # type: ignore[return-value]


@pytest.mark.parametrize(("path", "body"), REQUESTS)
async def test_a_repeated_request_gets_the_same_answer_and_is_billed_once(
    world: World, other: World, path: str, body: Any
) -> None:
    first = await world.post(path, body, **ONCE)
    again = await other.post(path, body, **ONCE)
    assert (again.status_code, again.content) == (200, first.content)
    assert again.headers["content-type"] == first.headers["content-type"]
    assert again.headers["x-request-id"] == first.headers["x-request-id"]
    assert (first.headers.get("idempotent-replayed"), again.headers["idempotent-replayed"]) == (None, "true")
    (row,) = await world.usage_rows()
    assert str(row.id) == first.headers["x-request-id"]


async def test_a_running_stream_is_joined_from_another_process(world: World, other: World) -> None:
    gate = Gate(world)
    async with opened(world) as first:
        beginning, rest = await first_bytes(first)
        async with opened(other) as second:
            joined, joined_rest = await first_bytes(second)
            assert b'"H"' in joined
            assert not (await world.usage_rows())
            gate.opened.set()
            whole = beginning + b"".join([piece async for piece in rest])
            assert joined + b"".join([piece async for piece in joined_rest]) == whole
    assert whole.endswith(b"data: [DONE]\n\n")
    (row,) = await world.usage_rows()
    assert (row.output_tokens, row.finish_reason) == (5, "stop")


async def test_two_at_once_run_once(world: World, other: World) -> None:
    gate = Gate(world)
    answers = [asyncio.create_task(world.post("/v1/completions", PLAIN, **ONCE)) for _ in range(3)]
    await world.engine.started.wait()
    answers.append(asyncio.create_task(other.post("/v1/completions", PLAIN, **ONCE)))
    gate.opened.set()
    texts = {(await answer).text for answer in answers}
    assert len(texts) == 1
    assert len(world.engine.requests) == len(await world.usage_rows()) == 1


async def test_an_answer_is_finished_for_a_client_that_left(world: World, other: World) -> None:
    gate = Gate(world)
    async with opened(world) as first:
        await first_bytes(first)
    gate.opened.set()
    again = await other.post("/v1/completions", STREAM, **ONCE)
    assert again.text.endswith("data: [DONE]\n\n")
    (row,) = await world.usage_rows()
    assert (row.output_tokens, row.finish_reason) == (5, "stop")
    assert not world.engine.cancelled.is_set()


async def test_a_key_belongs_to_one_request(world: World) -> None:
    await world.post("/v1/completions", PLAIN, **ONCE)
    for path, body in (("/v1/completions", PLAIN | {"prompt": "b"}), ("/v1/classifications", PLAIN)):
        refused = await world.post(path, body, **ONCE)
        assert error_of(refused) == (409, "idempotency_key_reused", "Idempotency-Key")
        assert refused.headers["x-should-retry"] == "false"
    assert len(await world.usage_rows()) == 1


async def test_a_key_of_less_scope_does_not_get_the_answer_of_another(world: World, database: Database) -> None:
    async with database.begin() as connection:
        org_id = (await auth.find_key(connection, world.key, PEPPER)).org_id
    limited = await make_key(database, world.settings, org_id, scopes=("usage",))
    await world.post("/v1/completions", PLAIN, **ONCE)
    assert error_of(await world.post("/v1/completions", PLAIN, limited, **ONCE))[:2] == (409, "idempotency_key_reused")


async def test_organisations_do_not_share_keys(world: World, database: Database) -> None:
    stranger = await make_key(database, world.settings, await make_org(database, "Other"))
    first = await world.post("/v1/completions", PLAIN, **ONCE)
    second = await world.post("/v1/completions", PLAIN, stranger, **ONCE)
    assert first.json()["id"] != second.json()["id"]
    assert len(await world.usage_rows()) == 2


async def test_a_refusal_is_not_kept(world: World) -> None:
    unknown = PLAIN | {"model": "nobody"}
    assert error_of(await world.post("/v1/completions", unknown, **ONCE))[1] == "model_not_found"
    assert (await world.post("/v1/completions", PLAIN, **ONCE)).status_code == 200
    assert len(await world.usage_rows()) == 1


async def test_a_stranger_learns_nothing_of_a_key(world: World) -> None:
    await world.post("/v1/completions", PLAIN, **ONCE)
    assert error_of(await world.post("/v1/completions", PLAIN, auth.generate_key(), **ONCE))[:2] == (
        401,
        "invalid_api_key",
    )


@pytest.mark.parametrize("key", ["", "x" * 256])
async def test_a_key_of_impossible_length_is_refused(world: World, key: str) -> None:
    refused = await world.post("/v1/completions", PLAIN, **{"idempotency-key": key})
    assert error_of(refused)[::2] == (400, "Idempotency-Key")
    assert not world.engine.requests


@pytest.mark.parametrize("body", [PLAIN, STREAM], ids=["whole", "stream"])
async def test_what_was_cut_off_runs_again_under_its_id_and_is_billed_once(
    world: World, database: Database, body: Any
) -> None:
    """The first process is as good as dead to all others: its lease has ended."""
    gate = Gate(world)
    first = asyncio.create_task(world.post("/v1/completions", body, **ONCE))
    await world.engine.started.wait()
    await lose(database, parts='"l"' if body is STREAM else "")
    world.engine.started.clear()
    again = asyncio.create_task(world.post("/v1/completions", body, **ONCE))
    await world.engine.started.wait()
    gate.opened.set()
    answers = [await first, await again]
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.headers["x-request-id"] for answer in answers}) == 1
    assert len(world.engine.requests) == 2
    (row,) = await world.usage_rows()
    assert row.output_tokens == 5
    assert await held(database) == (0, 0)
    assert all(finding.is_kept for finding in await examine(database, CHECKS))
    third = await world.post("/v1/completions", body, **ONCE)
    assert third.content == answers[1].content


async def test_whoever_has_joined_a_stream_hears_that_it_broke_off(world: World, other: World) -> None:
    gate = Gate(world)
    async with opened(world) as first:
        await first_bytes(first)
        async with opened(other) as second:
            _, rest = await first_bytes(second)
            await lose(other.database, parts='"l"')
            with pytest.raises(httpx.RemoteProtocolError):
                _ = [piece async for piece in rest]
        gate.opened.set()


async def test_whoever_waits_has_a_deadline_of_their_own(world: World, other: World) -> None:
    gate = Gate(world)
    first = asyncio.create_task(world.post("/v1/completions", PLAIN, **ONCE))
    await world.engine.started.wait()
    late = await other.post("/v1/completions", PLAIN, **ONCE, **{"x-request-timeout-ms": "50"})
    assert error_of(late)[:2] == (504, "deadline_exceeded")
    gate.opened.set()
    assert (await first).status_code == 200


async def test_an_answer_is_kept_for_a_day(world: World, database: Database) -> None:
    first = await world.post("/v1/completions", PLAIN, **ONCE)
    await change(database, "expires_at = now()")
    second = await world.post("/v1/completions", PLAIN | {"prompt": "b"}, **ONCE)
    assert second.status_code == 200
    assert second.json()["id"] != first.json()["id"]
    assert len(await world.usage_rows()) == 2
    await change(database, "expires_at = now()")
    await worker.delete_expired_answers(database, worker.utc_now())
    async with database.begin() as connection:
        for table in ("idempotency_keys", "answer_parts"):
            assert (await connection.exec_driver_sql(f"SELECT count(*) FROM {table}")).scalar_one() == 0


async def test_a_new_key_is_made_once_and_kept_nowhere(world: World, database: Database) -> None:
    first = await world.post("/v1/keys", {"name": "new"}, **ONCE)
    assert first.json()["key"].startswith("tg_live_")
    again = await world.post("/v1/keys", {"name": "new"}, **ONCE)
    assert error_of(again)[:2] == (409, "shown_once")
    assert again.headers["x-should-retry"] == "false"
    assert first.headers["x-request-id"] in again.json()["error"]["message"]
    names = [key["name"] for key in (await world.get("/v1/keys")).json()["data"]]
    assert names.count("new") == 1
    assert all(finding.is_kept for finding in await examine(database, CHECKS))


async def test_a_replay_draws_a_request_and_no_tokens(world: World, database: Database) -> None:
    # The prompt is one token, the answer at most five.
    key = await make_key(database, world.settings, requests_per_minute=2, tokens_per_minute=10)
    answers = [await world.post("/v1/completions", PLAIN, key, **ONCE) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]


async def test_without_a_claim_nothing_runs(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def unknown(_: object) -> auth.Key:
        raise DatabaseUnavailable("Away.")

    monkeypatch.setattr("app.api.idempotent.require_key", unknown)
    assert error_of(await world.post("/v1/completions", PLAIN, **ONCE))[:2] == (503, "database_unavailable")
    assert not world.engine.requests


async def test_only_so_many_wait_for_the_answer_of_another(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.api.idempotent.MAX_JOINED", 1)
    gate = Gate(world)
    first = asyncio.create_task(world.post("/v1/completions", PLAIN, **ONCE))
    await world.engine.started.wait()
    joined = [asyncio.create_task(world.post("/v1/completions", PLAIN, **ONCE)) for _ in range(2)]
    [refused], _ = await asyncio.wait(joined, return_when=asyncio.FIRST_COMPLETED)
    assert error_of(refused.result())[:2] == (503, "overloaded")
    gate.opened.set()
    assert (await first).status_code == 200
    await asyncio.gather(*joined)


async def test_the_official_client_repeats_a_request(world: World) -> None:
    client = world.openai()
    answers = [await client.completions.create(model="bytes", prompt="a", extra_headers=ONCE) for _ in range(2)]
    assert answers[0] == answers[1]
    assert len(await world.usage_rows()) == 1


async def test_what_is_cut_off_ends_whatever_happens_at_that_moment(database: Database) -> None:
    async def forward(_: Message) -> None:
        """To nobody."""

    org_id = await make_org(database)
    for num_rounds in range(8):
        asked = idempotency.Asked(org_id, f"k{num_rounds}", bytes(32), new_id(), worker.utc_now())
        async with database.begin() as connection:
            claim = await idempotency.claim(connection, asked)
        assert isinstance(claim, idempotency.Claim)
        with pytest.raises(ConnectionResetError):
            async with asyncio.timeout(10), Recording(database, claim.run_id, forward, RequestRecord()) as recording:
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                await recording.send({"type": "http.response.start", "status": 200, "headers": []})
                await recording.send({"type": "http.response.body", "body": b"Hel", "more_body": True})
                for _ in range(num_rounds):
                    await asyncio.sleep(0)
                raise ConnectionResetError


async def test_who_has_lost_the_claim_writes_nothing(database: Database) -> None:
    org_id = await make_org(database)
    asked = idempotency.Asked(org_id, "k", bytes(32), new_id(), worker.utc_now())
    async with database.begin() as connection:
        old = await idempotency.claim(connection, asked)
        assert await idempotency.write(connection, old.run_id, [idempotency.Part(0, b"old")], status=200)
        await idempotency.let_go(connection, old.run_id)
    async with database.begin() as connection:
        new = await idempotency.claim(connection, asked)
        assert isinstance(new, idempotency.Claim)
        assert new.is_repeated
        assert not await idempotency.write(connection, old.run_id, [idempotency.Part(1, b"late")], is_complete=True)
        assert await idempotency.write(connection, new.run_id, [idempotency.Part(0, b"new")], status=200)
        # A write that succeeded unnoticed is sent again.
        await idempotency.write(connection, new.run_id, [idempotency.Part(0, b"new")], status=200, is_complete=True)
        progress = await idempotency.read(connection, new.run_id, 0)
    assert progress == idempotency.Progress(200, {}, [b"new"], is_complete=True, is_lost=False)
