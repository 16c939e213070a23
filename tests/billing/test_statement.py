"""Statements, against sums made by hand in whole numbers."""

import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import insert

from app.billing.prices import PRICES
from app.billing.statement import Cursor, Line, Query, Receipt, read_lines, read_receipt
from app.db import Database
from app.errors import BadRequest
from app.tables import UsageEvent, new_id

ORG, OTHER_ORG, KEY = new_id(), new_id(), new_id()
NOW = datetime.now(UTC)
START = datetime(2031, 12, 31, 22, tzinfo=UTC)
QUERY = Query(ORG, START, START + timedelta(days=3), "hour")


async def bill(database: Database, *events: dict[str, Any]) -> None:
    row = {
        "started_at": NOW,
        "org_id": ORG,
        "key_id": KEY,
        "model": "m",
        "model_digest": "d",
        "kind": "generation",
        "input_tokens": 1,
        "cached_tokens": 0,
        "output_tokens": 0,
        "billed_at": START,
        "parameters": None,
        "price_version": 1,
    }
    async with database.begin() as connection:
        await connection.execute(insert(UsageEvent), [row | {"id": new_id()} | event for event in events])


async def read(database: Database, query: Query) -> tuple[list[Line], bool]:
    async with database.begin() as connection:
        return await read_lines(connection, query)


async def receipt(database: Database, org_id: UUID, request_id: UUID) -> Receipt | None:
    async with database.begin() as connection:
        return await read_receipt(connection, org_id, request_id)


async def test_a_cost_is_the_exact_sum_over_its_rows(database: Database) -> None:
    source = random.Random(4)
    events, expected = [], Decimal(0)
    for _ in range(300):
        kind = source.choice(["generation", "classification"])
        tokens = source.randrange(10**9)
        cached, output = source.randrange(tokens + 1), source.randrange(10**9)
        events.append({"kind": kind, "input_tokens": tokens, "cached_tokens": cached, "output_tokens": output})
        price = PRICES[1, kind]
        expected += (tokens - cached) * price.input + cached * price.cached + output * price.output
    await bill(database, *events)
    ((line,), has_more) = await read(database, QUERY)
    assert (line.cost, line.requests, has_more) == (expected, 300, False)


async def test_buckets_end_where_the_next_begins(database: Database) -> None:
    await bill(database, *({"billed_at": START + timedelta(hours=hours)} for hours in (0, 1, 2)))
    for bucket, ends in {
        "hour": [START + timedelta(hours=1), START + timedelta(hours=2), START + timedelta(hours=3)],
        "day": [datetime(2032, 1, 1, tzinfo=UTC), datetime(2032, 1, 2, tzinfo=UTC)],
        "month": [datetime(2032, 1, 1, tzinfo=UTC), datetime(2032, 2, 1, tzinfo=UTC)],
    }.items():
        lines, _ = await read(database, replace(QUERY, bucket=bucket))  # type: ignore[arg-type]
        assert [line.end for line in lines] == ends


async def test_the_end_belongs_to_the_next_statement_and_other_customers_to_theirs(database: Database) -> None:
    await bill(
        database,
        {"billed_at": QUERY.start - timedelta(microseconds=1)},
        {"billed_at": QUERY.start, "model": "first"},
        {"billed_at": QUERY.end - timedelta(microseconds=1), "model": "last"},
        {"billed_at": QUERY.end},
        {"org_id": OTHER_ORG},
    )
    lines, _ = await read(database, replace(QUERY, group_by=("model",)))
    assert [line.model for line in lines] == ["first", "last"]


async def test_pages_together_are_the_whole(database: Database) -> None:
    await bill(
        database,
        *({"billed_at": START + timedelta(hours=n % 3), "model": f"m{n % 4}", "key_id": new_id()} for n in range(24)),
    )
    whole, _ = await read(database, replace(QUERY, group_by=("model", "key")))
    pages, after, has_more = list[Line](), None, True
    while has_more:
        page, has_more = await read(database, replace(QUERY, group_by=("model", "key"), limit=5, after=after))
        pages += page
        after = Cursor.parse(page[-1].cursor.token)
    assert pages == whole
    assert len(whole) == 24


async def test_a_receipt_is_the_row_at_the_price_of_its_line(database: Database) -> None:
    request_id = new_id()
    event = {"id": request_id, "input_tokens": 7, "cached_tokens": 3, "output_tokens": 2, "parameters": {"seed": 1}}
    await bill(database, event, {"model": "another"})
    found = await receipt(database, ORG, request_id)
    assert found is not None
    assert (found.id, found.started_at, found.billed_at, found.key_id) == (request_id, NOW, START, KEY)
    assert (found.input_tokens, found.cached_tokens, found.output_tokens) == (7, 3, 2)
    assert (found.parameters, found.finish_reason, found.engine_ms) == ({"seed": 1}, None, 0)
    lines, _ = await read(database, replace(QUERY, group_by=("model",)))
    assert found.cost == lines[1].cost == 4 * 150_000 + 3 * 75_000 + 2 * 600_000


async def test_a_receipt_belongs_to_its_organisation(database: Database) -> None:
    request_id = new_id()
    await bill(database, {"id": request_id})
    assert await receipt(database, OTHER_ORG, request_id) is None
    assert await receipt(database, ORG, new_id()) is None


@pytest.mark.parametrize("request_id", [UUID(int=2**128 - 1), UUID(int=0), UUID(int=253402300799999 << 80)])
async def test_an_id_whose_time_is_not_the_requests_has_no_receipt(database: Database, request_id: UUID) -> None:
    await bill(database, {"id": request_id})
    assert await receipt(database, ORG, request_id) is None


async def test_a_statement_may_be_limited_to_models_and_keys(database: Database) -> None:
    other_key = new_id()
    await bill(
        database,
        {"model": "a", "key_id": KEY, "input_tokens": 1},
        {"model": "a", "key_id": other_key, "input_tokens": 10},
        {"model": "b", "key_id": KEY, "input_tokens": 100},
        {"model": "c", "key_id": KEY, "input_tokens": 1000},
    )
    for limits, expected in (
        ({"models": ["a"]}, [11]),
        ({"models": ["a", "c"]}, [1011]),
        ({"key_ids": [KEY]}, [1101]),
        ({"models": ["a"], "key_ids": [other_key]}, [10]),
        ({"models": []}, []),
        ({"models": ["'); DROP TABLE usage_events; --"]}, []),
    ):
        lines, _ = await read(database, replace(QUERY, **limits))
        assert [line.input_tokens for line in lines] == expected


@pytest.mark.parametrize("start", [datetime(2031, 1, 1), datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=1)))])  # noqa: DTZ001
def test_a_cursor_of_no_time_in_utc_is_refused(start: datetime) -> None:
    with pytest.raises(BadRequest) as refusal:
        Cursor.parse(Cursor(start, "a", KEY, "generation").token)
    assert refusal.value.param == "after"
