"""Members and invitations at the pages."""

from dataclasses import replace
from uuid import UUID, uuid4

import pytest
from sqlalchemy import insert, select

from app.portal.attempts import INVITATIONS
from app.tables import AuditEntry, Invitation, Membership, User
from tests.api.world import World
from tests.factories import PASSWORD, make_org, make_user
from tests.portal.people import Person, browsing, link_in, mail_to, mails, member, query_of

NEW = "new@customer.example"


@pytest.fixture
async def org_id(world: World) -> UUID:
    return await make_org(world.database)


async def invite(person: Person, email: str = NEW, role: str = "developer") -> None:
    answer = await person.submit("/members", "/members/invite", email=email, role=role)
    assert answer.headers.get("location") == "/members?done=invited", answer.text


async def roles_of(world: World, org_id: UUID) -> dict[str, str]:
    async with world.database.begin() as connection:
        statement = select(User.email, Membership.role).join_from(Membership, User, User.id == Membership.user_id)
        rows = await connection.execute(statement.where(Membership.org_id == org_id))
        return {row.email: row.role for row in rows}


async def entries(world: World, org_id: UUID) -> list[tuple[str, object, object]]:
    async with world.database.begin() as connection:
        statement = select(AuditEntry.action, AuditEntry.before, AuditEntry.after).order_by(AuditEntry.id)
        rows = await connection.execute(
            statement.where(AuditEntry.org_id == org_id, AuditEntry.action.like("member.%"))
        )
        return [tuple(row) for row in rows]


async def test_a_new_person_joins_by_an_invitation(world: World, org_id: UUID, visitor: Person) -> None:
    async with member(world, org_id) as owner:
        await invite(owner)
        assert NEW in (await owner.get("/members")).text
    mail = await mail_to(world, NEW)
    assert "Acme" in mail["subject"]
    assert "owner@acme.example" in mail.get_content()
    link = link_in(mail)
    assert "Acme" in (await visitor.get(link)).text
    answer = await visitor.submit(link, "/invitation/join", link=query_of(link), password=PASSWORD)
    assert (answer.status_code, answer.headers["location"]) == (303, "/overview")
    assert "Acme" in (await visitor.get("/overview")).text
    assert (await roles_of(world, org_id))[NEW] == "developer"
    assert (await visitor.get(link)).status_code == 404
    told = {"email": NEW, "role": "developer"}
    assert await entries(world, org_id) == [("member.invite", None, told), ("member.join", None, told)]
    async with browsing(world) as again:
        assert (await again.sign_in(NEW)).status_code == 303


async def test_who_has_a_login_signs_in_and_joins(world: World, org_id: UUID, visitor: Person) -> None:
    await make_user(world.database, await make_org(world.database, "Home"), NEW)
    async with member(world, org_id) as owner:
        await invite(owner, role="admin")
    link = link_in(await mail_to(world, NEW))
    page = (await visitor.get(link)).text
    assert "/login?next=/invitation%3Ftoken%3D" in page
    refused = await visitor.submit("/login", "/invitation/join", link=query_of(link), password="chosen by a thief")
    assert refused.status_code == 409
    answer = await visitor.submit("/login", "/login", email=NEW, password=PASSWORD, next=link)
    assert answer.headers["location"] == link
    answer = await visitor.submit(link, "/invitation/accept", link=query_of(link))
    assert answer.headers["location"] == "/overview"
    assert "Acme" in (await visitor.get("/overview")).text
    assert (await roles_of(world, org_id))[NEW] == "admin"
    assert "Home" in (await visitor.get("/organizations")).text


async def test_an_invitation_is_of_no_use_to_another_person(world: World, org_id: UUID) -> None:
    async with member(world, org_id) as owner:
        await invite(owner, role="owner")
    link = link_in(await mail_to(world, NEW))
    async with member(world, await make_org(world.database, "Evil"), email="evil@evil.example") as thief:
        assert "evil@evil.example" in (await thief.get(link)).text
        answer = await thief.submit("/security", "/invitation/accept", link=query_of(link))
        assert answer.status_code == 403
    assert set(await roles_of(world, org_id)) == {"owner@acme.example"}


async def test_a_short_password_is_refused(world: World, org_id: UUID, visitor: Person) -> None:
    async with member(world, org_id) as owner:
        await invite(owner)
    link = link_in(await mail_to(world, NEW))
    answer = await visitor.submit(link, "/invitation/join", link=query_of(link), password="short")
    assert answer.status_code == 400
    assert "A password has 10 to 200 characters." in answer.text


async def test_a_withdrawn_invitation_is_over(world: World, org_id: UUID, visitor: Person) -> None:
    async with member(world, org_id) as owner:
        await invite(owner)
        link = link_in(await mail_to(world, NEW))
        id = await invitation_id(world)
        answer = await owner.submit("/members", f"/members/invitations/{id}/withdraw")
        assert answer.headers["location"] == "/members?done=withdrawn"
        assert NEW not in (await owner.get("/members")).text
        assert (await owner.submit("/members", f"/members/invitations/{id}/withdraw")).status_code == 404
    assert (await visitor.get(link)).status_code == 404


async def test_what_is_withdrawn_before_its_mail_leaves_is_not_told(world: World, org_id: UUID) -> None:
    async with member(world, org_id) as owner:
        await invite(owner)
        await owner.submit("/members", f"/members/invitations/{await invitation_id(world)}/withdraw")
    assert await mails(world) == []
    assert [entry[0] for entry in await entries(world, org_id)] == ["member.invite", "member.withdraw_invitation"]


async def invitation_id(world: World) -> UUID:
    async with world.database.begin() as connection:
        found: UUID = (await connection.execute(select(Invitation.id))).scalar_one()
        return found


async def test_a_role_is_changed_at_once(world: World, org_id: UUID) -> None:
    async with member(world, org_id) as owner, member(world, org_id, "viewer") as other:
        assert (await other.get("/keys")).status_code == 403
        user_id = await user_of(world, "viewer@acme.example")
        answer = await owner.submit("/members", f"/members/{user_id}/role", role="developer")
        assert answer.headers["location"] == "/members?done=saved"
        assert (await other.get("/keys")).status_code == 200
        answer = await owner.submit("/members", f"/members/{user_id}/remove")
        assert answer.headers["location"] == "/members?done=removed"
        assert (await other.get("/keys")).headers["location"].startswith("/login")
    assert await entries(world, org_id) == [
        ("member.change_role", {"role": "viewer"}, {"role": "developer"}),
        ("member.remove", {"role": "developer"}, None),
    ]


async def user_of(world: World, email: str) -> UUID:
    async with world.database.begin() as connection:
        found: UUID = (await connection.execute(select(User.id).where(User.email == email))).scalar_one()
        return found


async def test_an_admin_makes_no_owner(world: World, org_id: UUID) -> None:
    async with member(world, org_id), member(world, org_id, "admin") as admin:
        owner_id, admin_id = await user_of(world, "owner@acme.example"), await user_of(world, "admin@acme.example")
        for id, role in ((admin_id, "owner"), (owner_id, "viewer")):
            assert (await admin.submit("/members", f"/members/{id}/role", role=role)).status_code == 403
        assert (await admin.submit("/members", f"/members/{owner_id}/remove")).status_code == 403
        answer = await admin.submit("/members", "/members/invite", email=NEW, role="owner")
        assert answer.status_code == 403
        assert 'value="owner"' not in (await admin.get("/members")).text
    assert await roles_of(world, org_id) == {"owner@acme.example": "owner", "admin@acme.example": "admin"}
    assert await mails(world) == []


async def test_the_last_owner_stays(world: World, org_id: UUID) -> None:
    async with member(world, org_id) as owner:
        id = await user_of(world, "owner@acme.example")
        assert (await owner.submit("/members", f"/members/{id}/role", role="viewer")).status_code == 409
        assert (await owner.submit("/members", f"/members/{id}/remove")).status_code == 409


async def test_nothing_of_others_is_changed(world: World, org_id: UUID) -> None:
    globex = await make_org(world.database, "Globex")
    async with member(world, org_id) as attacker, member(world, globex, email="victim@globex.example") as victim:
        await invite(victim)
        ids = {await user_of(world, "victim@globex.example"), await invitation_id(world), uuid4()}
        for id in (*map(str, ids), "nonsense"):
            for path in (f"/members/{id}/role", f"/members/{id}/remove", f"/members/invitations/{id}/withdraw"):
                answer = await attacker.submit("/members", path, role="viewer")
                assert answer.status_code == 404, path
        page = (await attacker.get("/members")).text
        assert "globex" not in page
        assert NEW not in page
        assert NEW in (await victim.get("/members")).text
    assert await roles_of(world, globex) == {"victim@globex.example": "owner"}


@pytest.mark.parametrize(
    ("email", "role", "status", "problem"),
    [
        ('"><b>', "viewer", 400, "This is not an e-mail address."),
        (NEW, "emperor", 400, "There is no such role."),
        ("owner@acme.example", "viewer", 409, "This person is a member already."),
    ],
)
async def test_what_is_wrong_is_said(
    world: World, org_id: UUID, email: str, role: str, status: int, problem: str
) -> None:
    async with member(world, org_id) as owner:
        answer = await owner.submit("/members", "/members/invite", email=email, role=role)
        assert answer.status_code == status
        assert problem in answer.text
        assert "<b>" not in answer.text
        assert await mails(world) == []


async def test_invitations_of_an_organisation_are_limited(
    world: World, org_id: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.portal.attempts.INVITATIONS", replace(INVITATIONS, num=11))
    async with member(world, org_id) as owner:
        for number in range(11):
            await invite(owner, f"{number}@customer.example")
        answer = await owner.submit("/members", "/members/invite", email=NEW, role="viewer")
    assert answer.status_code == 429
    assert "invited today" in answer.text


async def test_mails_to_an_address_are_limited(world: World, org_id: UUID) -> None:
    async with member(world, org_id) as owner:
        for _ in range(5):
            await invite(owner)
        answer = await owner.submit("/members", "/members/invite", email=NEW, role="viewer")
        assert answer.status_code == 429
        await invite(owner, "other@customer.example")


async def test_who_is_signed_in_without_an_organisation_joins(world: World, org_id: UUID) -> None:
    await make_user(world.database, org_id, "first@acme.example")
    async with member(world, org_id, "developer", NEW) as guest, member(world, org_id) as owner:
        await guest.submit("/organizations", "/organizations/leave")
        await invite(owner, role="billing")
        link = link_in(await mail_to(world, NEW))
        answer = await guest.submit(link, "/invitation/accept", link=query_of(link))
        assert answer.headers["location"] == "/overview"
        assert (await guest.get("/members")).status_code == 200


async def test_forms_of_another_site_do_nothing(world: World, org_id: UUID, visitor: Person) -> None:
    async with member(world, org_id) as owner:
        await invite(owner)
        id = await user_of(world, "owner@acme.example")
        token = query_of(link_in(await mail_to(world, NEW)))
        data = {"token": "0" * 64, "email": NEW, "role": "viewer", "link": token, "password": PASSWORD}
        paths = (
            "/members/invite",
            f"/members/{id}/role",
            f"/members/{id}/remove",
            f"/members/invitations/{await invitation_id(world)}/withdraw",
            "/invitation/accept",
        )
        for path in paths:
            assert (await owner.post(path, data=data)).status_code == 403
        assert (await visitor.post("/invitation/join", data=data)).status_code == 403
    assert set(await roles_of(world, org_id)) == {"owner@acme.example"}


async def test_a_stranger_is_asked_to_sign_in(org_id: UUID, visitor: Person) -> None:
    for path in ("/members", "/audit", "/security", "/organizations"):
        assert (await visitor.get(path)).headers["location"].startswith("/login")
    answer = await visitor.submit("/login", "/invitation/accept", link="guess")
    assert answer.headers["location"].startswith("/login")


async def test_a_second_member_of_two_organisations_is_shown_only_those(world: World, org_id: UUID) -> None:
    globex = await make_org(world.database, "Globex")
    async with member(world, org_id) as person:
        async with world.database.begin() as connection:
            user_id = (await connection.execute(select(User.id))).scalar_one()
            await connection.execute(insert(Membership).values(org_id=globex, user_id=user_id, role="viewer"))
        await make_org(world.database, "Umbrella")
        page = (await person.get("/organizations")).text
        assert "Globex" in page
        assert "Umbrella" not in page
