"""The portal from outside and through its login, as a browser without JavaScript sees it."""

import re
from collections.abc import AsyncIterator

import httpx
import pytest
from jinja2 import UndefinedError

from app.accounts.sessions import SESSION_COOKIE
from app.portal.i18n import LANGUAGES
from app.portal.page import templates
from tests.api.conftest import world  # noqa: F401 - the fixture
from tests.api.world import World
from tests.factories import PASSWORD, make_key, make_org, make_user

EMAIL = "someone@acme.example"


@pytest.fixture
async def browser(world: World) -> AsyncIterator[httpx.AsyncClient]:  # noqa: F811
    """A browser with cookies, at an installation where Acme has a login, a key and some usage."""
    org_id = await make_org(world.database)
    await make_user(world.database, org_id, EMAIL)
    key = await make_key(world.database, world.settings, org_id, name="laptop")
    await world.post("/v1/completions", {"model": "bytes", "prompt": "abc"}, key)
    async with httpx.AsyncClient(base_url=world.url) as client:
        yield client


def token_in(page: str) -> str:
    found = re.search(r'name="token" value="([0-9a-f]{64})"', page)
    assert found is not None
    return found[1]


async def sign_in(browser: httpx.AsyncClient, password: str = PASSWORD, email: str = EMAIL) -> httpx.Response:
    token = token_in((await browser.get("/login")).text)
    return await browser.post("/login", data={"token": token, "email": email, "password": password})


async def test_the_landing_page_names_the_models(browser: httpx.AsyncClient) -> None:
    page = (await browser.get("/")).text
    assert "bytes" in page
    assert "labels" in page
    assert 'href="/docs"' in page


async def test_a_login_leads_to_usage_cost_and_keys(browser: httpx.AsyncClient) -> None:
    answer = await sign_in(browser, email=f" {EMAIL.upper()}")
    assert (answer.status_code, answer.headers["location"]) == (303, "/overview")
    page = (await browser.get("/overview")).text
    assert "Acme" in page
    assert "<code>bytes</code>" in page
    assert "$0.000003" in page  # 3 tokens in at 0.15 and 5 out at 0.60 USD a million: 0.00000345
    keys = (await browser.get("/keys")).text
    assert re.search(r"tg_live_…\w{4}", keys)
    assert "laptop" in keys
    assert (await browser.get("/login")).headers["location"] == "/overview"


async def test_another_organisation_sees_only_its_own(world: World, browser: httpx.AsyncClient) -> None:  # noqa: F811
    other = await make_org(world.database, "Globex")
    await make_user(world.database, other, "else@globex.example")
    await sign_in(browser, email="else@globex.example")
    page = (await browser.get("/overview")).text
    assert "Globex" in page
    assert "Acme" not in page
    assert "<code>bytes</code>" not in page
    assert "laptop" not in (await browser.get("/keys")).text


async def test_the_session_cookie_is_out_of_reach_of_scripts_and_other_sites(browser: httpx.AsyncClient) -> None:
    cookies = (await sign_in(browser)).headers.get_list("set-cookie")
    session = next(cookie for cookie in cookies if cookie.startswith(SESSION_COOKIE))
    assert "HttpOnly" in session
    assert "SameSite=lax" in session


async def test_a_stranger_is_sent_to_the_login(browser: httpx.AsyncClient) -> None:
    assert (await browser.get("/overview")).headers["location"] == "/login"
    browser.cookies.set(SESSION_COOKIE, "guess")
    assert (await browser.get("/overview")).headers["location"] == "/login"


@pytest.mark.parametrize(("email", "password"), [(EMAIL, "wrong password"), ("nobody@acme.example", PASSWORD)])
async def test_a_wrong_password_and_an_unknown_address_look_the_same(
    browser: httpx.AsyncClient, email: str, password: str
) -> None:
    answer = await sign_in(browser, password, email)
    assert answer.status_code == 401
    assert "The e-mail address or the password is wrong." in answer.text
    assert password not in answer.text
    assert (await browser.get("/overview")).headers["location"] == "/login"


@pytest.mark.parametrize("email", ["\0", "a\0@acme.example", "\ud7ff", "a" * 100_000])
async def test_nonsense_is_a_wrong_login(browser: httpx.AsyncClient, email: str) -> None:
    assert (await sign_in(browser, "wrong\0password", email)).status_code == 401


@pytest.mark.parametrize("token", [None, "", "0" * 64, "é"])
async def test_a_form_of_another_site_does_not_log_in(browser: httpx.AsyncClient, token: str | None) -> None:
    await browser.get("/login")
    data = {"email": EMAIL, "password": PASSWORD} | ({} if token is None else {"token": token})
    assert (await browser.post("/login", data=data)).status_code == 403


async def test_a_form_without_its_cookie_does_not_log_in(browser: httpx.AsyncClient) -> None:
    token = token_in((await browser.get("/login")).text)
    browser.cookies.clear()
    answer = await browser.post("/login", data={"token": token, "email": EMAIL, "password": PASSWORD})
    assert answer.status_code == 403


async def test_guessing_is_stopped(browser: httpx.AsyncClient) -> None:
    for _ in range(10):
        assert (await sign_in(browser, "wrong password")).status_code == 401
    assert (await sign_in(browser)).status_code == 429


async def test_signing_out_ends_the_session_on_the_server(browser: httpx.AsyncClient) -> None:
    await sign_in(browser)
    stolen = browser.cookies[SESSION_COOKIE]
    token = token_in((await browser.get("/overview")).text)
    assert (await browser.post("/logout", data={"token": token})).headers["location"] == "/"
    browser.cookies.set(SESSION_COOKIE, stolen)
    assert (await browser.get("/overview")).headers["location"] == "/login"


async def test_another_site_cannot_sign_out(browser: httpx.AsyncClient) -> None:
    await sign_in(browser)
    await browser.post("/logout", data={"token": "0" * 64})
    assert (await browser.get("/overview")).status_code == 200


async def test_what_customers_enter_is_escaped(world: World, browser: httpx.AsyncClient) -> None:  # noqa: F811
    answer = await sign_in(browser, email='"><b>@x.example')
    assert "<b>" not in answer.text


def test_a_name_that_nobody_gives_a_template_is_a_fault() -> None:
    template = templates(LANGUAGES["en"]).from_string("{{ nobody }}")
    with pytest.raises(UndefinedError):
        template.render()


async def test_a_fault_of_ours_is_a_page_to_a_person(
    world: World,  # noqa: F811
    browser: httpx.AsyncClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("secret detail")

    await sign_in(browser)
    monkeypatch.setattr("app.portal.overview.sums_of", broken)
    person = {"accept": "text/html", "accept-language": "zh"}
    answer = await browser.get("/overview", headers=person)
    assert answer.status_code == 500
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "目前无法使用" in answer.text
    assert answer.headers["x-request-id"] in answer.text
    assert "secret detail" not in answer.text
    assert (await browser.get("/overview")).json()["error"]["code"] == "internal_error"


async def test_a_form_that_cannot_be_read_is_refused_in_words(browser: httpx.AsyncClient) -> None:
    headers = {"accept": "text/html", "content-type": "multipart/form-data; boundary=x"}
    answer = await browser.post("/login", content=b"nonsense", headers=headers)
    assert answer.status_code == 400
    assert "The form could not be read." in answer.text
