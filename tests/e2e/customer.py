"""Somebody at a browser, and in front of a mailbox, who keeps pictures of everything they see."""

import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email import message_from_bytes, policy
from itertools import count
from pathlib import Path

from playwright.async_api import Browser, Locator, Page, expect

from tests.fakes import until
from tests.installation import Installation
from tests.portal.test_browser import PICTURES, Watch, faults_of, take_picture

WIDTHS = (375, 768, 1440)
LONGEST_MS = 60_000
"""Until a page shows what was done elsewhere; a slow machine needs some of it."""
PASSWORD = "correct horse battery"


class Customer:
    """A person with a browser of their own.

    Args:
        page: Of the browser, at the portal.
        mail_dir: Where the installation writes its mails.
        email: Their address.
        name: Of the folder of their pictures.

    Attributes:
        problems: What the browser complained of, and what a designer would mend of the pages.
    """

    def __init__(self, page: Page, mail_dir: Path, email: str, name: str) -> None:
        self.page = page
        self.email = email
        self._mail_dir = mail_dir
        self._folder = PICTURES / name
        # Steps change: pictures of an older way would mislead.
        shutil.rmtree(self._folder, ignore_errors=True)
        self._numbers = count(1)
        self._watch = Watch(page)
        self._faults: list[str] = []

    @property
    def problems(self) -> list[str]:
        """What the browser complained of, and what was too wide, too low to press or broken within a word."""
        return self._watch.complaints + self._faults

    async def see(self, name: str) -> None:
        """Takes a picture at each width."""
        number = next(self._numbers)
        for width in WIDTHS:
            await self.page.set_viewport_size({"width": width, "height": 900})
            await take_picture(self.page, self._folder / str(width) / f"{number:02}-{name}.png")
            self._faults += await faults_of(self.page, name, width)

    async def press(self, name: str) -> None:
        """A button of the page's content."""
        await self.main.get_by_role("button", name=name, exact=True).click()

    async def follow(self, name: str) -> None:
        """A line of the menu."""
        await self.page.get_by_role("navigation").get_by_role("link", name=name, exact=True).first.click()

    async def reload_until(self, locator: Locator) -> None:
        """Looks again and again until the page shows it."""

        async def is_shown() -> bool:
            await self.page.reload()
            return bool(await locator.count())

        await until(is_shown)

    async def opens_mail(self, subject: str) -> None:
        """Follows the link in the newest mail of this subject, which leaves after the answer."""
        found: list[str] = []

        async def is_there() -> bool:
            for file in sorted(self._mail_dir.glob("*.eml")):
                mail = message_from_bytes(file.read_bytes(), policy=policy.default)
                if mail["to"] == self.email and subject in mail["subject"]:
                    found.append(mail.get_content())
            return bool(found)

        await until(is_there)
        link = re.search(r"https?://\S+", found[-1])
        assert link is not None
        await self.page.goto(link[0])

    async def reads(self, title: str) -> None:
        """Passes once the page has this heading."""
        await expect(self.main.get_by_role("heading", level=1, name=title, exact=True)).to_be_visible(
            timeout=LONGEST_MS
        )

    @property
    def main(self) -> Locator:
        """The page's content, without menu and footer."""
        return self.page.locator("#main")


@asynccontextmanager
async def at_a_browser(chromium: Browser, installation: Installation, email: str, name: str) -> AsyncIterator[Customer]:
    """Somebody whom the portal does not know yet."""
    context = await chromium.new_context(
        base_url=installation.url.removesuffix("/v1"),
        viewport={"width": WIDTHS[-1], "height": 900},
        locale="en-US",
        reduced_motion="reduce",
    )
    context.set_default_timeout(LONGEST_MS)
    yield Customer(await context.new_page(), installation.data_dir / "mail", email, name)
    await context.close()
