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
from playwright.async_api import Error as PlaywrightError

from app import keys as api_keys
from app.accounts import sessions
from app.accounts.sessions import SESSION_COOKIE
from app.alerts.endpoints import add_endpoint
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
PICTURE_ATTEMPTS = 3
NO_FRAME = "Unable to capture screenshot"
VISITED = ("/", "/login", "/signup", "/forgot")
"""By people who are not signed in."""
LONG_NAME = "Product descriptions of the spring catalogue, every night (do not rotate before Friday)"
LONG_EMAIL = "maximiliana.featherstonehaugh-cholmondeley@translations-and-localisation.example"
LONG_HOOK = "https://hooks.translations-and-localisation.example/tollgate/alerts/production"
# What is pressed and lower than a finger needs; links within text and boxes within their labels are not meant.
TOO_LOW = """() => [...document.querySelectorAll("a, button, input, select, textarea, summary")]
  .filter((part) => part.checkVisibility() && getComputedStyle(part).display !== "inline")
  .filter((part) => !["checkbox", "radio", "hidden"].includes(part.type))
  .filter((part) => part.getBoundingClientRect().height < 44)
  .map((part) => part.outerHTML.slice(0, 120))"""
# Words of tables that go on in the next line: a rectangle for each part. Addresses may break, and after a hyphen all.
BROKEN = """() => {
  const broken = [];
  for (const cell of document.querySelectorAll("td:not(.address, .wide), th, .button, button")) {
    const walk = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT);
    for (let node = walk.nextNode(); node; node = walk.nextNode()) {
      if (node.parentElement.closest(".name, pre") || !node.parentElement.checkVisibility()) continue;
      for (const { 0: word, index } of node.data.matchAll(/[^\\s-]{2,}/g)) {
        if (/[^\\x00-\\x7f]/.test(word)) continue;
        const range = new Range();
        range.setStart(node, index);
        range.setEnd(node, index + word.length);
        if (new Set([...range.getClientRects()].map((part) => Math.round(part.top))).size > 1) broken.push(word);
      }
    }
  }
  return broken;
}"""
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
    await make_user(world.database, acme, LONG_EMAIL, "admin")
    for name in ("website", "nightly batch", LONG_NAME):
        await make_key(world.database, world.settings, acme, name=name)
    async with world.database.begin() as connection:
        token = await sessions.open_session(connection, user_id, NOW)
        await add_endpoint(connection, acme, LONG_HOOK)
        found = await api_keys.list_keys(connection, acme)
    models = ("shakespeare", "tang-poetry", "bytes", "labels", "m5", "m6", "m7")
    await bill(
        world.database,
        acme,
        *(
            {
                "model": models[number % len(models)],
                "key_id": found[number % 3].id,
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


async def take_picture(page: Page, path: Path, *, full_page: bool = True) -> None:
    """For people to look at.

    On a busy machine Chromium now and then has no frame to give, which says nothing of the page: it is asked again.
    What is looked at lies in the way of no test, so that a page without a picture is only spoken of.
    """
    for _ in range(PICTURE_ATTEMPTS):
        try:
            await page.screenshot(path=path, full_page=full_page)
        except PlaywrightError as error:
            if NO_FRAME not in error.message:
                raise
        else:
            return
    print(f"{path}: Chromium gave no picture")  # noqa: T201 - pytest shows it


@pytest.mark.parametrize(("theme", "code"), [("light", "en"), ("dark", "en"), ("light", "zh")])
@pytest.mark.parametrize("width", [375, 768, 1440])
async def test_pages_can_be_used_by_everybody(
    chromium: Browser, world: World, acme: UUID, lived_in: str, width: int, theme: str, code: str
) -> None:
    """Nothing too wide, too low to press or broken within a word, nothing that axe or the browser minds; pictures."""
    context = await context_of(chromium, world, lived_in, width=width, theme=theme, code=code)
    page = await context.new_page()
    watch, problems = Watch(page), []
    for path in await paths_of(world, acme):
        if path == "/docs" and (theme, code) != ("light", "en"):
            continue  # long, and the same in every language
        await page.goto(path)
        name = "keys-one" if path.startswith("/keys/0") else re.sub("[^a-z0-9]+", "-", path).strip("-") or "landing"
        await take_picture(page, PICTURES / f"{width}-{theme}-{code}" / f"{name}.png")
        problems += await faults_of(page, path, width)
        if (width, theme, code) in SEEN_BY_AXE:
            problems += [f"{path}: {violation}" for violation in await violations_of(page)]
    await context.clear_cookies()
    for path in VISITED:
        await page.goto(path)
        name = path.strip("/") or "landing"
        await take_picture(page, PICTURES / f"{width}-{theme}-{code}" / f"visitor-{name}.png")
        problems += await faults_of(page, path, width)
        problems += [f"{path}: {violation}" for violation in await violations_of(page)]
    assert problems == []
    assert watch.complaints == []
    await context.close()


async def faults_of(page: Page, path: str, width: int) -> list[str]:
    """What a designer would mend: a page wider than the screen, what no finger hits, words that fall apart."""
    faults = [f"{path}: broken {word}" for word in await page.evaluate(BROKEN)]
    if await page.evaluate("document.documentElement.scrollWidth > innerWidth"):
        faults.append(f"{path} is wider than {width}")
    if width == 375:
        faults += [f"{path}: low {part}" for part in await page.evaluate(TOO_LOW)]
    return faults


async def violations_of(page: Page) -> list[str]:
    """What axe finds that keeps somebody out."""
    found = (await Axe().run(page)).response["violations"]
    return [
        f"{one['id']} ({one['help']}): {[node['html'][:200] for node in one['nodes'][:3]]}"
        for one in found
        if one["impact"] in ("serious", "critical")
    ]


async def test_every_page_has_a_title_of_its_own(chromium: Browser, world: World, acme: UUID, lived_in: str) -> None:
    context = await context_of(chromium, world, lived_in)
    page = await context.new_page()
    paths = {path.partition("?")[0] for path in await paths_of(world, acme)}
    addresses: dict[str, set[str]] = {}
    for path in paths:
        answer = await page.goto(path)
        assert answer is not None
        if answer.ok:
            # Pages that lead elsewhere count as where they lead.
            addresses.setdefault(await page.title(), set()).add(urlsplit(page.url).path)
    assert {title: found for title, found in addresses.items() if len(found) > 1} == {}
    assert all(title.endswith(" · Tollgate") for title in addresses)
    await context.close()


async def test_on_paper_a_page_is_its_content(chromium: Browser, world: World, lived_in: str) -> None:
    context = await context_of(chromium, world, lived_in, theme="dark")
    page = await context.new_page()
    await page.goto("/usage")
    await page.emulate_media(media="print")
    assert await page.get_by_role("navigation").count() == 0
    assert not await page.get_by_role("link", name="Download CSV").is_visible()
    assert await page.get_by_role("cell", name="shakespeare").first.is_visible()
    assert await page.evaluate("getComputedStyle(document.body).color") == "rgb(23, 26, 33)"
    await context.close()


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
    await take_picture(page, PICTURES / "menu-375.png", full_page=False)
    await page.keyboard.press("Escape")
    assert not await link.is_visible()
    await context.close()


async def test_a_filter_applies_when_it_is_chosen(chromium: Browser, world: World, lived_in: str) -> None:
    context = await context_of(chromium, world, lived_in)
    page = await context.new_page()
    await page.goto("/usage")
    assert not await page.get_by_role("button", name="Show").is_visible()
    await page.get_by_label("Group by").select_option("key")
    await page.wait_for_url("**/usage?*group=key*")
    assert await page.get_by_role("cell", name="nightly batch").first.is_visible()
    await context.close()


async def test_a_date_that_is_typed_waits_for_the_button(chromium: Browser, world: World, lived_in: str) -> None:
    context = await context_of(chromium, world, lived_in)
    page = await context.new_page()
    await page.goto("/usage?span=custom")
    address = page.url
    await page.get_by_label("From", exact=True).fill(f"{NOW - timedelta(days=9):%Y-%m-%d}")
    await page.get_by_label("From", exact=True).blur()
    assert page.url == address
    await page.get_by_role("button", name="Show").click()
    await page.wait_for_url(f"**start={NOW - timedelta(days=9):%Y-%m-%d}*")
    await context.close()
