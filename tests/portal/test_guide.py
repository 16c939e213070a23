"""The guide: one's own key in the examples, and no error or rule left unexplained."""

import ast
import inspect
from pathlib import Path
from uuid import UUID

import httpx
import openai
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
OF_NO_CALLER = {"org_not_found"}
"""Whoever calls has an organisation."""
KINDS = {name: kind for name, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, AppError)}


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


async def test_a_key_that_cannot_send_the_examples_is_not_in_them(world: World, acme: UUID, owner: Browser) -> None:
    key = await make_key(world.database, world.settings, acme, scopes=("usage",))
    page = await owner.page("/guide")
    assert key[-4:] not in page
    assert "Make a key" in page


async def test_who_may_not_see_keys_sees_none(world: World, acme: UUID) -> None:
    key = await make_key(world.database, world.settings, acme)
    async with visiting(world, acme, "viewer") as viewer:
        assert key[-4:] not in await viewer.page("/guide")


async def test_keys_of_others_are_not_shown(world: World, owner: Browser) -> None:
    assert world.key[-4:] not in await owner.page("/guide")


def test_every_error_of_the_api_is_explained_and_no_other() -> None:
    explained = {one.code for one in guide.ERRORS}
    assert {kind.default_code for kind in KINDS.values()} - OF_THE_PORTAL | codes_of_the_api() == explained
    defaults = {(kind.default_status, kind.default_code) for kind in KINDS.values()}
    assert {one for one in defaults if one[1] not in OF_THE_PORTAL} <= {(one.status, one.code) for one in guide.ERRORS}


def codes_of_the_api() -> set[str]:
    """The codes that are named where an error is made that a caller of /v1 can meet."""
    app = Path(errors.__file__).parent
    files = [file for file in (app / "api").glob("*.py") if file.stem not in {"playground", "webhooks"}]
    found = set()
    for file in (*files, *(app / f"{name}.py" for name in ("admission", "auth", "idempotency", "keys"))):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in KINDS:
                codes = [word.value for word in node.keywords if word.arg == "code"]
                found |= {str(code.value) for code in codes if isinstance(code, ast.Constant)}
    return found - OF_NO_CALLER


@pytest.mark.parametrize("one", guide.ERRORS, ids=lambda one: f"{one.status}-{one.code}")
def test_what_the_official_client_sends_again_is_said(one: guide.Explained) -> None:
    kinds = [kind for kind in KINDS.values() if kind.default_status == one.status]
    exact = [kind for kind in kinds if kind.default_code == one.code]
    headers = (exact or kinds)[0]("Something.").headers if kinds else {}
    client = openai.OpenAI(api_key="none")
    answer = httpx.Response(one.status, headers=headers)
    assert client._should_retry(answer) == one.is_retried  # type: ignore[arg-type]


async def test_the_changelog_is_shown_without_its_markup(world: World) -> None:
    async with httpx.AsyncClient(base_url=world.url) as stranger:
        page = (await stranger.get("/guide/changes")).text
    assert "<h2>Unreleased</h2>" in page
    assert "<li>" in page
