"""The playground as somebody uses it in a real browser: what it tells while it runs, stopped, and when it fails."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import pytest
from playwright.async_api import Browser, Page, expect
from sqlalchemy import text

from app.rpc import engine_pb2 as pb
from tests.api.world import World, score
from tests.portal.test_browser import chromium, context_of, lived_in

__all__ = ["chromium", "lived_in"]
pytestmark = [pytest.mark.timeout(120), pytest.mark.slow]
LONGEST_MS = 20_000


async def opened(chromium: Browser, world: World, session: str, code: str = "en") -> Page:
    """The playground, with a request that fits the model."""
    page = await (await context_of(chromium, world, session, code=code)).new_page()
    page.set_default_timeout(LONGEST_MS)
    await page.goto("/playground")
    await page.locator("#max_tokens").fill("8")
    return page


async def test_a_stopped_answer_costs_what_was_delivered(
    chromium: Browser,
    world: World,
    lived_in: str,
) -> None:
    async def endless(_: pb.GenerateRequest) -> AsyncIterator[pb.GenerateChunk]:
        for index, token in enumerate(b"Hel"):
            yield pb.GenerateChunk(index=index, tokens=[token], logprobs=[score(token)], accelerator_ms=1.0)
        await asyncio.Event().wait()

    world.engine.answer = endless
    page = await opened(chromium, world, lived_in)
    await page.get_by_role("button", name="Run").click()
    await expect(page.locator("#answer")).to_have_text("Hel", timeout=LONGEST_MS)
    await expect(page.locator("#output-tokens")).to_have_text("3")
    await expect(page.locator("#cost")).to_have_text("≥ $0.000002")  # 3 at 0.60 USD a million
    await page.get_by_role("button", name="Stop").click()
    await expect(page.get_by_role("button", name="Run")).to_be_enabled()
    await expect(page.locator("#problem")).to_be_hidden()
    await world.engine.cancelled.wait()
    rows: list[Any] = []
    while not rows:
        rows = [row for row in await world.usage_rows() if row.finish_reason == "aborted"]
    assert [row.output_tokens for row in rows] == [3]


async def test_labels_are_shown_with_what_they_cost(
    chromium: Browser,
    world: World,
    lived_in: str,
) -> None:
    page = await opened(chromium, world, lived_in, "zh")
    await page.locator("#model").select_option("labels")
    await page.locator("#text").fill("Hi")
    await page.locator("#run").click()
    await expect(page.locator("#answer")).to_have_text("cash", timeout=LONGEST_MS)
    await expect(page.locator("#labels tbody tr")).to_have_count(3)
    await expect(page.locator("#cost")).to_have_text("US$0.000000")  # 2 at 0.10 USD a million


async def test_a_failure_is_told_in_the_language_of_the_page(
    chromium: Browser,
    world: World,
    acme: UUID,
    lived_in: str,
) -> None:
    async with world.database.begin() as connection:
        await connection.execute(text("UPDATE org_budgets SET spend_cap = 0 WHERE org_id = :id"), {"id": acme})
    page = await opened(chromium, world, lived_in, "zh")
    await page.locator("#run").click()
    problem = page.locator("#problem")
    await expect(problem).to_contain_text("等待无济于事", timeout=LONGEST_MS)
    await expect(problem).to_contain_text("spend cap")
    page = await opened(chromium, world, lived_in)
    await page.locator("#run").click()
    await expect(page.locator("#problem")).to_contain_text("spend cap", timeout=LONGEST_MS)
    await expect(page.locator("#problem")).not_to_contain_text("等待")
