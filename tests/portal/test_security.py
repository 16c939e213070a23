"""A person's own password, sessions and second factor, at the pages."""

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import httpx
import pyotp
import pytest
from sqlalchemy import select

from app.accounts.second_factor import MAX_FAILURES
from app.accounts.sessions import SESSION_COOKIE
from app.portal.attempts import FROM_ONE_PLACE
from app.portal.sign_in import CODE_COOKIE
from app.tables import AuditEntry, PortalSession
from tests.api.world import World
from tests.factories import PASSWORD, make_org, make_user
from tests.portal.people import Person, browsing, mail_to, mails, member, session_of

EMAIL = "owner@acme.example"
NEW = "another long password"


@pytest.fixture
async def org_id(world: World) -> UUID:
    return await make_org(world.database)


async def actions(world: World) -> list[str]:
    async with world.database.begin() as connection:
        return [*(await connection.execute(select(AuditEntry.action).order_by(AuditEntry.id))).scalars()]


async def set_up(person: Person) -> tuple[pyotp.TOTP, list[str]]:
    """Turns the second factor on; the code of 30 s ago is used up, so that the present one is free."""
    answer = await person.submit("/security", "/security/second-factor", password=PASSWORD)
    assert answer.headers["location"] == "/security/second-factor"
    page = (await person.get("/security/second-factor")).text
    found = re.search(r"<code[^>]*>([A-Z2-7]{32})</code>", page)
    assert found is not None
    authenticator = pyotp.TOTP(found[1])

    async def confirm() -> httpx.Response:
        code = authenticator.at(datetime.now(UTC) - timedelta(seconds=30))
        return await person.submit("/security/second-factor", "/security/second-factor/confirm", code=code)

    answer = await confirm()
    if answer.status_code == 403:  # a step passed meanwhile, and the code was too old
        answer = await confirm()
    assert answer.status_code == 200
    return authenticator, re.findall(r"[a-z2-7]{4}(?:-[a-z2-7]{4}){3}", answer.text)


async def test_a_password_is_changed_by_who_knows_it(world: World, org_id: UUID) -> None:
    async with member(world, org_id) as person, browsing(world) as elsewhere:
        await elsewhere.sign_in(EMAIL)
        answer = await person.submit("/security", "/security/password", current=PASSWORD, password=NEW)
        assert answer.headers["location"] == "/security?done=password"
        assert await person.is_signed_in()
        assert not await elsewhere.is_signed_in()
        assert (await elsewhere.sign_in(EMAIL)).status_code == 401
        assert (await elsewhere.sign_in(EMAIL, NEW)).status_code == 303
        assert "password was changed" in (await mail_to(world, EMAIL))["subject"]
    assert "password.change" in await actions(world)


@pytest.mark.parametrize(
    ("current", "new", "problem"),
    [("wrong", NEW, "The password is wrong."), (PASSWORD, "short", "A password has 10 to 200 characters.")],
)
async def test_a_password_is_not_changed_otherwise(
    world: World, org_id: UUID, current: str, new: str, problem: str
) -> None:
    async with member(world, org_id) as person:
        answer = await person.submit("/security", "/security/password", current=current, password=new)
        assert answer.status_code in {400, 403}
        assert problem in answer.text
        assert await person.is_signed_in()
        assert (await person.submit("/security", "/security/password", current=PASSWORD, password=NEW)).is_redirect


async def test_guessing_the_password_from_an_open_session_is_stopped(world: World, org_id: UUID) -> None:
    async with member(world, org_id) as person:
        for _ in range(10):
            assert (
                await person.submit("/security", "/security/password", current="?", password=NEW)
            ).status_code == 403
        right = await person.submit("/security", "/security/password", current=PASSWORD, password=NEW)
        assert right.status_code == 429


async def test_one_session_is_ended(world: World, org_id: UUID) -> None:
    async with member(world, org_id) as person, browsing(world) as elsewhere:
        elsewhere.headers["user-agent"] = "Netscape"
        await elsewhere.sign_in(EMAIL)
        page = (await person.get("/security")).text
        assert "Netscape" in page
        other = await other_session(world, person)
        answer = await person.submit("/security", "/security/sessions/end", session=str(other))
        assert answer.headers["location"] == "/security?done=ended"
        assert not await elsewhere.is_signed_in()
        assert await person.is_signed_in()
        assert (await person.submit("/security", "/security/sessions/end", session=str(other))).status_code == 404
        assert (await person.submit("/security", "/security/sessions/end", session="nonsense")).status_code == 404


async def other_session(world: World, person: Person) -> UUID:
    async with world.database.begin() as connection:
        newest = select(PortalSession.id).order_by(PortalSession.created_at.desc()).limit(1)
        found: UUID = (await connection.execute(newest)).scalar_one()
        return found


async def test_nobody_ends_a_session_of_others(world: World, org_id: UUID) -> None:
    async with member(world, org_id) as victim, member(world, org_id, "admin") as attacker:
        async with world.database.begin() as connection:
            victims = select(PortalSession.id).order_by(PortalSession.created_at).limit(1)
            id = (await connection.execute(victims)).scalar_one()
        answer = await attacker.submit("/security", "/security/sessions/end", session=str(id))
        assert answer.status_code == 404
        assert await victim.is_signed_in()


async def test_signing_out_everywhere_ends_every_session(world: World, org_id: UUID) -> None:
    async with member(world, org_id) as person, browsing(world) as elsewhere, member(world, org_id, "admin") as other:
        await elsewhere.sign_in(EMAIL)
        answer = await person.submit("/security", "/security/sessions/end-all")
        assert answer.headers["location"] == "/login?done=everywhere"
        assert not await person.is_signed_in()
        assert not await elsewhere.is_signed_in()
        assert await other.is_signed_in()
        assert "signed out everywhere" in (await person.get("/login?done=everywhere")).text
    assert "session.end_all" in await actions(world)


async def test_with_a_second_factor_the_password_is_not_enough(world: World, org_id: UUID) -> None:
    async with member(world, org_id) as person, browsing(world) as browser:
        authenticator, _ = await set_up(person)
        answer = await browser.submit("/login", "/login", email=EMAIL, password=PASSWORD, next="/keys")
        assert answer.headers["location"] == "/login/code?next=%2Fkeys"
        assert browser.session is None
        assert not await browser.is_signed_in()
        async with browsing(world) as thief:  # the pending login is not a session
            thief.plant(SESSION_COOKIE, browser.cookies[CODE_COOKIE])
            assert not await thief.is_signed_in()
        code = authenticator.now()
        wrong = f"{(int(code) + 1) % 10**6:06}"
        page = "/login/code?next=%2Fkeys"
        assert (await browser.submit(page, "/login/code", code=wrong, next="/keys")).status_code == 401
        answer = await browser.submit(page, "/login/code", code=code, next="/keys")
        assert (answer.status_code, answer.headers["location"]) == (303, "/keys")
        assert await browser.is_signed_in()
        assert CODE_COOKIE not in browser.cookies
        async with browsing(world) as other:
            await other.sign_in(EMAIL)
            assert (await other.submit("/login/code", "/login/code", code=code)).status_code == 401


async def test_a_recovery_code_signs_in_once(world: World, org_id: UUID) -> None:
    async with member(world, org_id) as person:
        _, codes = await set_up(person)
    assert len(codes) == 10
    for expected in (303, 401):
        async with browsing(world) as browser:
            await browser.sign_in(EMAIL)
            assert (await browser.submit("/login/code", "/login/code", code=codes[0])).status_code == expected


async def test_who_enters_the_right_code_is_not_counted(
    world: World, org_id: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with member(world, org_id) as person:
        _, codes = await set_up(person)
    monkeypatch.setattr("app.portal.attempts.FROM_ONE_PLACE", replace(FROM_ONE_PLACE, num=2))
    for code in codes[:2]:
        async with browsing(world) as browser:
            await browser.sign_in(EMAIL)
            assert (await browser.submit("/login/code", "/login/code", code=code)).status_code == 303


async def test_the_second_step_needs_the_first(world: World, org_id: UUID, visitor: Person) -> None:
    assert (await visitor.get("/login/code")).headers["location"] == "/login"
    answer = await visitor.submit("/login", "/login/code", code="123456")
    assert answer.headers["location"] == "/login"
    visitor.plant(CODE_COOKIE, "a guess")
    assert (await visitor.get("/login/code")).headers["location"] == "/login"


async def test_the_second_step_leads_nowhere_else(world: World, org_id: UUID) -> None:
    async with member(world, org_id) as person:
        _, codes = await set_up(person)
    async with browsing(world) as browser:
        await browser.sign_in(EMAIL)
        fields = {"code": codes[0], "next": "//evil.example"}
        answer = await browser.submit("/login/code?next=//evil.example", "/login/code", **fields)
        assert answer.headers["location"] == "/overview"


async def test_guessing_codes_is_stopped(world: World, org_id: UUID) -> None:
    async with member(world, org_id) as person:
        authenticator, _ = await set_up(person)
    async with browsing(world) as browser:
        await browser.sign_in(EMAIL)
        for _ in range(MAX_FAILURES):
            assert (await browser.submit("/login/code", "/login/code", code="wrong")).status_code == 401
        assert (await browser.submit("/login/code", "/login/code", code=authenticator.now())).status_code == 401
        while (answer := await browser.submit("/login/code", "/login/code", code="wrong")).status_code == 401:
            pass
        assert answer.status_code == 429


async def test_setting_up_asks_for_the_password(world: World, org_id: UUID) -> None:
    async with member(world, org_id) as person:
        answer = await person.submit("/security", "/security/second-factor", password="wrong")
        assert answer.status_code == 403
        assert (await person.get("/security/second-factor")).headers["location"] == "/security"


async def test_a_wrong_code_turns_nothing_on(world: World, org_id: UUID) -> None:
    async with member(world, org_id) as person:
        await person.submit("/security", "/security/second-factor", password=PASSWORD)
        page, action = "/security/second-factor", "/security/second-factor/confirm"
        assert (await person.submit(page, action, code="000000x")).status_code == 403
        assert 'action="/security/second-factor"' in (await person.get("/security")).text
        assert await mails(world) == []


async def test_what_is_on_is_not_set_up_again(world: World, org_id: UUID) -> None:
    async with member(world, org_id) as person:
        await set_up(person)
        answer = await person.submit("/security", "/security/second-factor", password=PASSWORD)
        assert answer.status_code == 409
        answer = await person.submit("/security", "/security/second-factor/confirm", code="123456")
        assert answer.status_code == 409


async def test_turning_it_off_takes_both_factors(world: World, org_id: UUID) -> None:
    async with member(world, org_id) as person:
        authenticator, _ = await set_up(person)
        assert "turned on" in (await mail_to(world, EMAIL))["subject"]
        off = "/security/second-factor/off"
        assert (await person.submit("/security", off, password="?", code=authenticator.now())).status_code == 403
        assert (await person.submit("/security", off, password=PASSWORD, code="000000x")).status_code == 403
        answer = await person.submit("/security", off, password=PASSWORD, code=authenticator.now())
        assert answer.headers["location"] == "/security?done=factor-off"
        assert (await mail_to(world, EMAIL, "turned off"))["to"] == EMAIL
    async with browsing(world) as browser:
        assert (await browser.sign_in(EMAIL)).headers["location"] == "/overview"
    assert (await actions(world))[-3:] == ["second_factor.on", "second_factor.off", "session.open"]


async def test_new_recovery_codes_take_a_code(world: World, org_id: UUID) -> None:
    async with member(world, org_id) as person:
        authenticator, old = await set_up(person)
        renew = "/security/recovery-codes"
        assert (await person.submit("/security", renew, code="000000x")).status_code == 403
        answer = await person.submit("/security", renew, code=authenticator.now())
        new = re.findall(r"[a-z2-7]{4}(?:-[a-z2-7]{4}){3}", answer.text)
        assert len(new) == 10
        assert not {*old} & {*new}
        assert "10 recovery codes are left" in (await person.get("/security")).text


async def test_what_a_browser_says_of_itself_is_escaped(world: World, org_id: UUID) -> None:
    async with browsing(world) as browser:
        await make_user(world.database, org_id, EMAIL)
        browser.headers["user-agent"] = "<script>alert(1)</script>"
        await browser.sign_in(EMAIL)
        page = (await browser.get("/security")).text
        assert "<script>alert" not in page
        assert "&lt;script&gt;alert" in page


async def test_everybody_has_an_account_page(world: World, org_id: UUID) -> None:
    for role in ("owner", "admin", "billing", "developer", "viewer"):
        async with member(world, org_id, role, f"{role}@acme.example") as person:
            assert (await person.get("/security")).status_code == 200


async def test_a_session_opened_elsewhere_is_listed(world: World, org_id: UUID) -> None:
    user_id = await make_user(world.database, org_id, EMAIL)
    async with browsing(world) as browser:
        browser.plant(SESSION_COOKIE, await session_of(world, user_id))
        page = (await browser.get("/security")).text
        assert page.count("unknown") == 2  # neither browser nor address
        assert "This one" in page
