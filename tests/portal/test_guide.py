"""The guide: one's own key in the examples, and no error or rule left unexplained."""

import inspect
from uuid import UUID

import httpx
import pytest

from app import errors
from app.errors import AppError
from app.portal import guide
from tests.api.world import World
from tests.factories import make_key
from tests.portal.visiting import Browser, visiting

PAGES = ("/guide", "/guide/errors", "/guide/limits", "/guide/billing", "/guide/changes")
# Of the portal, where the page itself says what to do.
OF_THE_PORTAL = {"stripe_refused", "stripe_unavailable", "mail_unavailable"}


@pytest.mark.parametrize("path", PAGES)
async def test_everybody_may_read_it(world: World, path: str) -> None:
    async with httpx.AsyncClient(base_url=world.url) as stranger:
        answer = await stranger.get(path)
    assert answer.status_code == 200
    assert f'href="{path}" aria-current="page"' in answer.text


async def test_the_examples_have_the_visitors_own_key(world: World, acme: UUID, owner: Browser) -> None:
    assert "Make a key" in await owner.page("/guide")
    key = await make_key(world.database, world.settings, acme)
    page = await owner.page("/guide")
    assert f"tg_live_…{key[-4:]}" in page
    assert key not in page
    assert "bytes" in page
    assert "labels" in page


async def test_who_may_not_see_keys_sees_none(world: World, acme: UUID) -> None:
    key = await make_key(world.database, world.settings, acme)
    async with visiting(world, acme, "viewer") as viewer:
        assert key[-4:] not in await viewer.page("/guide")


async def test_keys_of_others_are_not_shown(world: World, owner: Browser) -> None:
    assert world.key[-4:] not in await owner.page("/guide")


def test_every_error_of_the_api_is_explained() -> None:
    explained = {(one.status, one.code) for one in guide.ERRORS}
    classes = [one for _, one in inspect.getmembers(errors, inspect.isclass) if issubclass(one, AppError)]
    raised = {(one.default_status, one.default_code) for one in classes}
    assert {one for one in raised if one[1] not in OF_THE_PORTAL} == explained


async def test_the_changelog_is_shown_without_its_markup(world: World) -> None:
    async with httpx.AsyncClient(base_url=world.url) as stranger:
        page = (await stranger.get("/guide/changes")).text
    assert "<h2>Unreleased</h2>" in page
    assert "<li>" in page
