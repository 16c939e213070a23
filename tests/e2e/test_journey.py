"""A customer's way from the landing page to the first invoice: a browser, the official client, a whole installation.

Pictures of every step lie under runs/screenshots/journey and runs/screenshots/journey-viewer.
"""

import re
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from openai import AsyncOpenAI
from playwright.async_api import Browser, expect

from app.billing.catalog import PLANS
from app.modeling.registry import ModelCard
from tests.e2e.books import Books, opened
from tests.e2e.customer import LONGEST_MS, PASSWORD, Customer, at_a_browser
from tests.installation import Installation
from tests.portal.test_browser import chromium
from tests.year.oracle import LIST_PRICES, PICO_USD_PER_NANO_USD, cents_of

__all__ = ["chromium"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.xdist_group("journey")]

ORG = "Analytical Engines"
GOOD_CARD = "4242 4242 4242 4242"
GROWTH = PLANS["growth"]
BEYOND = GROWTH.included_tokens + 12_345_679
"""Tokens of a prompt at list price, some of them above what the plan includes."""
STEP_MS = 20
"""Of the engine, so that an answer of some tokens is seen to come."""
# Everything that the cost and what was spent have been, in a page that shows them for a moment.
WATCH = """() => {
  window.shown = {cost: [], spent: []};
  const parts = {cost: "#cost", spent: "[data-live=spent]"};
  for (const [name, selector] of Object.entries(parts)) {
    const part = document.querySelector(selector);
    const watch = new MutationObserver(() => window.shown[name].push(part.textContent));
    watch.observe(part, {childList: true, characterData: true, subtree: true});
  }
}"""


@pytest.fixture(scope="module")
def stub_installation() -> Iterator[Installation]:
    """Everything but the models' weights."""
    with Installation("--stub", "--step-ms", str(STEP_MS)) as running:
        yield running


@pytest.fixture
async def ada(chromium: Browser, stub_installation: Installation) -> AsyncIterator[Customer]:
    """Who is led from page to page."""
    async with at_a_browser(chromium, stub_installation, "ada@engines.example", "journey") as customer:
        yield customer


async def test_from_the_landing_page_to_the_first_invoice(
    chromium: Browser, stub_installation: Installation, ada: Customer, generator: ModelCard
) -> None:
    await sign_up(ada)
    await sign_in_again(ada)
    secret = await make_key(ada)
    async with AsyncOpenAI(api_key=secret, base_url=stub_installation.url, max_retries=0) as client:
        await try_the_playground(ada, client, generator)
        await call_and_see_it_counted(ada, client, generator)
        await upgrade(ada)
        await see_the_limit_raised(ada, client, generator)
        async with opened(stub_installation, ORG) as books:
            await use_more_than_is_included(ada, books, secret, client, generator)
            await see_the_invoice(ada, books, client)
    async with at_a_browser(chromium, stub_installation, "vera@engines.example", "journey-viewer") as vera:
        await invite(ada, vera)
        await look_around_as_viewer(vera)
        assert vera.problems == []
    await read_it_in_chinese(ada)
    assert ada.problems == []


async def sign_up(ada: Customer) -> None:
    await ada.page.goto("/")
    await ada.see("landing")
    await ada.page.get_by_role("link", name="Make an account").first.click()
    await ada.page.get_by_label("E-mail").fill(ada.email)
    await ada.page.get_by_label("Password").fill(PASSWORD)
    await ada.page.get_by_label("Organisation").fill(ORG)
    await ada.see("sign-up")
    await ada.press("Make an account")
    await ada.reads("Look into your mailbox")
    await ada.see("mail-is-on-its-way")
    await ada.opens_mail("Confirm your e-mail address")
    await ada.see("confirm")
    await ada.press("Confirm and sign in")
    await ada.reads(ORG)
    await ada.see("first-overview")


async def sign_in_again(ada: Customer) -> None:
    await ada.page.get_by_role("button", name="Sign out").click()
    await ada.page.goto("/login")
    await ada.page.get_by_label("E-mail").fill(ada.email)
    await ada.page.get_by_label("Password").fill(PASSWORD)
    await ada.see("sign-in")
    await ada.press("Sign in")
    await ada.reads(ORG)


async def make_key(ada: Customer) -> str:
    """The key, which its page shows once."""
    await ada.follow("API keys")
    await ada.main.get_by_role("link", name="New key").first.click()
    await ada.page.get_by_label("Name").fill("website")
    await ada.see("new-key")
    await ada.press("Make the key")
    secret = await ada.page.locator("#secret code").inner_text()
    await ada.see("key-shown-once")
    await ada.main.get_by_role("link", name="I have copied it").click()
    await ada.see("key")
    assert secret not in await ada.page.content()
    await ada.follow("API keys")
    await ada.see("keys")
    assert secret not in await ada.page.content()
    return secret


async def try_the_playground(ada: Customer, client: AsyncOpenAI, generator: ModelCard) -> None:
    """The cost is told while the answer comes, and what was spent moves by it, to the micro-dollar."""
    page = ada.page
    await ada.follow("Playground")
    await page.get_by_label("Model", exact=True).select_option(generator.name)
    await page.get_by_label("Most tokens").fill("48")
    spent = page.locator("[data-live=spent]")
    await expect(spent).to_have_text("$0.000000", timeout=LONGEST_MS)
    await page.evaluate(WATCH)
    await ada.press("Run")
    await expect(page.locator("#cost")).to_have_text(re.compile(r"^\$0\.\d{6}$"), timeout=LONGEST_MS)
    cost = await page.locator("#cost").inner_text()
    await expect(spent).to_have_text(cost, timeout=LONGEST_MS)
    shown = await page.evaluate("window.shown")
    assert len({text for text in shown["cost"] if text.startswith("≥ $0.")}) > 1
    assert shown["spent"][-1] == cost != "$0.000000"
    await ada.see("playground")
    receipt = await receipt_of(client, await page.locator("#request-id").inner_text())
    assert f"${receipt['cost']['value']}" == cost
    assert await page.locator("#output-tokens").inner_text() == str(receipt["output_tokens"])
    await ada.follow("Overview")
    await expect(page.locator("#spent")).to_have_text(cost)
    await expect(ada.main.get_by_role("cell", name=generator.name)).to_be_visible()
    await ada.see("overview")


async def receipt_of(client: AsyncOpenAI, request_id: str) -> dict[str, Any]:
    """What a request is billed for."""
    found: dict[str, Any] = await client.get(f"/usage/requests/{request_id}", cast_to=dict[str, Any])
    return found


async def call_and_see_it_counted(ada: Customer, client: AsyncOpenAI, generator: ModelCard) -> None:
    """What is answered is there at the next look: it was written before the answer ended."""
    raw = await client.completions.with_raw_response.create(model=generator.name, prompt="The king", max_tokens=12)
    await ada.page.goto("/usage")
    assert raw.headers["x-ratelimit-limit-requests"] == str(PLANS["free"].requests_per_minute)
    total = ada.main.locator("tfoot [data-label=Requests]").first
    assert (await total.inner_text()).strip() == "2"
    await ada.see("usage")
    await ada.main.get_by_role("link", name="Single requests").click()
    request_id = raw.headers["x-request-id"]
    row = ada.main.locator("tr", has=ada.page.locator(f"code[title='{request_id}']"))
    assert (await receipt_of(client, request_id))["cost"]["value"] in await row.inner_text()
    await ada.see("single-requests")


async def upgrade(ada: Customer) -> None:
    """Pays for a plan at Stripe."""
    await ada.follow("Plan and billing")
    await ada.see("plans")
    growth = ada.main.locator("section", has=ada.page.get_by_role("heading", name=GROWTH.title, exact=True))
    await growth.get_by_role("button", name="Monthly").click()
    await ada.page.wait_for_url("**/checkout/**")
    await ada.page.get_by_label("Card number").fill(GOOD_CARD)
    await ada.see("checkout")
    await ada.page.get_by_role("button", name="Subscribe").click()
    await ada.page.wait_for_url("**/billing?bought=subscription")
    # The page looks again by itself until Stripe's news of it is there.
    await expect(ada.main.get_by_role("heading", name=f"Your plan: {GROWTH.title}")).to_be_visible(timeout=LONGEST_MS)
    await ada.see("upgraded")


async def see_the_limit_raised(ada: Customer, client: AsyncOpenAI, generator: ModelCard) -> None:
    await ada.follow("Limits")
    allowed = ada.main.locator("dt", has_text="Requests a minute, each key").locator("+ dd")
    assert await allowed.inner_text() == f"{GROWTH.requests_per_minute:,}"
    await ada.see("limits")
    raw = await client.completions.with_raw_response.create(model=generator.name, prompt="The queen", max_tokens=8)
    assert raw.headers["x-ratelimit-limit-requests"] == str(GROWTH.requests_per_minute)


async def use_more_than_is_included(
    ada: Customer, books: Books, secret: str, client: AsyncOpenAI, generator: ModelCard
) -> None:
    """A month's worth, settled like any request, and some requests; the page says what it costs so far."""
    await books.use(secret, generator.name, BEYOND)
    for number in range(3):
        await client.completions.create(model=generator.name, prompt="The fool", max_tokens=8, seed=number)
    await ada.follow("Plan and billing")
    value = await list_price_of(books) // PICO_USD_PER_NANO_USD
    so_far = ada.main.locator("tr", has_text="Their cost so far").locator("td")
    cents = cents_of(GROWTH.name, value)
    assert cents > 0
    assert await so_far.inner_text() == dollars(cents)
    await ada.see("usage-above-what-is-included")
    await books.report()


async def list_price_of(books: Books) -> int:
    """Everything of the first period, worked out anew from its rows; 10^-12 USD."""
    total = 0
    for row in await books.rows(*await books.period()):
        fresh, cached, output = LIST_PRICES[row.price_version, row.kind]
        total += (
            (row.input_tokens - row.cached_tokens) * fresh + row.cached_tokens * cached + row.output_tokens * output
        )
    return total


async def see_the_invoice(ada: Customer, books: Books, client: AsyncOpenAI) -> None:
    """A month and a day later: what it says is what the API says and what the rows are."""
    start, end = await books.period()
    await books.pass_time(end - start + timedelta(days=1))
    await ada.page.goto("/billing")
    invoices = ada.main.locator("#invoices tbody tr")
    await ada.reload_until(invoices.nth(1).get_by_text("paid", exact=True))
    await ada.see("invoices")
    await invoices.first.get_by_role("link").click()
    await ada.see("invoice")
    value = await list_price_of(books)
    due = GROWTH.month_cents + cents_of(GROWTH.name, value // PICO_USD_PER_NANO_USD)
    lines, used = ada.main.locator("section.card").nth(0), ada.main.locator("section.card").nth(1)
    totals = await lines.locator("tfoot tr").all_inner_texts()
    assert [re.split(r"\s+", total.strip()) for total in totals] == [["Total", dollars(due)], ["Paid", dollars(due)]]
    assert await cells(used, "tbody tr") == await usage_by_model(client, start, end)
    assert await rows_by_model(books, start, end) == {
        tuple(line[:2]): tuple(int(one.replace(",", "")) for one in line[2:5]) for line in await cells(used, "tbody tr")
    }
    assert (await cells(used, "tfoot tr"))[0][-1] == f"${Decimal(value) / 10**12:,.6f}"


async def cells(table: Any, rows: str) -> list[list[str]]:
    """What stands in a table, row by row."""
    return [
        [text.strip() for text in await row.locator("td").all_inner_texts()] for row in await table.locator(rows).all()
    ]


async def usage_by_model(client: AsyncOpenAI, start: datetime, end: datetime) -> list[list[str]]:
    """The same from the API, as the page writes it."""
    query = {"start": start.isoformat(), "end": end.isoformat(), "bucket": "month", "group_by": "model,kind"}
    answer = await client.get("/usage", cast_to=dict[str, Any], options={"params": query})
    return [
        [
            line["model"],
            line["kind"].capitalize(),
            *(f"{line[name]:,}" for name in ("requests", "input_tokens", "output_tokens")),
            f"${Decimal(line['cost']['value']):,.6f}",
        ]
        for line in answer["data"]
    ]


async def rows_by_model(books: Books, start: datetime, end: datetime) -> dict[tuple[str, ...], tuple[int, ...]]:
    """Requests, input and output tokens by model and kind, added up from the rows."""
    sums: dict[tuple[str, ...], Counter[str]] = {}
    for row in await books.rows(start, end):
        one = {"requests": 1, "input": row.input_tokens, "output": row.output_tokens}
        sums.setdefault((row.model, row.kind.capitalize()), Counter()).update(one)
    return {name: (found["requests"], found["input"], found["output"]) for name, found in sums.items()}


async def invite(ada: Customer, vera: Customer) -> None:
    await ada.follow("Members")
    await ada.page.get_by_label("E-mail").fill(vera.email)
    await ada.page.get_by_label("Role", exact=True).select_option("viewer")
    await ada.press("Send the invitation")
    await expect(ada.main.get_by_role("status")).to_be_visible()
    await ada.see("invited")
    await vera.opens_mail("You are invited")
    await vera.see("invitation")
    await vera.page.get_by_label("Choose a password").fill(PASSWORD)
    await vera.press("Make an account and join")
    await vera.reads(ORG)


async def look_around_as_viewer(vera: Customer) -> None:
    """Overview and usage, and nothing else of the organisation's."""
    await vera.see("overview")
    await vera.follow("Usage")
    await vera.reads("Usage")
    menu = await vera.page.get_by_role("navigation", name="Portal").get_by_role("link").all_inner_texts()
    for path, label in (("/keys", "API keys"), ("/billing", "Plan and billing"), ("/members", "Members")):
        answer = await vera.page.goto(path)
        assert answer is not None
        assert answer.status == 403, path
        assert label not in menu
    await vera.see("not-for-viewers")


async def read_it_in_chinese(ada: Customer) -> None:
    await ada.page.goto("/billing")
    await ada.page.get_by_role("link", name="简体中文").click()
    await ada.reads("套餐与账单")
    assert await ada.page.locator("html").get_attribute("lang") == "zh-Hans"
    for path in ("/overview", "/keys", "/usage", "/playground", "/billing", "/limits", "/members", "/audit"):
        await ada.page.goto(path)
        await ada.see(f"chinese-{path.strip('/')}")
        menu = await ada.page.get_by_role("navigation").get_by_role("link").all_inner_texts()
        assert [label for label in menu if not re.search("[一-鿿]", label)] == ["English"], path
        heads = await ada.main.locator("h2, thead th, label, dt").all_inner_texts()
        assert {text for text in heads if text and not re.search("[一-鿿]", text)} <= {"Token", "top_p"}, path
        assert await ada.main.get_by_text(re.compile(r"\bpaid\b|Growth")).count() == 0, path


def dollars(cents: int) -> str:
    """An amount as the portal writes it."""
    return f"${Decimal(cents) / 100:,.2f}"
