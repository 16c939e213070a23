"""GET /v1/usage: the very rows that are billed."""

import csv
import io
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import insert, select

from app.api.usage_schemas import UsageList
from app.tables import ApiKey, UsageEvent, new_id
from tests.api.world import World, error_of
from tests.factories import make_key, make_org

NOW = datetime.now(UTC)
DAY = NOW.replace(hour=0, minute=0, second=0, microsecond=0)


async def key_of(world: World) -> tuple[UUID, UUID]:
    async with world.database.begin() as connection:
        row = (await connection.execute(select(ApiKey.id, ApiKey.org_id).order_by(ApiKey.created_at))).first()
    assert row is not None
    return row.id, row.org_id


async def bill(world: World, billed_at: datetime, **values: Any) -> None:
    """One usage row of the world's key."""
    key_id, org_id = await key_of(world)
    row = {
        "id": new_id(),
        "started_at": NOW,
        "org_id": org_id,
        "key_id": key_id,
        "model": "bytes",
        "model_digest": "d",
        "kind": "generation",
        "input_tokens": 10,
        "cached_tokens": 0,
        "output_tokens": 5,
        "billed_at": billed_at,
        "price_version": 1,
    }
    async with world.database.begin() as connection:
        await connection.execute(insert(UsageEvent).values(row | values))


async def test_what_a_client_received_is_what_the_usage_says(world: World) -> None:
    tokens = [0, 0]
    for prompt in ("a", "abc"):
        answer = await world.openai().completions.create(model="bytes", prompt=prompt)
        assert answer.usage is not None
        tokens[0] += answer.usage.prompt_tokens
        tokens[1] += answer.usage.completion_tokens
    await world.post("/v1/classifications", {"model": "labels", "input": "ab"})
    response = await world.get("/v1/usage", group_by="model")
    listed = UsageList.model_validate(response.json())
    first, second = listed.data
    assert (first.model, first.requests, first.input_tokens, first.output_tokens) == ("bytes", 2, *tokens)
    assert (second.model, second.requests, second.total_tokens) == ("labels", 1, 2)
    # 4 tokens in at 0.15 and 10 out at 0.60 USD a million.
    assert (tokens, first.cost.value) == ([4, 10], "0.000007")
    assert "key_id" not in response.json()["data"][0]


async def test_cost_is_rounded_once_per_line(world: World) -> None:
    # Each alone rounds to 0.000000; together they are 0.0000015 and round to even.
    for _ in range(10):
        await bill(world, NOW - timedelta(minutes=1), input_tokens=1, output_tokens=0)
    (line,) = (await world.get("/v1/usage", bucket="month")).json()["data"]
    assert line["cost"] == {"value": "0.000002", "currency": "usd"}


async def test_cached_tokens_have_their_own_price(world: World) -> None:
    await bill(world, NOW - timedelta(minutes=1), input_tokens=100, cached_tokens=60, output_tokens=0)
    (line,) = (await world.get("/v1/usage")).json()["data"]
    assert (line["cached_tokens"], line["cost"]["value"]) == (60, "0.000010")


@pytest.mark.parametrize(("bucket", "lines"), [("hour", 3), ("day", 2)])
async def test_lines_are_buckets_in_utc(world: World, bucket: str, lines: int) -> None:
    yesterday = DAY - timedelta(days=1)
    for billed_at in (yesterday, yesterday + timedelta(minutes=59), yesterday + timedelta(hours=1), DAY):
        await bill(world, billed_at)
    found = (await world.get("/v1/usage", bucket=bucket)).json()["data"]
    assert len(found) == lines
    assert found[0]["start"] == yesterday.strftime("%Y-%m-%dT%H:%M:%SZ")
    assert found[-1]["start"] == DAY.strftime("%Y-%m-%dT%H:%M:%SZ")


async def test_the_end_belongs_to_the_next_period(world: World) -> None:
    await bill(world, DAY - timedelta(microseconds=1))
    await bill(world, DAY)
    start = DAY - timedelta(days=1)
    before = (await world.get("/v1/usage", start=start.isoformat(), end=DAY.isoformat())).json()["data"]
    assert [line["requests"] for line in before] == [1]
    assert before[0]["end"] == DAY.strftime("%Y-%m-%dT%H:%M:%SZ")


@pytest.mark.parametrize("limit", [1, 2, 3])
async def test_pages_hold_every_line_once(world: World, limit: int) -> None:
    other = UUID(int=5)
    for hours in (30, 29, 1):
        await bill(world, NOW - timedelta(hours=hours))
        await bill(world, NOW - timedelta(hours=hours), model="labels", kind="classification")
        await bill(world, NOW - timedelta(hours=hours), key_id=other)
    whole = (await world.get("/v1/usage", bucket="hour", group_by="model,key")).json()
    assert (len(whole["data"]), whole["has_more"], whole["next"]) == (9, False, None)
    paged: list[Any] = []
    after: dict[str, str] = {}
    while True:
        page = (await world.get("/v1/usage", bucket="hour", group_by="key,model", limit=limit, **after)).json()
        assert len(page["data"]) <= limit
        paged += page["data"]
        if not page["has_more"]:
            break
        after = {"after": page["next"]}
    assert paged == whole["data"]


async def test_another_organisations_usage_is_not_seen(world: World) -> None:
    await bill(world, NOW - timedelta(minutes=1))
    stranger = await make_key(world.database, world.settings, await make_org(world.database, "Other"))
    assert (await world.get("/v1/usage", stranger)).json()["data"] == []


async def test_another_key_of_the_organisation_sees_it(world: World) -> None:
    await bill(world, NOW - timedelta(minutes=1))
    _, org_id = await key_of(world)
    colleague = await make_key(world.database, world.settings, org_id)
    assert len((await world.get("/v1/usage", colleague)).json()["data"]) == 1


@pytest.mark.parametrize(
    ("parameters", "param", "code"),
    [
        ({"bucket": "week"}, "bucket", "invalid_request_error"),
        ({"limit": 0}, "limit", "invalid_request_error"),
        ({"format": "xml"}, "format", "invalid_request_error"),
        ({"limit": "many"}, "limit", "invalid_request_error"),
        ({"group_by": "org"}, "group_by", "invalid_request_error"),
        ({"start": "yesterday"}, "start", "invalid_request_error"),
        ({"start": "2026-02-02", "end": "2026-02-01"}, "start", "invalid_request_error"),
        ({"start": "2020-01-01"}, "end", "invalid_request_error"),
        ({"end": "0001-01-02T00:00:00"}, "end", "invalid_request_error"),
        ({"after": "nonsense"}, "after", "invalid_request_error"),
        ({"after": "WzEsMiwzXQ"}, "after", "invalid_request_error"),
        (
            {"after": "WyIyMDI2LTAxLTAxIiwiYSIsIjAwMDAwMDAwLTAwMDAtMDAwMC0wMDAwLTAwMDAwMDAwMDAwMCIsImsiXQ"},
            "after",
            None,
        ),
        ({"page": 2}, "page", "unknown_parameter"),
    ],
)
async def test_wrong_parameters_are_named(
    world: World, parameters: dict[str, Any], param: str, code: str | None
) -> None:
    assert error_of(await world.get("/v1/usage", **parameters)) == (400, code or "invalid_request_error", param)


async def test_months_end_where_the_next_begins(world: World) -> None:
    december = datetime(2025, 12, 15, tzinfo=UTC)
    await bill(world, december)
    (line,) = (await world.get("/v1/usage", bucket="month", start="2025-12-01", end="2026-01-01")).json()["data"]
    assert (line["start"], line["end"]) == ("2025-12-01T00:00:00Z", "2026-01-01T00:00:00Z")


async def test_usage_is_grouped_by_kind(world: World) -> None:
    for kind in ("generation", "embedding", "generation"):
        await bill(world, NOW - timedelta(minutes=1), kind=kind)
    lines = (await world.get("/v1/usage", group_by="kind")).json()["data"]
    assert [(line["kind"], line["requests"]) for line in lines] == [("embedding", 1), ("generation", 2)]
    assert "model" not in lines[0]


async def test_csv_has_the_lines_of_the_json(world: World) -> None:
    for hours in (30, 1):
        await bill(world, NOW - timedelta(hours=hours), model='a "quoted", model')
        await bill(world, NOW - timedelta(hours=hours))
    asked: dict[str, Any] = {"bucket": "hour", "group_by": "kind,model", "limit": 3}
    as_json = (await world.get("/v1/usage", **asked)).json()
    answer = await world.get("/v1/usage", format="csv", **asked)
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert answer.headers["x-next-page"] == as_json["next"]
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert [row["model"] for row in rows] == [line["model"] for line in as_json["data"]]
    for row, line in zip(rows, as_json["data"], strict=True):
        cost = line.pop("cost")
        assert row == {name: str(value) for name, value in line.items()} | {
            "cost": cost["value"],
            "currency": cost["currency"],
        }
    last = await world.get("/v1/usage", format="csv", after=as_json["next"], **asked)
    assert len(last.text.splitlines()) == 2
    assert "x-next-page" not in last.headers


async def test_csv_of_nothing_is_its_header(world: World) -> None:
    answer = await world.get("/v1/usage", format="csv")
    assert answer.text == ("start,end,requests,input_tokens,cached_tokens,output_tokens,total_tokens,cost,currency\r\n")


async def test_unix_seconds_are_a_time(world: World) -> None:
    await bill(world, NOW - timedelta(minutes=1))
    start = int((NOW - timedelta(hours=1)).timestamp())
    assert len((await world.get("/v1/usage", start=start)).json()["data"]) == 1
