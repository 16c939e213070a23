"""From a visitor to a person with an organisation."""

from dataclasses import replace

import httpx
import pytest
from sqlalchemy import select

from app.accounts.sessions import SESSION_COOKIE
from app.portal.attempts import SIGN_UPS
from app.portal.forms import FORM_COOKIE
from app.portal.sign_up import BROWSER_COOKIE
from app.tables import AuditEntry, Membership, Org, OrgBudget, SignUp, User
from tests.api.world import World
from tests.factories import PASSWORD, make_org, make_user
from tests.portal.people import Person, browsing, link_in, mail_to, mails, query_of

EMAIL = "new@customer.example"


async def ask(browser: Person, email: str = EMAIL, password: str = PASSWORD, org: str = "Initech") -> httpx.Response:
    return await browser.submit("/signup", "/signup", email=email, password=password, org_name=org)


async def confirm(browser: Person, link: str, **fields: str) -> httpx.Response:
    return await browser.submit(link, "/confirm", link=query_of(link), **fields)


async def test_a_sign_up_leads_to_an_organisation_on_the_free_plan(world: World, visitor: Person) -> None:
    answer = await ask(visitor, email=f" {EMAIL.upper()} ")
    assert answer.status_code == 200
    assert EMAIL in answer.text
    link = link_in(await mail_to(world, EMAIL))
    page = await visitor.get(link)
    assert "Initech" in page.text
    assert 'type="password"' not in page.text
    answer = await confirm(visitor, link)
    assert (answer.status_code, answer.headers["location"]) == (303, "/overview")
    assert "Initech" in (await visitor.get("/overview")).text
    async with world.database.begin() as connection:
        org = (await connection.execute(select(Org.id).where(Org.name == "Initech"))).scalar_one()
        plan = (await connection.execute(select(OrgBudget.plan).where(OrgBudget.org_id == org))).scalar_one()
        role = (await connection.execute(select(Membership.role).where(Membership.org_id == org))).scalar_one()
        entries = (await connection.execute(select(AuditEntry).where(AuditEntry.org_id == org).order_by("id"))).all()
    assert (plan, role) == ("free", "owner")
    assert [entry.action for entry in entries] == ["org.sign_up", "session.open"]
    assert entries[0].target == f"org:{org}"
    assert entries[0].after == {"name": "Initech", "plan": "free"}
    assert entries[0].request_id is not None


async def test_nothing_exists_before_the_address_is_confirmed(world: World, visitor: Person) -> None:
    await ask(visitor)
    await visitor.get(link_in(await mail_to(world, EMAIL)))
    async with world.database.begin() as connection:
        assert (await connection.execute(select(User.id).where(User.email == EMAIL))).all() == []
        assert (await connection.execute(select(Org.id).where(Org.name == "Initech"))).all() == []
    assert (await visitor.sign_in(EMAIL)).status_code == 401


async def test_in_another_browser_the_password_is_asked_for(world: World, visitor: Person) -> None:
    await ask(visitor)
    link = link_in(await mail_to(world, EMAIL))
    async with browsing(world) as other:
        assert 'type="password"' in (await other.get(link)).text
        assert (await confirm(other, link)).status_code == 401
        assert (await confirm(other, link, password="a guess, and a wrong one")).status_code == 401
        assert not await other.is_signed_in()
        assert (await confirm(other, link, password=PASSWORD)).headers["location"] == "/overview"
        assert await other.is_signed_in()


async def test_whoever_asks_at_somebody_elses_address_does_not_get_it_by_their_click(world: World) -> None:
    async with browsing(world) as attacker, browsing(world) as owner:
        await ask(attacker, password="known to the attacker")
        link = link_in(await mail_to(world, EMAIL))
        owner.plant(BROWSER_COOKIE, "not the attacker's")
        assert (await confirm(owner, link)).status_code == 401
        assert (await attacker.sign_in(EMAIL, "known to the attacker")).status_code == 401


async def test_a_link_works_once(world: World, visitor: Person) -> None:
    await ask(visitor)
    link = link_in(await mail_to(world, EMAIL))
    token = (await visitor.get(link)).text
    assert token
    await confirm(visitor, link)
    async with browsing(world) as other:
        assert (await other.get(link)).status_code == 404


async def test_every_wish_at_an_address_is_over_when_one_is_confirmed(world: World, visitor: Person) -> None:
    async with browsing(world) as attacker:
        await ask(attacker, password="known to the attacker")
        first = link_in(await mail_to(world, EMAIL))
        await ask(visitor)

        async with world.database.begin() as connection:
            assert len((await connection.execute(select(SignUp.id))).all()) == 2
        links = {first}
        while len(links) < 2:
            links |= {link_in(mail) for mail in await mails(world)}
        await confirm(visitor, (links - {first}).pop())
        assert (await attacker.get(first)).status_code == 404


async def test_an_address_with_a_login_is_told_so_only_by_mail(world: World, visitor: Person) -> None:
    await make_user(world.database, await make_org(world.database), EMAIL)
    known = await ask(visitor)
    async with browsing(world) as other:
        unknown = await ask(other, "nobody@customer.example")
        assert (known.status_code, unknown.status_code) == (200, 200)
        assert known.text == unknown.text.replace("nobody@customer.example", EMAIL)
        assert {cookie.name for cookie in visitor.cookies.jar} == {cookie.name for cookie in other.cookies.jar}
    assert "account already" in (await mail_to(world, EMAIL))["subject"]
    async with world.database.begin() as connection:
        assert (await connection.execute(select(SignUp.id).where(SignUp.email == EMAIL))).all() == []


@pytest.mark.parametrize(
    ("email", "password", "org", "problem"),
    [
        ("nonsense", PASSWORD, "Initech", "This is not an e-mail address."),
        (f'"><b>{EMAIL}', PASSWORD, "Initech", "This is not an e-mail address."),
        (f"a@b.example\r\nBcc: {EMAIL}", PASSWORD, "Initech", "This is not an e-mail address."),
        (EMAIL, "short", "Initech", "A password has 10 to 200 characters."),
        (EMAIL, "x" * 201, "Initech", "A password has 10 to 200 characters."),
        (EMAIL, PASSWORD, "", "A name has 1 to 100 printable characters."),
        (EMAIL, PASSWORD, "In\nitech", "A name has 1 to 100 printable characters."),
    ],
)
async def test_what_is_wrong_is_said_beside_the_field(
    world: World, visitor: Person, email: str, password: str, org: str, problem: str
) -> None:
    answer = await ask(visitor, email, password, org)
    assert answer.status_code == 400
    assert problem in answer.text
    assert "<b>" not in answer.text
    assert await mails(world) == []


async def test_a_form_of_another_site_makes_no_account(world: World, visitor: Person) -> None:
    await visitor.get("/signup")
    answer = await visitor.post(
        "/signup", data={"token": "0" * 64, "email": EMAIL, "password": PASSWORD, "org_name": "Initech"}
    )
    assert answer.status_code == 403
    await ask(visitor)
    link = link_in(await mail_to(world, EMAIL))
    assert (await visitor.post("/confirm", data={"token": "0" * 64, "link": query_of(link)})).status_code == 403


async def test_mails_to_an_address_are_limited(world: World, visitor: Person) -> None:
    for _ in range(5):
        assert (await ask(visitor)).status_code == 200
    refused = await ask(visitor)
    assert refused.status_code == 429
    assert refused.headers["retry-after"] == "3600"


async def test_sign_ups_from_one_place_are_limited(visitor: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    assert SIGN_UPS.num >= 20  # a class that begins together
    monkeypatch.setattr("app.portal.attempts.SIGN_UPS", replace(SIGN_UPS, num=2))
    for _ in range(3):  # what is wrong is not counted
        assert (await ask(visitor, password="")).status_code == 400
    for number in range(2):
        assert (await ask(visitor, f"{number}@customer.example")).status_code == 200
    refused = await ask(visitor)
    assert refused.status_code == 429
    assert refused.headers["retry-after"] == str(12 * 3600)


async def test_confirming_gives_a_new_session(world: World, visitor: Person) -> None:
    await ask(visitor)
    visitor.plant(SESSION_COOKIE, "planted")
    await confirm(visitor, link_in(await mail_to(world, EMAIL)))
    assert visitor.session not in {None, "planted"}
    assert BROWSER_COOKIE not in visitor.cookies
    assert FORM_COOKIE not in visitor.cookies


async def test_who_is_signed_in_needs_no_account(world: World, visitor: Person) -> None:
    await make_user(world.database, await make_org(world.database), EMAIL)
    await visitor.sign_in(EMAIL)
    assert (await visitor.get("/signup")).headers["location"] == "/overview"


async def test_two_confirmations_at_once_make_one_account(world: World, visitor: Person) -> None:
    await ask(visitor)
    link = link_in(await mail_to(world, EMAIL))
    await make_user(world.database, await make_org(world.database), EMAIL)
    assert (await confirm(visitor, link)).status_code == 409
