"""Organisations at the pages: to look at another, to found one, to leave."""

from uuid import UUID, uuid4

import pytest
from sqlalchemy import insert, select

from app.tables import AuditEntry, Membership, Org, OrgBudget, User
from tests.api.world import World
from tests.factories import make_org, make_user
from tests.portal.people import member

EMAIL = "owner@acme.example"


@pytest.fixture
async def org_id(world: World) -> UUID:
    return await make_org(world.database)


async def join(world: World, org_id: UUID, email: str, role: str) -> None:
    async with world.database.begin() as connection:
        user_id = (await connection.execute(select(User.id).where(User.email == email))).scalar_one()
        await connection.execute(insert(Membership).values(org_id=org_id, user_id=user_id, role=role))


async def test_a_person_looks_at_another_organisation_with_the_role_there(world: World, org_id: UUID) -> None:
    async with member(world, org_id) as person:
        globex = await make_org(world.database, "Globex")
        await join(world, globex, EMAIL, "viewer")
        assert "Globex" in (await person.get("/organizations")).text
        answer = await person.submit("/organizations", "/organizations/switch", org=str(globex))
        assert answer.headers["location"] == "/overview"
        page = (await person.get("/overview")).text
        assert "Globex" in page
        assert "Acme" not in page
        assert (await person.get("/keys")).status_code == 403
        await person.submit("/organizations", "/organizations/switch", org=str(org_id))
        assert (await person.get("/keys")).status_code == 200


@pytest.mark.parametrize("kind", ["foreign", "unknown", "nonsense"])
async def test_nobody_looks_at_an_organisation_of_others(world: World, org_id: UUID, kind: str) -> None:
    foreign = await make_org(world.database, "Globex")
    async with member(world, org_id) as person:
        id = {"foreign": str(foreign), "unknown": str(uuid4()), "nonsense": "nonsense"}[kind]
        answer = await person.submit("/organizations", "/organizations/switch", org=id)
        assert answer.status_code == 404
        assert "Globex" not in answer.text
        assert "Acme" in (await person.get("/overview")).text


async def test_nobody_multiplies_the_free_plan(world: World, org_id: UUID) -> None:
    async with member(world, org_id) as person:
        assert (await person.submit("/organizations", "/organizations", name=" ")).status_code == 400
        for number in range(5):
            answer = await person.submit("/organizations", "/organizations", name=f"{number}")
            assert answer.headers["location"] == "/overview"
        answer = await person.submit("/organizations", "/organizations", name="One more")
    assert answer.status_code == 429
    assert "enough organisations" in answer.text
    assert int(answer.headers["retry-after"]) == 6 * 24 * 3600


async def test_a_founded_organisation_begins_on_the_free_plan(world: World, org_id: UUID) -> None:
    async with member(world, org_id, "viewer") as person:
        answer = await person.submit("/organizations", "/organizations", name="Initech")
        assert answer.headers["location"] == "/overview"
        assert "Initech" in (await person.get("/overview")).text
        assert (await person.get("/members")).status_code == 200
    async with world.database.begin() as connection:
        new = (await connection.execute(select(Org.id).where(Org.name == "Initech"))).scalar_one()
        plan = (await connection.execute(select(OrgBudget.plan).where(OrgBudget.org_id == new))).scalar_one()
        entry = (await connection.execute(select(AuditEntry).where(AuditEntry.org_id == new))).one()
    assert plan == "free"
    assert (entry.action, entry.after) == ("org.sign_up", {"name": "Initech", "plan": "free"})


async def test_an_organisation_needs_a_name(world: World, org_id: UUID) -> None:
    async with member(world, org_id) as person:
        answer = await person.submit("/organizations", "/organizations", name=" ")
        assert answer.status_code == 400
        assert "A name has 1 to 100 printable characters." in answer.text


async def test_who_leaves_the_only_organisation_is_asked_to_found_one(world: World, org_id: UUID) -> None:
    await make_user(world.database, org_id)
    async with member(world, org_id, "developer") as person:
        answer = await person.submit("/organizations", "/organizations/leave")
        assert answer.headers["location"] == "/organizations"
        page = (await person.get("/organizations")).text
        assert "Acme" not in page
        assert "no organisation" in page
        assert (await person.get("/overview")).headers["location"] == "/login"
        assert (await person.submit("/organizations", "/organizations", name="Mine")).status_code == 303
        assert "Mine" in (await person.get("/overview")).text


async def test_who_belongs_nowhere_can_sign_out(world: World, org_id: UUID) -> None:
    await make_user(world.database, org_id)
    async with member(world, org_id, "developer") as person:
        await person.submit("/organizations", "/organizations/leave")
        assert (await person.submit("/organizations", "/logout")).headers["location"] == "/"
        assert not await person.is_signed_in()


async def test_the_last_owner_cannot_leave(world: World, org_id: UUID) -> None:
    async with member(world, org_id) as person:
        answer = await person.submit("/organizations", "/organizations/leave")
        assert answer.status_code == 409
        assert "Make somebody else an owner first." in answer.text


async def test_a_strangers_form_changes_nothing(world: World, org_id: UUID) -> None:
    async with member(world, org_id) as person:
        for path in ("/organizations", "/organizations/switch", "/organizations/leave"):
            answer = await person.post(path, data={"token": "0" * 64, "name": "Evil", "org": str(org_id)})
            assert answer.status_code == 403


async def test_names_are_escaped(world: World) -> None:
    org_id = await make_org(world.database, "<img src=x onerror=alert(1)>")
    async with member(world, org_id) as person:
        for path in ("/organizations", "/members", "/overview", "/audit", "/security"):
            page = (await person.get(path)).text
            assert "<img" not in page
            assert "&lt;img" in page
