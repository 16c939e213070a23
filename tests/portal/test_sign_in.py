"""Logging in and out: passwords, sessions, where a link leads."""

from dataclasses import replace

import httpx
import pytest
from sqlalchemy import delete, select

from app.accounts.sessions import SESSION_COOKIE
from app.portal.attempts import FROM_ONE_PLACE, ON_ONE_NAME
from app.portal.forms import FORM_COOKIE
from app.tables import AuditEntry, Membership, PortalSession
from tests.api.world import World, serving
from tests.factories import PASSWORD, make_org, make_user
from tests.portal.people import Person, browsing, session_of

EMAIL = "someone@acme.example"


@pytest.fixture(autouse=True)
async def acme(world: World) -> None:
    await make_user(world.database, await make_org(world.database), EMAIL)


async def test_a_login_is_in_the_audit_log(world: World, visitor: Person) -> None:
    visitor.headers["user-agent"] = "Netscape"
    await visitor.sign_in(EMAIL)
    async with world.database.begin() as connection:
        entry = (await connection.execute(select(AuditEntry))).one()
        session = (await connection.execute(select(PortalSession))).one()
    assert (entry.action, entry.actor) == ("session.open", entry.target)
    assert (str(entry.ip), str(session.ip), session.user_agent) == ("127.0.0.1", "127.0.0.1", "Netscape")


@pytest.mark.parametrize(
    ("said", "kept"), [("198.51.100.7", "198.51.100.7"), ("2001:db8::1", "2001:db8::1"), ("?", None)]
)
async def test_a_proxy_may_say_anything(world: World, visitor: Person, said: str, kept: str | None) -> None:
    visitor.headers["x-forwarded-for"] = said
    assert (await visitor.sign_in(EMAIL)).status_code == 303
    async with world.database.begin() as connection:
        found = (await connection.execute(select(PortalSession.ip))).scalar_one()
    assert (None if found is None else str(found)) == kept


async def test_a_planted_session_is_worth_nothing(world: World, visitor: Person) -> None:
    async with browsing(world) as attacker:
        await make_user(world.database, await make_org(world.database, "Evil"), "evil@evil.example")
        await attacker.sign_in("evil@evil.example")
        planted = attacker.session
        assert planted is not None
        # Whoever is signed in is not shown the form; the attacker plants the cookie after that.
        token_page = (await visitor.get("/login")).text
        visitor.plant(SESSION_COOKIE, planted)
        answer = await visitor.post("/login", data={"token": _token(token_page), "email": EMAIL, "password": PASSWORD})
        assert answer.status_code == 303
        assert visitor.session not in {None, planted}
        assert not await attacker.is_signed_in()
    assert "Acme" in (await visitor.get("/overview")).text


async def test_a_guessed_token_is_not_adopted(world: World, visitor: Person) -> None:
    visitor.plant(SESSION_COOKIE, "chosen by somebody else")
    await visitor.sign_in(EMAIL)
    assert visitor.session != "chosen by somebody else"
    async with browsing(world) as attacker:
        attacker.plant(SESSION_COOKIE, "chosen by somebody else")
        assert not await attacker.is_signed_in()


def _token(page: str) -> str:
    return page.partition('name="token" value="')[2][:64]


@pytest.mark.parametrize("path", ["/keys", "/usage?group=key&day=2026-11-27", "/members", "/"])
async def test_a_login_leads_back_to_the_page_that_was_asked_for(visitor: Person, path: str) -> None:
    answer = await visitor.submit("/login", "/login", email=EMAIL, password=PASSWORD, next=path)
    assert answer.headers["location"] == path


ELSEWHERE = [
    "https://evil.example",
    "//evil.example",
    "/\\evil.example",
    "\\\\evil.example",
    "/\t/evil.example",
    "/\n/evil.example",
    " //evil.example",
    "javascript:alert(1)",
    "evil.example",
    "",
    "/\0",
]


@pytest.mark.parametrize("path", ELSEWHERE)
async def test_nobody_is_led_elsewhere(world: World, visitor: Person, path: str) -> None:
    page = await visitor.get("/login", params={"next": path})
    assert 'name="next" value="/overview"' in page.text
    answer = await visitor.submit("/login", "/login", email=EMAIL, password=PASSWORD, next=path)
    assert answer.headers["location"] == "/overview"
    again = await visitor.get("/login", params={"next": path})
    assert again.headers["location"] == "/overview"


async def test_whoever_belongs_nowhere_is_led_to_their_organisations(world: World, visitor: Person) -> None:
    await _leave_everything(world)
    await visitor.sign_in(EMAIL)
    assert await visitor.is_signed_in()
    assert (await visitor.get("/overview")).headers["location"].startswith("/login")
    assert (await visitor.get("/login")).headers["location"] == "/organizations"
    assert (await visitor.get("/organizations")).status_code == 200


async def _leave_everything(world: World) -> None:
    other = await make_user(world.database, await make_org(world.database, "Else"), "else@acme.example")
    async with world.database.begin() as connection:
        org_id = (await connection.execute(select(Membership.org_id).where(Membership.user_id != other))).scalar_one()
        row = {"org_id": org_id, "user_id": other, "role": "owner"}
        await connection.execute(Membership.__table__.insert().values(row))  # type: ignore[attr-defined]
        await connection.execute(delete(Membership).where(Membership.user_id != other))


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
async def test_nobody_is_signed_in_by_another_site_that_plants_a_form_and_its_cookie(
    world: World, visitor: Person, site: str
) -> None:
    async with browsing(world) as attacker:
        fields = {"token": _token((await attacker.get("/login")).text), "email": EMAIL, "password": PASSWORD}
        visitor.plant(FORM_COOKIE, attacker.cookies[FORM_COOKIE])
    assert (await visitor.post("/login", data=fields, headers={"sec-fetch-site": site})).status_code == 403
    assert not await visitor.is_signed_in()
    assert (await visitor.post("/login", data=fields, headers={"sec-fetch-site": "same-origin"})).status_code == 303


async def test_logging_out_needs_the_form_of_the_page(world: World, visitor: Person) -> None:
    await visitor.sign_in(EMAIL)
    for token in ("", "0" * 64):
        await visitor.post("/logout", data={"token": token})
        assert await visitor.is_signed_in()
    stolen = visitor.session
    assert (await visitor.submit("/security", "/logout")).headers["location"] == "/"
    assert not await visitor.is_signed_in()
    async with browsing(world) as thief:
        thief.plant(SESSION_COOKIE, stolen or "")
        assert not await thief.is_signed_in()


async def test_a_visitor_cannot_log_out(visitor: Person) -> None:
    await visitor.get("/login")
    token = _token((await visitor.get("/login")).text)
    assert (await visitor.post("/logout", data={"token": token})).headers["location"] == "/overview"


async def test_the_form_of_one_person_is_of_no_use_to_another(world: World, visitor: Person) -> None:
    user_id = await make_user(world.database, await make_org(world.database, "Evil"), "evil@evil.example")
    await visitor.sign_in(EMAIL)
    async with browsing(world) as attacker:
        attacker.plant(SESSION_COOKIE, await session_of(world, user_id))
        token = _token((await attacker.get("/security")).text)
    answer = await visitor.post("/security/sessions/end-all", data={"token": token})
    assert answer.status_code == 403
    assert await visitor.is_signed_in()


async def guess(browser: Person, place: str, password: str = "wrong password") -> int:
    """One try from somewhere; its status."""
    browser.headers["x-forwarded-for"] = place
    return (await browser.sign_in(EMAIL, password)).status_code


@pytest.fixture
def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few attempts, as each costs time."""
    assert (FROM_ONE_PLACE.num, ON_ONE_NAME.num) == (10, 30)
    monkeypatch.setattr("app.portal.attempts.FROM_ONE_PLACE", replace(FROM_ONE_PLACE, num=2))
    monkeypatch.setattr("app.portal.attempts.ON_ONE_NAME", replace(ON_ONE_NAME, num=4))


@pytest.mark.usefixtures("strict")
async def test_guesses_from_one_place_are_limited(visitor: Person) -> None:
    assert [await guess(visitor, "198.51.100.7") for _ in range(3)] == [401, 401, 429]
    # Nobody locks the owner out from a single machine.
    assert await guess(visitor, "198.51.100.8", PASSWORD) == 303


@pytest.mark.usefixtures("strict")
async def test_a_network_of_the_sixth_version_is_one_place(visitor: Person) -> None:
    assert [await guess(visitor, f"2001:db8::{number:x}") for number in range(3)] == [401, 401, 429]
    assert await guess(visitor, "::ffff:198.51.100.7") == 401


@pytest.mark.usefixtures("strict")
async def test_guesses_at_one_address_are_counted_wherever_they_come_from(visitor: Person) -> None:
    for number in range(4):
        assert await guess(visitor, f"198.51.100.{number // 2}") == 401
    assert await guess(visitor, "198.51.100.7", PASSWORD) == 429
    assert (await visitor.sign_in("other@acme.example")).status_code == 401


@pytest.mark.usefixtures("strict")
async def test_who_knows_the_password_is_not_counted(visitor: Person) -> None:
    for _ in range(5):
        assert (await visitor.sign_in(EMAIL)).status_code == 303
        visitor.cookies.clear()


@pytest.mark.usefixtures("strict")
async def test_another_process_counts_on(world: World, visitor: Person) -> None:
    for _ in range(2):
        assert await guess(visitor, "198.51.100.7") == 401
    async with serving(world.settings, world.database) as other, browsing(other) as browser:
        assert await guess(browser, "198.51.100.7", PASSWORD) == 429


async def test_cookies_are_out_of_reach(world: World, visitor: Person) -> None:
    answers = [await visitor.get("/login"), await visitor.sign_in(EMAIL)]
    cookies = [cookie for answer in answers for cookie in answer.headers.get_list("set-cookie")]
    set_ones = [cookie for cookie in cookies if "Max-Age=0" not in cookie]
    assert {cookie.partition("=")[0] for cookie in set_ones} == {FORM_COOKIE, SESSION_COOKIE}
    assert all("HttpOnly" in cookie and "SameSite=lax" in cookie and "Path=/" in cookie for cookie in set_ones)


async def test_pages_are_kept_by_nobody(visitor: Person) -> None:
    await visitor.sign_in(EMAIL)
    for path in ("/security", "/organizations", "/members", "/audit"):
        page: httpx.Response = await visitor.get(path)
        assert page.headers["cache-control"] == "no-store"
        assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
        assert "unsafe" not in page.headers["content-security-policy"]
