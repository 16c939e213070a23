"""GET /v1/usage/requests/{id}: one request as it is billed."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import update

from app.api.usage_schemas import RequestReceipt
from app.rpc import engine_pb2 as pb
from app.tables import ApiKey, UsageEvent
from tests.api.world import MS_A_TOKEN, World, error_of
from tests.factories import make_key, make_org

NOT_FOUND = (404, "request_not_found", "request_id")


async def ask(world: World) -> UUID:
    """A request that was answered; its id."""
    body = {"model": "bytes", "prompt": "Hi", "seed": 3, "temperature": 0.5}
    return UUID((await world.post("/v1/completions", body)).headers["x-request-id"])


async def fetch(world: World, request_id: object) -> dict[str, Any]:
    response = await world.get(f"/v1/usage/requests/{request_id}")
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


async def test_it_says_what_the_row_says(world: World) -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    body = await fetch(world, await ask(world))
    found = RequestReceipt.model_validate(body)
    (row,) = await world.usage_rows()
    assert (found.id, found.key_id) == (str(row.id), str(row.key_id))
    assert (found.model, found.model_digest, found.kind) == ("bytes", row.model_digest, "generation")
    assert (found.input_tokens, found.cached_tokens, found.output_tokens, found.total_tokens) == (2, 0, 5, 7)
    assert (found.finish_reason, found.engine_ms) == ("length", 5 * MS_A_TOKEN)
    assert found.parameters == {"seed": 3, "temperature": 0.5}
    # 2 tokens in at 0.15 and 5 out at 0.60 USD a million, to the micro-unit.
    assert found.cost.value == "0.000003"
    assert before <= datetime.fromisoformat(found.started_at) <= datetime.fromisoformat(found.billed_at)
    assert "org_id" not in body


@pytest.mark.parametrize(
    ("path", "content", "model"),
    [
        ("/v1/completions", {"prompt": "a"}, "bytes"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}, "bytes"),
        ("/v1/classifications", {"input": "a"}, "labels"),
    ],
)
async def test_an_answers_own_id_finds_it(world: World, path: str, content: dict[str, Any], model: str) -> None:
    answer = await world.post(path, {"model": model, **content})
    assert (await fetch(world, answer.json()["id"]))["id"] == answer.headers["x-request-id"]


async def test_the_sum_of_its_kind_is_the_statements(world: World) -> None:
    async def cached(_: pb.GenerateRequest) -> Any:
        yield pb.GenerateChunk(tokens=b"a" * 9, finish_reason="stop", cached_tokens=90)

    world.engine.answer = cached
    answer = await world.post("/v1/completions", {"model": "bytes", "prompt": "a" * 100})
    found = await fetch(world, answer.headers["x-request-id"])
    (line,) = (await world.get("/v1/usage")).json()["data"]
    assert found["cost"] == line["cost"] == {"value": "0.000014", "currency": "usd"}
    assert found["cached_tokens"] == 90


async def test_a_request_of_another_organisation_is_not_seen(world: World) -> None:
    request_id = await ask(world)
    stranger = await make_key(world.database, world.settings, await make_org(world.database, "Other"))
    assert error_of(await world.get(f"/v1/usage/requests/{request_id}", stranger)) == NOT_FOUND
    await fetch(world, request_id)


async def test_another_key_of_the_organisation_sees_it(world: World) -> None:
    request_id = await ask(world)
    async with world.database.begin() as connection:
        org_id = (await connection.execute(ApiKey.__table__.select())).one().org_id
    colleague = await make_key(world.database, world.settings, org_id)
    assert (await world.get(f"/v1/usage/requests/{request_id}", colleague)).status_code == 200


@pytest.mark.parametrize(
    "request_id", ["7f0c6f0e-0e7a-4c38-8a55-9d1d1f0f3a10", str(UUID(int=2**128 - 1)), "cmpl-", "nonsense", "0", "%00"]
)
async def test_what_was_never_asked_is_not_found(world: World, request_id: str) -> None:
    await ask(world)
    assert error_of(await world.get(f"/v1/usage/requests/{request_id}")) == NOT_FOUND


async def test_a_refused_request_has_no_receipt(world: World) -> None:
    refused = await world.post("/v1/completions", {"model": "bytes", "prompt": ""})
    assert error_of(await world.get(f"/v1/usage/requests/{refused.headers['x-request-id']}")) == NOT_FOUND


async def test_a_row_from_before_parameters_were_kept_has_none(world: World) -> None:
    request_id = await ask(world)
    async with world.database.begin() as connection:
        await connection.execute(update(UsageEvent).values(parameters=None))
    assert (await fetch(world, request_id))["parameters"] is None
