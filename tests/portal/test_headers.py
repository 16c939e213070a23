"""What browsers are told with every page, file, error and redirect; and what programs are not."""

from uuid import UUID

import httpx
import pytest

from app.main import create_app
from app.portal.headers import HEADERS, content_policy
from tests.api.world import World
from tests.factories import make_key
from tests.portal.visiting import Browser

STRICT = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


@pytest.mark.parametrize(
    "path", ["/", "/login", "/overview", "/keys/nonsense", "/usage/rows.csv", "/static/site.css", "/docs", "/nowhere"]
)
async def test_everything_that_people_see_is_locked_down(owner: Browser, path: str) -> None:
    headers = (await owner.get(path)).headers
    assert STRICT.items() <= dict(headers).items()
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy


async def test_pages_are_kept_by_nobody_and_files_with_a_version_for_good(owner: Browser) -> None:
    page = await owner.get("/overview")
    assert page.headers["cache-control"] == "no-store"
    style = page.text.split('rel="stylesheet" href="')[1].split('"')[0]
    assert style.startswith("/static/site.css?v=")
    kept = await owner.get(style)
    assert kept.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert (await owner.get("/static/site.css")).headers["cache-control"] == "no-cache"


async def test_a_redirect_to_the_login_is_locked_down_too(owner: Browser) -> None:
    owner.cookies.clear()
    answer = await owner.get("/usage")
    assert answer.status_code == 303
    assert STRICT.items() <= dict(answer.headers).items()


async def test_programs_are_told_none_of_it(world: World, acme: UUID) -> None:
    key = await make_key(world.database, world.settings, acme)
    for answer in (await world.get("/v1/models", key), await world.get("/livez")):
        assert not {*HEADERS, "strict-transport-security"} & {*answer.headers}


@pytest.mark.parametrize(("env", "is_told"), [("production", True), ("development", False)])
async def test_browsers_come_back_by_tls_in_production(world: World, env: str, is_told: bool) -> None:
    settings = world.settings.model_copy(update={"env": env})
    transport = httpx.ASGITransport(create_app(settings))
    async with httpx.AsyncClient(transport=transport, base_url="http://tollgate.test") as client:
        headers = (await client.get("/static/site.css")).headers
    assert ("strict-transport-security" in headers) == is_told


def test_a_form_may_lead_to_named_places_only() -> None:
    policy = content_policy(("https://checkout.stripe.com",))
    assert "form-action 'self' https://checkout.stripe.com;" in policy
    assert "form-action 'self';" in content_policy()


async def test_an_address_that_is_no_page_is_told_so_to_people_on_a_page_and_to_programs_as_json(
    world: World, owner: Browser
) -> None:
    as_people = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
    answer = await owner.get("/nowhere", headers=as_people)
    assert answer.status_code == 404
    assert "There is no page at this address." in answer.text
    assert STRICT.items() <= dict(answer.headers).items()
    assert (await owner.post("/nowhere", headers=as_people)).status_code == 404
    assert "<!doctype html>" in (await owner.put("/login", headers=as_people)).text
    assert (await owner.get("/nowhere")).json()["error"]["code"] == "unknown_url"
    key = await make_key(world.database, world.settings)
    answer = await world.http.get("/v1/nowhere", headers=as_people | world.auth(key))
    assert answer.json()["error"]["code"] == "unknown_url"
