"""What the usage pages and files show, against the rows and the usage API."""

import csv
import io
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import insert

from app import keys as api_keys
from app.db import Database
from app.portal import usage
from app.tables import UsageEvent, new_id
from tests.api.world import World
from tests.factories import make_key, make_org
from tests.portal.visiting import Browser, visiting

NOW = datetime.now(UTC)
ROW: Mapping[str, Any] = {
    "started_at": NOW,
    "model": "shakespeare",
    "model_digest": "d",
    "kind": "generation",
    "input_tokens": 1000,
    "cached_tokens": 400,
    "output_tokens": 10,
    "billed_at": NOW,
    "price_version": 1,
    "parameters": None,
    "finish_reason": "stop",
}


async def bill(database: Database, org_id: UUID, *rows: Mapping[str, Any]) -> None:
    known = {"org_id": org_id, "key_id": new_id()}
    async with database.begin() as connection:
        await connection.execute(insert(UsageEvent), [{"id": new_id(), **known, **ROW, **row} for row in rows])


def table_of(answer: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(answer)))


async def test_sums_lines_and_chart_are_of_the_same_rows(world: World, acme: UUID, owner: Browser) -> None:
    await bill(
        world.database,
        acme,
        {},
        {},
        {"model": "tang-poetry", "price_version": 2, "billed_at": NOW - timedelta(days=3)},
        {"model": "forgotten", "billed_at": NOW - timedelta(days=31)},
    )
    page = await owner.page("/usage")
    assert "$0.000252" in page  # two rows of shakespeare
    assert "$0.000084" in page  # one of tang-poetry, at its own price
    assert "$0.000336" in page  # together
    assert "forgotten" not in page
    assert page.count('<g class="bar">') == 2
    assert "shakespeare: $0.000252</title>" in page
    assert "<style" not in page
    assert "style=" not in page


async def test_a_file_of_lines_is_what_the_usage_api_says(world: World, acme: UUID, owner: Browser) -> None:
    key = await make_key(world.database, world.settings, acme)
    await bill(world.database, acme, *({"billed_at": NOW - timedelta(days=days)} for days in range(5)))
    start = (NOW - timedelta(days=29)).replace(hour=0, minute=0, second=0, microsecond=0)
    api = await world.get("/v1/usage", key, format="csv", group_by="model", start=start.isoformat())
    answer = await owner.get("/usage/lines.csv")
    assert answer.headers["content-disposition"] == 'attachment; filename="usage.csv"'
    assert answer.headers["content-type"].startswith("text/csv")
    assert answer.text == api.text
    assert len(table_of(answer.text)) == 5


async def test_a_file_of_rows_has_every_row_once_also_beyond_a_page(
    world: World, acme: UUID, owner: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage, "CSV_LINES", 2)
    await bill(world.database, acme, *({"input_tokens": count, "cached_tokens": 0} for count in range(1, 6)))
    rows = table_of((await owner.get("/usage/rows.csv")).text)
    assert sorted(int(row["input_tokens"]) for row in rows) == [1, 2, 3, 4, 5]
    assert {row["currency"] for row in rows} == {"usd"}
    assert len({row["request_id"] for row in rows}) == 5
    lines = table_of((await owner.get("/usage/lines.csv?bucket=hour&span=today")).text)
    assert sum(int(line["requests"]) for line in lines) == 5


async def test_a_file_of_rows_adds_up_to_what_is_billed(world: World, acme: UUID, owner: Browser) -> None:
    small = {"input_tokens": 3, "cached_tokens": 0, "output_tokens": 0}  # 0.45 micro-dollars each
    await bill(world.database, acme, *(small for _ in range(1000)))
    (line,) = table_of((await owner.get("/usage/lines.csv")).text)
    rows = table_of((await owner.get("/usage/rows.csv")).text)
    assert {row["cost"] for row in rows} == {"0.000000450000"}
    assert sum(Decimal(row["cost"]) for row in rows) == Decimal(line["cost"]) == Decimal("0.000450")


async def test_keys_beyond_those_to_choose_from_are_named_where_they_were_used(
    world: World, acme: UUID, owner: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage, "MAX_KEYS", 1)
    for name in ("oldest", "older", "newest"):
        await make_key(world.database, world.settings, acme, name=name)
    async with world.database.begin() as connection:
        _, older, oldest = await api_keys.list_keys(connection, acme)
    await bill(world.database, acme, {"key_id": oldest.id})
    page = await owner.page("/usage?group=key")
    assert f"oldest …{oldest.last4}" in page
    assert "older …" not in page
    assert f"oldest …{oldest.last4}" in await owner.page("/usage/rows")
    # What is chosen is shown as chosen, whether it was used or not.
    assert f'<option value="{older.id}" selected>' in await owner.page(f"/usage?key={older.id}")


async def test_nothing_in_a_file_is_a_formula(world: World, acme: UUID, owner: Browser) -> None:
    await bill(world.database, acme, {"model": "=1+1"}, {"model": "@SUM(A1)"})
    for path in ("/usage/lines.csv", "/usage/rows.csv"):
        models = [row["model"] for row in table_of((await owner.get(path)).text)]
        assert sorted(models) == ["'=1+1", "'@SUM(A1)"]


async def test_usage_is_told_apart_by_key_with_its_name(world: World, acme: UUID, owner: Browser) -> None:
    await make_key(world.database, world.settings, acme, name="<b>nightly</b>")
    async with world.database.begin() as connection:
        (key,) = await api_keys.list_keys(connection, acme)
    await bill(world.database, acme, {"key_id": key.id}, {"model": "other"})
    page = await owner.page("/usage?group=key")
    assert f"&lt;b&gt;nightly&lt;/b&gt; …{key.last4}" in page
    assert "<b>nightly" not in page
    page = await owner.page(f"/usage?key={key.id}")
    assert "<code>shakespeare</code>" in page
    assert "<code>other</code>" not in page
    assert "<code>shakespeare</code>" not in await owner.page("/usage?model=other")


async def test_a_model_can_be_chosen_however_lines_are_told_apart(world: World, acme: UUID, owner: Browser) -> None:
    await bill(world.database, acme, {"model": "forgotten"})
    for group in ("model", "key", "kind"):
        assert '<option value="bytes">' in await owner.page(f"/usage?group={group}")
    assert '<option value="forgotten">' in await owner.page("/usage")
    assert '<option value="forgotten" selected>' in await owner.page("/usage?group=key&model=forgotten")


async def test_beyond_the_patterns_there_are_others(world: World, acme: UUID, owner: Browser) -> None:
    await bill(world.database, acme, *({"model": f"model-{n}", "input_tokens": 10_000 * (10 - n)} for n in range(8)))
    page = await owner.page("/usage")
    assert page.count('<g class="bar">') == 6
    assert "model-4: " in page
    assert "Others: " in page
    assert "model-7" in page  # in the table
    assert "· model-7: " not in page  # not in the chart


async def test_very_many_keys_fit_on_a_page(world: World, acme: UUID, owner: Browser) -> None:
    await bill(world.database, acme, *({"key_id": new_id(), "input_tokens": 1000 + n} for n in range(60)))
    page = await owner.page("/usage?group=key")
    assert page.count("Others") > 1
    assert len(page) < 150_000
    following = re.search(r'rel="next" href="([^"]+)"', page)
    assert following is not None
    assert (await owner.page(following[1].replace("&amp;", "&"))).count('class="whole"') == 10


async def test_sums_of_more_lines_than_a_page_are_whole(
    world: World, acme: UUID, owner: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage, "MAX_LINES", 2)
    await bill(world.database, acme, *({"model": f"m{n}", "input_tokens": 400 + n} for n in range(5)))
    total = sum(Decimal(n * 150_000 + 400 * 75_000 + 10 * 600_000) for n in range(5))
    assert f"${total / 10**12:.6f}" in await owner.page("/usage")


@pytest.mark.parametrize(
    "address",
    [
        "?span=today&bucket=hour",
        "?span=week&bucket=hour",
        "?span=custom&start=2025-12-01&end=2026-11-01",
        "?span=last-month",
    ],
)
async def test_every_span_can_be_shown(world: World, acme: UUID, owner: Browser, address: str) -> None:
    await bill(world.database, acme, *({"billed_at": NOW - timedelta(days=days)} for days in range(0, 300, 7)))
    for group in ("model", "key", "kind"):
        assert "<title>Usage" in await owner.page(f"/usage{address}&group={group}")
    assert "Single requests" in await owner.page(f"/usage/rows{address}")


async def test_rows_come_newest_first_and_in_pages(world: World, acme: UUID, owner: Browser) -> None:
    await bill(
        world.database, acme, *({"billed_at": NOW - timedelta(minutes=n), "input_tokens": 5000 + n} for n in range(53))
    )
    page = await owner.page("/usage/rows?span=week")
    assert page.index("5,000") < page.index("5,001") < page.index("5,049")
    following = re.search(r'rel="next" href="([^"]+)"', page)
    assert following is not None
    last = await owner.page(following[1].replace("&amp;", "&"))
    assert "5,052" in last
    assert "5,049" not in last


@pytest.mark.parametrize("path", ["/usage?after=nonsense", "/usage/rows?after=nonsense"])
async def test_a_made_up_place_in_a_list_is_told_on_a_page(owner: Browser, path: str) -> None:
    answer = await owner.get(path)
    assert answer.status_code == 400
    assert "<!doctype html>" in answer.text


async def test_nothing_used_is_said_so(owner: Browser) -> None:
    page = await owner.page("/usage")
    assert "Nothing was used in this time." in page
    assert '<svg class="bars-chart"' not in page
    assert table_of((await owner.get("/usage/rows.csv")).text) == []


async def test_usage_of_others_is_nowhere(world: World, owner: Browser) -> None:
    other = await make_org(world.database, "Globex")
    theirs = new_id()
    await bill(world.database, other, {"model": "their-model", "key_id": theirs})
    for path in ("/usage", "/usage/rows", "/usage/lines.csv", "/usage/rows.csv"):
        for address in (path, f"{path}?key={theirs}", f"{path}?model=their-model&group=key"):
            answer = await owner.get(address)
            assert answer.status_code == 200
            assert "requests</td>" not in answer.text
            assert "0.000126" not in answer.text


async def test_every_role_sees_usage_and_a_stranger_does_not(world: World, acme: UUID, owner: Browser) -> None:
    async with visiting(world, acme, "viewer") as viewer:
        await viewer.page("/usage")
        assert (await viewer.get("/usage/rows.csv")).status_code == 200
    owner.cookies.clear()
    for path in ("/usage", "/usage/rows", "/usage/lines.csv", "/usage/rows.csv"):
        answer = await owner.get(f"{path}?group=key")
        assert answer.headers["location"] == f"/login?next={path.replace('/', '%2F')}%3Fgroup%3Dkey"
