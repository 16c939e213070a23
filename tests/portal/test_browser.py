"""The pages in a real browser: seen by axe, by the keyboard, and kept as pictures under runs/screenshots.

Every page of the portal that needs nothing in its address comes along by itself.
"""

import os
import re
import shutil
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit
from uuid import UUID

import pytest
from axe_playwright_python.async_playwright import Axe
from fastapi.routing import APIRoute
from playwright.async_api import Browser, BrowserContext, Page, Response, async_playwright

from app import keys as api_keys
from app.accounts import sessions
from app.accounts.sessions import SESSION_COOKIE
from app.portal import pages
from tests.api.world import World
from tests.factories import make_key, make_user
from tests.portal.test_usage_pages import bill

pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]

PICTURES = Path(__file__).parents[2] / "runs" / "screenshots"
NOW = datetime.now(UTC)
MAX_BYTES = 150_000
"""Of a page with everything that it loads."""
NOT_PAGES = ("/usage/lines.csv", "/usage/rows.csv", "/live", "/data/export")
MORE = (
    "/usage?span=today&bucket=hour",
    "/usage?group=key",
    "/settings?saved=yes",
    "/keys/{key}",
    "/docs",
    "/nowhere-at-all",
)
VISITED = ("/", "/login", "/signup", "/forgot")
"""By people who are not signed in."""
SEEN_BY_AXE = ((375, "light", "en"), (768, "dark", "en"), (1440, "light", "zh"))
"""Each width, look and language once."""


@pytest.fixture
async def chromium() -> AsyncIterator[Browser]:
    path = shutil.which("chromium")
    if path is None:
        if os.getenv("CI"):  # noqa: TID251 - no setting of ours
            pytest.fail("there is no Chromium, and CI must not go without: see scripts/install-chromium.sh")
        pytest.skip("no Chromium here; scripts/install-chromium.sh installs it")
    async with async_playwright() as playwright:
        # Chromium's own sandbox cannot be had as root.
        browser = await playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        await browser.close()


@pytest.fixture
async def lived_in(world: World, acme: UUID) -> str:
    """The session of an owner whose organisation has keys and usage; the token of its cookie."""
    user_id = await make_user(world.database, acme, "someone@acme.example")
    for name in ("website", "nightly batch"):
        await make_key(world.database, world.settings, acme, name=name)
    async with world.database.begin() as connection:
        token = await sessions.open_session(connection, user_id, NOW)
        found = await api_keys.list_keys(connection, acme)
    models = ("shakespeare", "tang-poetry", "bytes", "labels", "m5", "m6", "m7")
    await bill(
        world.database,
        acme,
        *(
            {
                "model": models[number % len(models)],
                "key_id": found[number % 2].id,
                "input_tokens": 1000 * (1 + number % 11),
                "billed_at": NOW - timedelta(hours=number * 5),
            }
            for number in range(140)
        ),
    )
    return token


async def paths_of(world: World, acme: UUID) -> list[str]:
    async with world.database.begin() as connection:
        (key, *_) = await api_keys.list_keys(connection, acme)
    return [path.replace("{key}", str(key.id)) for path in (*plain_paths(), *MORE)]


def plain_paths() -> Iterator[str]:
    """Addresses of all pages that need nothing more than their address."""
    for route in (route for page in pages._PAGES for route in page.router.routes):
        is_page = (
            isinstance(route, APIRoute) and "GET" in (route.methods or ()) and not route.path.startswith(NOT_PAGES)
        )
        if is_page and "{" not in route.path:
            yield route.path


async def context_of(
    chromium: Browser, world: World, session: str | None, *, width: int = 1440, theme: str = "light", code: str = "en"
) -> BrowserContext:
    context = await chromium.new_context(
        base_url=world.url,
        viewport={"width": width, "height": 900},
        color_scheme=theme,  # type: ignore[arg-type]
        locale={"en": "en-US", "zh": "zh-CN"}[code],
        reduced_motion="reduce",
    )
    if session:
        await context.add_cookies([{"name": SESSION_COOKIE, "value": session, "url": world.url}])
    return context


class Watch:
    """What a page loads and complains of."""

    def __init__(self, page: Page) -> None:
        self.complaints: list[str] = []
        self.answers: list[Response] = []
        page.on("console", lambda message: self._hear(message.type, message.text))
        page.on("pageerror", lambda error: self._hear("error", str(error)))
        page.on("response", lambda answer: self.answers.append(answer))

    def _hear(self, kind: str, text: str) -> None:
        # The browser's own word for an answer of 400 and above.
        if kind in ("error", "warning") and "Failed to load resource" not in text:
            self.complaints.append(text)


@pytest.mark.parametrize(("theme", "code"), [("light", "en"), ("dark", "en"), ("light", "zh")])
@pytest.mark.parametrize("width", [375, 768, 1440])
async def test_pages_can_be_used_by_everybody(
    chromium: Browser, world: World, acme: UUID, lived_in: str, width: int, theme: str, code: str
) -> None:
    """Nothing wider than the screen, no complaint of the browser, no serious violation; a picture of each page."""
    context = await context_of(chromium, world, lived_in, width=width, theme=theme, code=code)
    page = await context.new_page()
    watch, problems = Watch(page), []
    for path in await paths_of(world, acme):
        if path == "/docs" and (theme, code) != ("light", "en"):
            continue  # long, and the same in every language
        await page.goto(path)
        name = "keys-one" if path.startswith("/keys/0") else re.sub("[^a-z0-9]+", "-", path).strip("-") or "landing"
        await page.screenshot(path=PICTURES / f"{width}-{theme}-{code}" / f"{name}.png", full_page=True)
        if await page.evaluate("document.documentElement.scrollWidth > innerWidth"):
            problems.append(f"{path} is wider than {width}")
        if (width, theme, code) in SEEN_BY_AXE:
            problems += [f"{path}: {violation}" for violation in await violations_of(page)]
    await context.clear_cookies()
    for path in VISITED:
        await page.goto(path)
        name = path.strip("/") or "landing"
        await page.screenshot(path=PICTURES / f"{width}-{theme}-{code}" / f"visitor-{name}.png", full_page=True)
        problems += [f"{path}: {violation}" for violation in await violations_of(page)]
    assert problems == []
    assert watch.complaints == []
    await context.close()


async def violations_of(page: Page) -> list[str]:
    """What axe finds that keeps somebody out."""
    found = (await Axe().run(page)).response["violations"]
    return [
        f"{one['id']} ({one['help']}): {[node['html'][:200] for node in one['nodes'][:3]]}"
        for one in found
        if one["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("is_signed_in", [True, False])
async def test_pages_are_light_and_load_nothing_from_elsewhere(
    chromium: Browser, world: World, acme: UUID, lived_in: str, is_signed_in: bool
) -> None:
    here = urlsplit(world.url).netloc
    for path in await paths_of(world, acme):
        context = await context_of(chromium, world, lived_in if is_signed_in else None)
        page = await context.new_page()
        watch = Watch(page)
        await page.goto(path)
        assert {urlsplit(answer.url).netloc for answer in watch.answers} == {here}
        sizes = [len(await answer.body()) for answer in watch.answers if answer.status < 300]
        if not path.startswith("/docs"):
            assert sum(sizes) < MAX_BYTES, path
        await context.close()


async def test_a_key_can_be_copied_and_is_what_was_shown(chromium: Browser, world: World, lived_in: str) -> None:
    context = await context_of(chromium, world, lived_in)
    await context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = await context.new_page()
    await page.goto("/keys/new")
    await page.get_by_label("Name").fill("copied")
    await page.get_by_role("button", name="Make the key").click()
    secret = await page.locator("#secret code").inner_text()
    await page.get_by_role("button", name="Copy API key").click()
    await page.get_by_role("button", name="Copied API key").wait_for()
    assert await page.evaluate("navigator.clipboard.readText()") == secret
    assert (await world.get("/v1/models", secret)).status_code == 200
    await context.close()


async def test_the_menu_of_a_narrow_screen_opens_by_the_keyboard(
    chromium: Browser, world: World, lived_in: str
) -> None:
    context = await context_of(chromium, world, lived_in, width=375)
    page = await context.new_page()
    await page.goto("/overview")
    await page.keyboard.press("Tab")
    assert await page.evaluate("document.activeElement.textContent") == "Skip to the content"
    link = page.get_by_role("link", name="API keys")
    assert not await link.is_visible()
    await page.get_by_role("button", name="Menu").focus()
    await page.keyboard.press("Enter")
    assert await link.is_visible()
    await page.screenshot(path=PICTURES / "menu-375.png")
    await page.keyboard.press("Escape")
    assert not await link.is_visible()
    await context.close()


async def test_a_filter_applies_when_it_is_chosen(chromium: Browser, world: World, lived_in: str) -> None:
    context = await context_of(chromium, world, lived_in)
    page = await context.new_page()
    await page.goto("/usage")
    await page.get_by_label("Group by").select_option("key")
    await page.wait_for_url("**/usage?*group=key*")
    assert await page.get_by_role("cell", name="nightly batch").first.is_visible()
    await context.close()
