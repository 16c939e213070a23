"""Members try models in the portal; it is billed like any other request, and nobody else can have it done."""

import asyncio
import html
import json
from collections.abc import AsyncGenerator
from typing import Any
from uuid import UUID

import httpx
import pytest
from sqlalchemy import text

from app import keys as api_keys
from app.errors import DatabaseUnavailable
from app.portal import live
from app.portal.guide import ERRORS
from app.portal.i18n import LANGUAGE_COOKIE, LANGUAGES
from app.portal.playground import problems_in
from app.tables import new_id
from tests.api.world import World
from tests.portal.visiting import Browser, visiting

OURS = {"sec-fetch-site": "same-origin"}
BODY = {"model": "bytes", "prompt": "Hi", "max_tokens": 8}


async def rows(world: World) -> list[Any]:
    statement = (
        "SELECT u.org_id, k.name, k.is_playground, u.kind FROM usage_events u JOIN api_keys k ON k.id = u.key_id"
    )
    async with world.database.begin() as connection:
        return [tuple(row) for row in await connection.execute(text(statement))]


async def test_a_request_is_billed_to_the_playground_of_the_organisation(
    world: World, acme: UUID, owner: Browser
) -> None:
    for _ in range(2):  # the key is made once
        answer = await owner.post("/playground/completions", json=BODY, headers=OURS)
        assert (answer.status_code, answer.json()["choices"][0]["text"]) == (200, "Hello")
    assert await rows(world) == [(acme, "Playground", True, "generation")] * 2
    assert "Playground" in await owner.page("/keys")
    page = await owner.page("/usage/rows")
    assert "Playground" in page
    assert "Playground …" not in page  # there is no key of which to show the end


async def test_it_streams(owner: Browser) -> None:
    body = BODY | {"stream": True, "stream_options": {"include_usage": True}, "logprobs": 0}
    answer = await owner.post("/playground/completions", json=body, headers=OURS)
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
    counted = sum(len(choice["logprobs"]["tokens"]) for event in events for choice in event["choices"])
    assert counted == events[-1]["usage"]["completion_tokens"] == 5
    assert answer.headers["x-request-id"]


async def test_conversations_and_classifications_too(world: World, owner: Browser) -> None:
    body = {"model": "bytes", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
    assert (await owner.post("/playground/chat/completions", json=body, headers=OURS)).status_code == 200
    answer = await owner.post("/playground/classifications", json={"model": "labels", "input": "Hi"}, headers=OURS)
    assert answer.json()["data"][0]["label"]
    assert sorted(kind for *_, kind in await rows(world)) == ["classification", "generation"]


@pytest.mark.parametrize(
    "headers",
    [{}, {"sec-fetch-site": "cross-site"}, {"sec-fetch-site": "same-site"}, {"origin": "https://evil.example"}],
)
async def test_another_site_cannot_have_it_done(world: World, owner: Browser, headers: dict[str, str]) -> None:
    answer = await owner.post("/playground/completions", json=BODY, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "other_site")
    assert await rows(world) == []


async def test_an_old_browser_says_where_it_comes_from_otherwise(world: World, owner: Browser) -> None:
    answer = await owner.post("/playground/completions", json=BODY, headers={"origin": world.url})
    assert answer.status_code == 200


async def test_a_stranger_is_refused(world: World) -> None:
    async with httpx.AsyncClient(base_url=world.url) as stranger:
        answer = await stranger.post("/playground/completions", json=BODY, headers=OURS)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "sign_in_required")
        assert (await stranger.get("/playground")).headers["location"] == "/login?next=%2Fplayground"


@pytest.mark.parametrize(
    ("role", "may"), [("owner", True), ("admin", True), ("developer", True), ("billing", False), ("viewer", False)]
)
async def test_roles(world: World, acme: UUID, role: str, may: bool) -> None:
    async with visiting(world, acme, role) as member:
        answer = await member.post("/playground/completions", json=BODY, headers=OURS)
        assert answer.status_code == (200 if may else 403)
        assert (await member.get("/playground")).status_code == (200 if may else 403)


async def test_a_key_that_was_revoked_is_followed_by_another(world: World, owner: Browser) -> None:
    await owner.post("/playground/completions", json=BODY, headers=OURS)
    async with world.database.begin() as connection:
        await connection.execute(text("UPDATE api_keys SET revoked_at = now()"))
    assert (await owner.post("/playground/completions", json=BODY, headers=OURS)).status_code == 200
    async with world.database.begin() as connection:
        count = await connection.execute(text("SELECT count(*) FROM api_keys WHERE is_playground"))
        assert count.scalar_one() == 2


async def test_an_end_that_somebody_gave_the_key_is_not_the_end_of_the_playground(
    world: World, acme: UUID, owner: Browser
) -> None:
    await owner.post("/playground/completions", json=BODY, headers=OURS)
    async with world.database.begin() as connection:
        await connection.execute(text("UPDATE api_keys SET expires_at = now() - interval '1 second'"))
    assert (await owner.post("/playground/completions", json=BODY, headers=OURS)).status_code == 200
    async with world.database.begin() as connection:
        found = await api_keys.list_keys(connection, acme)
    assert [one.revoke_reason for one in found] == [None, "revoked"]


async def test_its_key_is_nothing_to_exchange(world: World, acme: UUID, owner: Browser) -> None:
    await owner.post("/playground/completions", json=BODY, headers=OURS)
    async with world.database.begin() as connection:
        (key,) = await api_keys.list_keys(connection, acme)
    page = f"/keys/{key.id}"
    assert "/rotate" not in await owner.page(page)
    answer = await owner.send_form(f"{page}/rotate", page, overlap="24")
    assert answer.status_code == 409
    assert "nothing to exchange" in answer.text


async def test_its_key_holds_to_its_networks(world: World, acme: UUID, owner: Browser) -> None:
    await owner.post("/playground/completions", json=BODY, headers=OURS)
    async with world.database.begin() as connection:
        await connection.execute(text("UPDATE api_keys SET ip_allow = '{192.0.2.0/24}' WHERE is_playground"))
    answer = await owner.post("/playground/completions", json=BODY, headers=OURS)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "ip_not_allowed")


async def test_many_at_once_make_one_key(world: World, owner: Browser) -> None:
    asked = (owner.post("/playground/completions", json=BODY, headers=OURS) for _ in range(8))
    assert {answer.status_code for answer in await asyncio.gather(*asked)} == {200}
    assert len(set(await rows(world))) == 1


async def test_its_limits_are_those_of_the_organisation(world: World, owner: Browser) -> None:
    async with world.database.begin() as connection:
        await connection.execute(text("UPDATE org_budgets SET spend_cap = 0"))
    answer = await owner.post("/playground/completions", json=BODY, headers=OURS)
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "insufficient_quota")


async def test_the_page_has_every_model_with_its_price(owner: Browser) -> None:
    page = await owner.page("/playground")
    assert 'value="bytes" data-kind="generation" data-input="150000" data-cached="75000" data-output="600000"' in page
    assert 'value="labels" data-kind="classification" data-input="100000"' in page
    assert 'value="vectors"' not in page


async def test_what_went_wrong_is_explained_to_who_does_not_read_english(world: World, acme: UUID) -> None:
    assert problems_in(LANGUAGES["en"]) == {}
    problems = problems_in(LANGUAGES["zh"])
    assert set(problems) == {one.code for one in ERRORS} | {
        *("429 insufficient_quota", "sign_in_required", "role_not_allowed")
    }
    assert problems["insufficient_quota"] != problems["429 insufficient_quota"]
    async with visiting(world, acme, **{LANGUAGE_COOKIE: "zh"}) as browser:
        page = html.unescape(await browser.page("/playground"))
    assert json.dumps(problems) in page


async def test_spending_is_told_while_it_changes(world: World, acme: UUID, owner: Browser) -> None:
    looks = asyncio.Queue[None]()
    goes_on = asyncio.Event()

    async def pause(_: float) -> None:
        looks.put_nowait(None)
        await goes_on.wait()

    events = live.standings(world.database, acme, LANGUAGES["en"], pause)
    assert await anext(events) == "retry: 500\n\n"
    assert json.loads((await anext(events)).partition("data: ")[2])["spent"] == "$0.000000"
    following = asyncio.ensure_future(anext(events))
    await looks.get()
    await owner.post("/playground/completions", json=BODY, headers=OURS)
    goes_on.set()
    told = json.loads((await following).partition("data: ")[2])
    # 2 tokens in at 0.15, 5 out at 0.60 USD a million.
    assert told == {"spent": "$0.000003", "held": "$0.000000", "tokens": "7", "running": "0"}
    assert [event async for event in events] == []


async def test_prepaid_credit_is_told_as_well(world: World, acme: UUID) -> None:
    async with world.database.begin() as connection:
        await connection.execute(text("UPDATE org_budgets SET credit = 5000000000000"))
    events = live.standings(world.database, acme, LANGUAGES["zh"])
    await anext(events)
    assert json.loads((await anext(events)).partition("data: ")[2])["credit"] == "US$5.000000"
    await events.aclose()


async def test_an_organisation_has_only_so_many_who_follow_it() -> None:
    async def figures() -> AsyncGenerator[str, None]:
        yield "one"
        yield "two"

    followers, acme, globex = live.Followers(most=1), new_id(), new_id()
    first = live.followed(followers, acme, figures())
    assert await anext(first) == "one"
    assert [event async for event in live.followed(followers, acme, figures())] == ["retry: 30000\n\n"]
    assert [event async for event in live.followed(followers, globex, figures())] == ["one", "two"]
    await first.aclose()  # as when the browser leaves
    assert [event async for event in live.followed(followers, acme, figures())] == ["one", "two"]


async def test_a_browser_asks_again_when_the_database_is_back(owner: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(*_: object) -> None:
        raise DatabaseUnavailable("Away.")

    monkeypatch.setattr(live, "require_user", away)
    answer = await owner.get("/live")
    assert (answer.status_code, answer.text) == (200, "retry: 30000\n\n")
    assert answer.headers["content-type"] == "text/event-stream"


async def test_live_figures_are_for_members(world: World, owner: Browser) -> None:
    async with owner.stream("GET", "/live") as answer:
        assert answer.headers["content-type"] == "text/event-stream"
        assert await anext(answer.aiter_lines()) == "retry: 500"
    async with httpx.AsyncClient(base_url=world.url) as stranger:
        assert (await stranger.get("/live")).status_code == 303
