"""The rows one by one, newest first, against those that were written."""

from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest

from app.billing.receipts import ReceiptCursor, ReceiptQuery, cursor_of, read_receipts
from app.billing.statement import Receipt
from app.db import Database
from app.errors import BadRequest
from app.tables import new_id
from tests.billing.test_statement import KEY, ORG, OTHER_ORG, START, bill

QUERY = ReceiptQuery(ORG, START, START + timedelta(days=1))


async def read(database: Database, query: ReceiptQuery = QUERY) -> tuple[list[Receipt], bool]:
    async with database.begin() as connection:
        return await read_receipts(connection, query)


async def test_rows_come_newest_first_each_with_what_it_costs(database: Database) -> None:
    hour = timedelta(hours=1)
    await bill(
        database,
        {"input_tokens": 2, "billed_at": START},
        {"input_tokens": 3, "output_tokens": 1, "billed_at": START + hour},
        {"input_tokens": 5, "billed_at": START + 24 * hour},  # belongs to the next day
        {"input_tokens": 7, "billed_at": START - timedelta(microseconds=1)},
        {"input_tokens": 9, "org_id": OTHER_ORG},
    )
    rows, has_more = await read(database)
    assert [(row.input_tokens, int(row.cost)) for row in rows] == [(3, 3 * 150_000 + 600_000), (2, 2 * 150_000)]
    assert not has_more


async def test_pages_together_are_every_row_once(database: Database) -> None:
    # Many of the same instant: the id decides.
    await bill(database, *({"input_tokens": count} for count in range(1, 8)))
    seen: list[int] = []
    query, has_more = replace(QUERY, limit=3), True
    while has_more:
        rows, has_more = await read(database, query)
        seen += [row.input_tokens for row in rows]
        query = replace(query, after=ReceiptCursor.parse(cursor_of(rows[-1]).token))
    assert sorted(seen) == [*range(1, 8)]


async def test_rows_may_be_limited_to_models_and_keys(database: Database) -> None:
    other_key = new_id()
    await bill(database, {"model": "a"}, {"model": "a", "key_id": other_key}, {"model": "b"})
    rows, _ = await read(database, replace(QUERY, models=["a"]))
    assert {(row.model, row.key_id) for row in rows} == {("a", KEY), ("a", other_key)}
    rows, _ = await read(database, replace(QUERY, models=["a"], key_ids=[other_key]))
    assert [(row.model, row.key_id) for row in rows] == [("a", other_key)]


@pytest.mark.parametrize(
    "token",
    [
        "",
        "a",
        "é",
        "W10",
        "WzEsMl0",
        "bnVsbA",
        ReceiptCursor(START.replace(tzinfo=None), KEY).token,
        ReceiptCursor(datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=1))), KEY).token,
    ],
    ids=["empty", "short", "odd", "no-fields", "numbers", "null", "naive-time", "before-all-time"],
)
def test_a_made_up_cursor_is_refused(token: str) -> None:
    with pytest.raises(BadRequest) as refusal:
        ReceiptCursor.parse(token)
    assert refusal.value.param == "after"
