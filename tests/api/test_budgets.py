"""What a budget allows, over HTTP: refusals, answers that end where the money does, nothing held afterwards."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import grpc
import openai
import pytest

from app.billing.prices import PRICES
from app.rpc import engine_pb2 as pb
from app.telemetry import REFUSALS
from tests.api.world import Refusal, World, error_of, say

PRICE = PRICES[1, "generation"]
BUDGET_HEADER = "x-budget-stopped"


@pytest.fixture
def obedient(world: World) -> World:
    """The engine says ``x`` as often as it may."""
    world.engine.answer = lambda request: say(b"x" * request.max_tokens, finish="length")
    return world


def cost(input_tokens: int, output_tokens: int) -> int:
    return PRICE.cost(input_tokens, 0, output_tokens)


async def limit(world: World, **columns: object) -> None:
    changes = ", ".join(f"{name} = {value!r}" for name, value in columns.items())
    async with world.database.begin() as connection:
        await connection.exec_driver_sql(f"UPDATE org_budgets SET {changes}")


async def budget(world: World) -> tuple[Any, ...]:
    """What is used and held, of money, tokens and places."""
    async with world.database.begin() as connection:
        row = await connection.exec_driver_sql(
            "SELECT cost_used, cost_held, tokens_used, tokens_held, num_running FROM org_budgets"
        )
        num_reservations = await connection.exec_driver_sql("SELECT count(*) FROM reservations")
        assert num_reservations.scalar_one() == 0
        return tuple(row.one())


def completion(max_tokens: int, **more: Any) -> dict[str, Any]:
    return {"model": "bytes", "prompt": "abc", "max_tokens": max_tokens, **more}


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_ends_with_the_last_token_that_is_paid_for(obedient: World, stream: bool) -> None:
    world = obedient
    await limit(world, spend_cap=cost(3, 4))
    response = await world.post("/v1/completions", completion(9, stream=stream))
    assert response.status_code == 200
    assert response.headers[BUDGET_HEADER] == "4"
    assert world.engine.requests[0].max_tokens == 4
    assert '"finish_reason":"length"' in response.text
    (row,) = await world.usage_rows()
    assert (row.output_tokens, row.finish_reason) == (4, "length")
    assert await budget(world) == (cost(3, 4), 0, 7, 0, 0)
    assert error_of(await world.post("/v1/completions", completion(1))) == (429, "insufficient_quota", None)


async def test_an_answer_that_ends_by_itself_was_not_stopped_by_the_budget(world: World) -> None:
    world.engine.answer = lambda request: say("x", finish="stop")
    await limit(world, spend_cap=cost(3, 4))
    response = await world.post("/v1/completions", completion(9))
    assert BUDGET_HEADER not in response.headers
    assert await budget(world) == (cost(3, 1), 0, 4, 0, 0)


async def test_what_is_paid_for_is_shared_among_the_choices(obedient: World) -> None:
    await limit(obedient, spend_cap=cost(3, 5))
    answer = (await obedient.post("/v1/completions", completion(9, n=2, min_tokens=3))).json()
    assert [choice["text"] for choice in answer["choices"]] == ["xx", "xxx"]
    assert {request.min_tokens for request in obedient.engine.requests} == {2, 3}
    assert await budget(obedient) == (cost(3, 5), 0, 8, 0, 0)


async def test_fewer_tokens_than_choices_are_refused(obedient: World) -> None:
    await limit(obedient, spend_cap=cost(3, 1))
    assert (await obedient.post("/v1/completions", completion(9, n=2))).status_code == 429
    assert await obedient.usage_rows() == []


@pytest.mark.parametrize(
    ("columns", "status", "said"),
    [
        ({"spend_cap": 0}, 429, "spend cap"),
        ({"credit": 0}, 402, "credit"),
        ({"monthly_token_limit": 3}, 429, "tokens of this month"),
        ({"status": "restricted"}, 429, "no plan in force"),
    ],
)
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"model": "bytes", "prompt": "abc"}),
        ("/v1/chat/completions", {"model": "bytes", "messages": [{"role": "user", "content": "abc"}]}),
        ("/v1/classifications", {"model": "labels", "input": "abcd"}),
        ("/v1/embeddings", {"model": "vectors", "input": "abcd"}),
    ],
)
async def test_over_a_limit_every_kind_of_work_is_refused_once(
    world: World, columns: dict[str, object], status: int, said: str, path: str, body: dict[str, Any]
) -> None:
    await limit(world, **columns)
    response = await world.post(path, body)
    assert error_of(response) == (status, "insufficient_quota", None)
    assert said in response.json()["error"]["message"]
    assert response.headers["x-should-retry"] == "false"
    assert not world.engine.started.is_set()
    # Looking at usage and models is never forbidden by a budget.
    assert (await world.get("/v1/usage")).status_code == 200
    assert (await world.get("/v1/models")).status_code == 200


async def test_the_official_client_does_not_ask_again(world: World) -> None:
    refusals = REFUSALS.labels("insufficient_quota")._value
    before = refusals.get()
    await limit(world, spend_cap=0)
    with pytest.raises(openai.RateLimitError):
        await world.openai(max_retries=2).completions.create(model="bytes", prompt="a")
    assert refusals.get() == before + 1


@pytest.mark.parametrize("stream", [False, True])
async def test_a_failure_before_the_first_token_holds_nothing(world: World, stream: bool) -> None:
    async def refuse(request: pb.GenerateRequest) -> AsyncIterator[pb.GenerateChunk]:
        if request.max_tokens:
            raise Refusal(grpc.StatusCode.UNAVAILABLE)
        yield pb.GenerateChunk()

    world.engine.answer = refuse
    assert (await world.post("/v1/completions", completion(9, stream=stream))).status_code == 503
    assert await budget(world) == (0, 0, 0, 0, 0)


@pytest.mark.parametrize(("path", "model"), [("/v1/classifications", "labels"), ("/v1/embeddings", "vectors")])
async def test_a_failed_batch_holds_nothing_and_a_whole_one_costs_its_input(
    world: World, path: str, model: str
) -> None:
    async def refuse(_: Any) -> Any:
        raise Refusal(grpc.StatusCode.UNAVAILABLE)

    world.engine.classify = world.engine.embed = refuse
    assert (await world.post(path, {"model": model, "input": ["ab", "c"]})).status_code == 503
    assert await budget(world) == (0, 0, 0, 0, 0)
    world.engine.classify = world.engine.embed = None
    assert (await world.post(path, {"model": model, "input": ["ab", "c"]})).status_code == 200
    used, held, *tokens = await budget(world)
    assert (used > 0, held, tokens) == (True, 0, [3, 0, 0])


async def test_a_batch_with_one_bad_text_is_refused_as_a_whole_and_free(world: World) -> None:
    response = await world.post("/v1/classifications", {"model": "labels", "input": ["good", ""]})
    assert error_of(response) == (400, "invalid_request_error", "input[1]")
    assert await world.usage_rows() == []
    assert await budget(world) == (0, 0, 0, 0, 0)


async def test_so_many_requests_at_once_and_then_the_next(world: World) -> None:
    goes_on = asyncio.Event()

    async def slow(_: pb.GenerateRequest) -> AsyncIterator[pb.GenerateChunk]:
        await goes_on.wait()
        yield pb.GenerateChunk(index=0, tokens=b"a", finish_reason="stop")

    world.engine.answer = slow
    await limit(world, max_concurrent=1)
    first = asyncio.create_task(world.post("/v1/completions", completion(9)))
    await world.engine.started.wait()
    refused = await world.post("/v1/completions", completion(9))
    assert error_of(refused) == (429, "rate_limit_exceeded", None)
    assert refused.headers["retry-after"] == "1"
    goes_on.set()
    assert (await first).status_code == 200
    assert (await world.post("/v1/completions", completion(9))).status_code == 200
    assert (await budget(world))[4] == 0


async def test_of_many_requests_on_a_small_balance_no_more_than_it_pays_for_are_answered(obedient: World) -> None:
    await limit(obedient, credit=10 * cost(3, 5))
    answers = await asyncio.gather(*(obedient.post("/v1/completions", completion(5)) for _ in range(60)))
    assert sorted(answer.status_code for answer in answers) == [200] * 10 + [402] * 50
    async with obedient.database.begin() as connection:
        assert (await connection.exec_driver_sql("SELECT credit FROM org_budgets")).scalar_one() == 0
    assert await budget(obedient) == (10 * cost(3, 5), 0, 80, 0, 0)


async def test_who_does_not_read_is_cut_off_before_what_is_held_for_them_is_freed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.api.answers.SLOW_READER_S", 0.0)
    raw = json.dumps({"model": "bytes", "prompt": "a", "max_tokens": 5, "stream": True}).encode()
    headers = {**world.auth(), "x-request-timeout-ms": "300"}
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/completions",
        "raw_path": b"/v1/completions",
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "client": ("127.0.0.1", 1),
    }
    sent: list[Any] = []

    async def receive() -> Any:
        if raw not in sent:
            sent.append(raw)
            return {"type": "http.request", "body": raw, "more_body": False}
        return await asyncio.Event().wait()

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    await world.app(scope, receive, send)
    [row] = await world.usage_rows()
    assert (row.output_tokens, row.finish_reason) == (0, "aborted")
    async with world.database.begin() as connection:
        held = await connection.exec_driver_sql("SELECT cost_held, num_running FROM org_budgets")
        assert tuple(held.one()) == (0, 0)
