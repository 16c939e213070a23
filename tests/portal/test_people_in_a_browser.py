"""A person's way in a real browser, from the first page to the second factor; pictures beside those of the pages."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pyotp
import pytest
from playwright.async_api import Browser, Page

from tests.api.world import World
from tests.factories import PASSWORD, make_user
from tests.portal.people import link_in, mail_to
from tests.portal.test_browser import PICTURES, Watch, chromium, context_of, take_picture, violations_of

__all__ = ["chromium"]

pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]

EMAIL = "ada.lovelace@customer.example"


class Witness:
    """Looks at each page that somebody comes to."""

    def __init__(self, page: Page, folder: str) -> None:
        self._page = page
        self._folder = folder
        self.problems: list[str] = []

    async def see(self, name: str) -> None:
        """Takes a picture, and notes what keeps somebody out."""
        await take_picture(self._page, PICTURES / self._folder / f"way-{name}.png")
        self.problems += [f"{name}: {problem}" for problem in await violations_of(self._page)]
        if await self._page.evaluate("document.documentElement.scrollWidth > innerWidth"):
            self.problems.append(f"{name} is too wide")


@pytest.mark.parametrize(("width", "theme"), [(375, "dark"), (1440, "light")])
async def test_from_sign_up_to_the_second_factor(
    chromium: Browser,
    world: World,
    width: int,
    theme: str,
) -> None:
    context = await context_of(chromium, world, None, width=width, theme=theme)
    page = await context.new_page()
    watch, witness = Watch(page), Witness(page, f"{width}-{theme}-en")
    await sign_up(world, page, witness)
    await page.get_by_role("link", name=EMAIL).click() if width > 1000 else await page.goto("/security")
    await page.locator("#f-factor_password").fill(PASSWORD)
    await page.get_by_role("button", name="Set up an authenticator").click()
    await witness.see("second-factor")
    authenticator = pyotp.TOTP(await page.locator("main code").inner_text())
    await page.get_by_label("Code").fill(authenticator.at(datetime.now(UTC) - timedelta(seconds=30)))
    await page.get_by_role("button", name="Turn the second factor on").click()
    await witness.see("recovery-codes")
    await page.get_by_role("link", name="I have kept them").click()
    await page.get_by_text("New recovery codes", exact=True).click()
    await witness.see("security")
    await page.get_by_text("Sign out everywhere …").click()
    await page.get_by_role("button", name="Sign out everywhere", exact=True).click()
    await witness.see("signed-out")
    await page.get_by_label("E-mail").fill(EMAIL)
    await page.get_by_label("Password").fill(PASSWORD)
    await page.get_by_role("button", name="Sign in").click()
    await witness.see("code")
    await page.get_by_label("Code").fill(authenticator.now())
    await page.get_by_role("button", name="Sign in").click()
    await page.wait_for_url("**/overview")
    assert witness.problems == []
    assert watch.complaints == []
    await context.close()


async def sign_up(world: World, page: Page, witness: Witness) -> None:
    await page.goto("/signup")
    await page.get_by_label("E-mail").fill(EMAIL)
    await page.get_by_label("Password").fill(PASSWORD)
    await page.get_by_label("Organisation").fill("Analytical Engines")
    await page.get_by_role("button", name="Make an account").click()
    await page.get_by_text("A mail is on its way").wait_for()
    await witness.see("signup-sent")
    await page.goto(link_in(await mail_to(world, EMAIL)))
    await witness.see("confirm")
    await page.get_by_role("button", name="Confirm and sign in").click()
    await page.wait_for_url("**/overview")


@pytest.mark.parametrize(("width", "theme", "code"), [(375, "light", "zh"), (1440, "dark", "en")])
async def test_members_are_invited_and_the_log_tells(
    chromium: Browser,
    world: World,
    acme: UUID,
    width: int,
    theme: str,
    code: str,
) -> None:
    for role in ("owner", "admin", "billing", "developer", "viewer"):
        await make_user(world.database, acme, f"{role}@acme.example", role)
    context = await context_of(chromium, world, None, width=width, theme=theme, code=code)
    page = await context.new_page()
    watch, witness = Watch(page), Witness(page, f"{width}-{theme}-{code}")
    await page.goto("/login?next=/members")
    await page.locator("#f-email").fill("owner@acme.example")
    await page.locator("#f-password").fill(PASSWORD)
    await page.locator("main button[type=submit]").click()
    for email in ("grace.hopper@customer.example", EMAIL):
        await page.locator("#f-email").fill(email)
        await page.locator("form:has(#f-email) button[type=submit]").click()
        await page.locator(".notice.good").wait_for()
    await page.locator("details.confirm summary").first.click()
    await witness.see("members")
    await page.locator("select[id^=role]").nth(4).select_option("developer")
    await page.locator("td form:has(select) button").nth(4).click()
    await page.goto("/audit")
    await witness.see("audit")
    await page.goto("/organizations")
    await witness.see("organizations")
    await context.clear_cookies()
    await page.goto(link_in(await mail_to(world, EMAIL)))
    await witness.see("invitation")
    assert witness.problems == []
    assert watch.complaints == []
    await context.close()
