"""Cookies, with and without TLS."""

from collections.abc import AsyncIterator
from uuid import UUID

import httpx
import pytest

from app.accounts.sessions import SESSION_COOKIE
from tests.api.world import World, serving
from tests.factories import PASSWORD, make_user
from tests.portal.people import session_of
from tests.portal.visiting import token_in

EMAIL = "someone@acme.example"


@pytest.fixture
async def production(world: World) -> AsyncIterator[World]:
    """The same installation, reached by TLS."""
    async with serving(world.settings, world.database, env="production") as running:
        yield running


def cookies_of(answer: httpx.Response) -> dict[str, str]:
    """Name and the rest of each."""
    parts = [cookie.partition("=") for cookie in answer.headers.get_list("set-cookie")]
    return {name: rest for name, _, rest in parts}


async def test_in_production_no_other_host_can_plant_a_cookie(world: World, acme: UUID, production: World) -> None:
    await make_user(world.database, acme, EMAIL)
    page = await production.http.get("/login")
    form = cookies_of(page)["__Host-tollgate_form"]
    for flag in ("Secure", "HttpOnly", "SameSite=lax", "Path=/"):
        assert flag in form
    assert "Domain" not in form
    fields = {"token": token_in(page.text), "email": EMAIL, "password": PASSWORD}
    value = form.partition(";")[0]
    planted = {"cookie": f"tollgate_form={value}"}
    assert (await production.http.post("/login", data=fields, headers=planted)).status_code == 403
    own = {"cookie": f"other=1; __Host-tollgate_form={value}"}
    answer = await production.http.post("/login", data=fields, headers=own)
    assert answer.status_code == 303
    given = cookies_of(answer)
    assert "Secure" in given["__Host-tollgate_session"]
    assert "Max-Age=0" in given["__Host-tollgate_form"]
    assert "Secure" in given["__Host-tollgate_form"]
    session = given["__Host-tollgate_session"].partition(";")[0]
    for name, status in (("__Host-tollgate_session", 200), ("tollgate_session", 303)):
        answer = await production.http.get("/security", headers={"cookie": f"{name}={session}"})
        assert answer.status_code == status


async def test_behind_a_proxy_with_tls_cookies_are_for_tls(world: World) -> None:
    answer = await world.http.get("/login", headers={"x-forwarded-proto": "https"})
    assert "Secure" in cookies_of(answer)["tollgate_form"]
    answer = await world.http.get("/login")
    assert "Secure" not in cookies_of(answer)["tollgate_form"]


async def test_cookies_of_others_pass(world: World, acme: UUID, production: World) -> None:
    session = await session_of(world, await make_user(world.database, acme, EMAIL))
    headers = {"cookie": f"a=b;__Host-{SESSION_COOKIE}={session};c"}
    assert (await production.http.get("/security", headers=headers)).status_code == 200
