"""A new password by mail."""

import pytest
from sqlalchemy import select

from app.accounts.sessions import SESSION_COOKIE
from app.tables import AuditEntry, PasswordReset
from tests.api.world import World
from tests.factories import PASSWORD, make_org, make_user
from tests.portal.people import Person, browsing, link_in, mail_to, mails, query_of

EMAIL = "someone@acme.example"
NEW = "another long password"


@pytest.fixture(autouse=True)
async def acme(world: World) -> None:
    await make_user(world.database, await make_org(world.database), EMAIL)


async def link_for(world: World, visitor: Person) -> str:
    await visitor.submit("/forgot", "/forgot", email=EMAIL)
    return link_in(await mail_to(world, EMAIL))


async def test_a_link_sets_a_new_password(world: World, visitor: Person) -> None:
    async with browsing(world) as elsewhere:
        await elsewhere.sign_in(EMAIL)
        link = await link_for(world, visitor)
        assert EMAIL in (await visitor.get(link)).text
        answer = await visitor.submit(link, "/reset", link=query_of(link), password=NEW)
        assert answer.headers["location"] == "/login?done=reset"
        assert "The password is set" in (await visitor.get("/login?done=reset")).text
        assert not await elsewhere.is_signed_in()
        assert not await visitor.is_signed_in()
        assert (await visitor.sign_in(EMAIL)).status_code == 401
        assert (await visitor.sign_in(EMAIL, NEW)).status_code == 303
    assert "password was changed" in (await mail_to(world, EMAIL, "was changed"))["subject"]
    async with world.database.begin() as connection:
        assert "password.reset" in (await connection.execute(select(AuditEntry.action))).scalars().all()


async def test_a_link_works_once(world: World, visitor: Person) -> None:
    link = await link_for(world, visitor)
    await visitor.submit(link, "/reset", link=query_of(link), password=NEW)
    assert (await visitor.get(link)).status_code == 404
    answer = await visitor.submit("/forgot", "/reset", link=query_of(link), password=PASSWORD)
    assert answer.status_code == 404
    assert (await visitor.sign_in(EMAIL, NEW)).status_code == 303


async def test_asking_tells_nobody_whether_an_address_has_a_login(world: World, visitor: Person) -> None:
    known = await visitor.submit("/forgot", "/forgot", email=EMAIL)
    unknown = await visitor.submit("/forgot", "/forgot", email="nobody@acme.example")
    assert (known.status_code, unknown.status_code) == (200, 200)
    assert known.text == unknown.text.replace("nobody@acme.example", EMAIL)
    await mail_to(world, EMAIL)
    assert [mail["to"] for mail in await mails(world)] == [EMAIL]


async def test_a_short_password_is_refused_and_the_link_goes_on_working(world: World, visitor: Person) -> None:
    link = await link_for(world, visitor)
    answer = await visitor.submit(link, "/reset", link=query_of(link), password="short")
    assert answer.status_code == 400
    assert "A password has 10 to 200 characters." in answer.text
    assert (await visitor.submit(link, "/reset", link=query_of(link), password=NEW)).status_code == 303


async def test_what_is_no_address_is_refused(visitor: Person) -> None:
    answer = await visitor.submit("/forgot", "/forgot", email='"><b>')
    assert answer.status_code == 400
    assert "This is not an e-mail address." in answer.text
    assert "<b>" not in answer.text


@pytest.mark.parametrize("path", ["/reset", "/reset?token=", "/reset?token=guess", "/reset?token=%00"])
async def test_a_guess_is_no_link(visitor: Person, path: str) -> None:
    assert (await visitor.get(path)).status_code == 404


async def test_forms_of_another_site_do_nothing(world: World, visitor: Person) -> None:
    link = await link_for(world, visitor)
    data = {"token": "0" * 64, "link": query_of(link), "password": NEW, "email": EMAIL}
    assert (await visitor.post("/forgot", data=data)).status_code == 403
    assert (await visitor.post("/reset", data=data)).status_code == 403
    assert (await visitor.sign_in(EMAIL)).status_code == 303


async def test_mails_to_an_address_are_limited(world: World, visitor: Person) -> None:
    for _ in range(5):
        assert (await visitor.submit("/forgot", "/forgot", email=EMAIL)).status_code == 200
    assert (await visitor.submit("/forgot", "/forgot", email=EMAIL.upper())).status_code == 429
    async with world.database.begin() as connection:
        assert len((await connection.execute(select(PasswordReset.id))).all()) <= 5


async def test_guesses_from_one_place_are_limited(visitor: Person) -> None:
    for _ in range(10):
        assert (await visitor.submit("/forgot", "/reset", link="guess", password=NEW)).status_code == 404
    assert (await visitor.submit("/forgot", "/reset", link="guess", password=NEW)).status_code == 429


async def test_a_mail_leads_to_the_portals_own_address_whatever_host_was_asked(world: World, visitor: Person) -> None:
    token = (await visitor.get("/forgot")).text.partition('name="token" value="')[2][:64]
    headers = {"host": "evil.example", "x-forwarded-host": "evil.example"}
    await visitor.post("/forgot", data={"token": token, "email": EMAIL}, headers=headers)
    assert world.settings.portal_url in (await mail_to(world, EMAIL)).get_content()
    assert "evil.example" not in (await mail_to(world, EMAIL)).get_content()


async def test_the_session_of_this_browser_ends_as_well(world: World, visitor: Person) -> None:
    await visitor.sign_in(EMAIL)
    async with browsing(world) as other:
        link = await link_for(world, other)
        visitor_token = visitor.session
        await other.submit(link, "/reset", link=query_of(link), password=NEW)
    visitor.plant(SESSION_COOKIE, visitor_token or "")
    assert not await visitor.is_signed_in()


async def test_a_mail_is_in_the_language_of_who_asks(world: World, visitor: Person) -> None:
    visitor.headers["accept-language"] = "zh-CN"
    await visitor.submit("/forgot", "/forgot", email=EMAIL)
    assert "密码" in (await mail_to(world, EMAIL))["subject"]
