"""What customers write is text on every page that shows it, and on the answers to what they send."""

import html
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import update

from app.tables import ApiKey, Org
from tests.api.world import World
from tests.factories import make_key
from tests.portal.test_browser import plain_paths
from tests.portal.test_keys_pages import EVERYTHING, only_key
from tests.portal.test_usage_pages import bill
from tests.portal.visiting import Browser

EVIL = "\"'><script>alert(1)</script><img src=x onerror=alert(2)>{{7*7777777}}"
NOTHING_BUT_TEXT = ("<script>alert", "<img src=x", "54444439", "onerror=alert(2)>")


def check(page: str) -> None:
    for live in NOTHING_BUT_TEXT:
        assert live not in page


@pytest.fixture
async def evil(world: World, acme: UUID) -> UUID:
    """An organisation whose every name is an attack; its key's id."""
    await make_key(world.database, world.settings, acme, allowed_models=(EVIL[:100],))
    key = await only_key(world.database, acme)
    async with world.database.begin() as connection:
        await connection.execute(update(Org).where(Org.id == acme).values(name=EVIL))
        await connection.execute(update(ApiKey).where(ApiKey.id == key.id).values(name=EVIL))
    await bill(world.database, acme, {"model": EVIL, "key_id": key.id, "finish_reason": EVIL})
    return key.id


async def test_what_is_stored_is_text_wherever_it_is_shown(world: World, evil: UUID, owner: Browser) -> None:
    shown = 0
    more = (f"/keys/{evil}", "/usage?group=key", f"/usage?key={evil}", "/usage?span=today&bucket=hour")
    for path in (*plain_paths(), *more):
        page = (await owner.get(path)).text
        check(page)
        shown += html.escape(EVIL).replace("&#x27;", "&#39;").replace("&quot;", "&#34;") in page
    assert shown > 10


async def test_what_is_sent_is_text_in_the_answer(owner: Browser) -> None:
    fields: dict[str, Any]
    for field in ("name", "scopes", "allowed_models", "ip_allow", "monthly_cap", "expires_at", "requests_per_minute"):
        fields = EVERYTHING | {field: EVIL, "tokens_per_minute": "no number"}
        check((await owner.send_form("/keys", "/keys/new", **fields)).text)
    check((await owner.send_form("/limits", "/limits", spend_cap=EVIL)).text)
    check((await owner.get("/nowhere", params={"next": EVIL}, headers={"accept": "text/html"})).text)
    for name in ("span", "start", "bucket", "group", "model", "key", "after"):
        for path in ("/usage", "/usage/rows", "/keys", "/settings"):
            check((await owner.get(path, params={name: EVIL})).text)
    owner.cookies.clear()
    check((await owner.get("/login", params={"next": f"/{EVIL}"})).text)
