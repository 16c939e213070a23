"""The audit log as its readers see it."""

from uuid import UUID, uuid4

import pytest

from app import audit
from app import keys as api_keys
from tests.api.world import World
from tests.factories import make_key, make_org
from tests.portal.people import member


@pytest.fixture
async def org_id(world: World) -> UUID:
    return await make_org(world.database)


async def write(world: World, org_id: UUID, action: str, **fields: object) -> None:
    async with world.database.begin() as connection:
        entry: dict[str, object] = {"actor": audit.OPERATOR, "target": f"org:{org_id}"} | fields
        await audit.record(connection, org_id=org_id, action=action, **entry)  # type: ignore[arg-type]


async def test_what_changed_is_shown_newest_first(world: World, org_id: UUID) -> None:
    await write(world, org_id, "budget.set", before={"cap": None, "plan": "free"}, after={"cap": "25", "plan": "free"})
    await write(world, org_id, "plan.change", actor=audit.STRIPE)
    async with member(world, org_id) as owner:
        page = (await owner.get("/audit")).text
    assert page.index("plan.change") < page.index("budget.set")
    assert "<ins>25</ins>" in page
    assert "plan: " not in page  # it did not change
    assert "The operator" in page
    assert "Stripe" in page


async def test_amounts_and_lists_are_shown_as_a_person_writes_them(world: World, org_id: UUID) -> None:
    before = {"spend_cap": 0, "monthly_cap": None, "scopes": ["generation"], "is_new": False}
    after = {"spend_cap": 40 * 10**12, "monthly_cap": 2_500_000, "scopes": ["usage", "keys"], "is_new": True}
    await write(world, org_id, "budget.set", before=before, after=after)
    async with member(world, org_id) as owner:
        page = (await owner.get("/audit")).text
    for shown in (
        "spend_cap: <del>$0.00</del> <ins>$40.00</ins>",
        "monthly_cap: <ins>$0.000002</ins>",
        "scopes: <del>generation</del> <ins>usage, keys</ins>",
        "is_new: <del>false</del> <ins>true</ins>",
    ):
        assert shown in page


async def test_people_are_named(world: World, org_id: UUID) -> None:
    async with member(world, org_id, email="person@acme.example") as owner:
        await owner.submit("/members", "/members/invite", email="new@customer.example", role="viewer")
        page = (await owner.get("/audit")).text.replace("<wbr>", "")
        assert "person@acme.example</span>" in page
        assert "new@customer.example" in page
        assert "127.0.0.1" in page
        assert "member.invite" in page


async def test_keys_are_named_by_what_their_owner_calls_them(world: World, org_id: UUID) -> None:
    other = await make_org(world.database, "Globex")
    for owner_id, name in ((org_id, "<b>laptop</b>"), (other, "theirs")):
        await make_key(world.database, world.settings, owner_id, name=name)
        async with world.database.begin() as connection:
            (key,) = await api_keys.list_keys(connection, owner_id)
        await write(world, org_id, "key.change", actor=f"key:{key.id}", target=f"key:{key.id}")
    async with member(world, org_id) as owner:
        page = (await owner.get("/audit")).text
    assert page.count("key &lt;b&gt;laptop&lt;/b&gt; …") == 2
    assert "theirs" not in page


async def test_long_logs_have_pages(world: World, org_id: UUID) -> None:
    for number in range(60):
        await write(world, org_id, f"number.{number:02}")
    async with member(world, org_id) as owner:
        first = (await owner.get("/audit")).text
        assert "number.59" in first
        assert "number.10" in first
        assert "number.09" not in first
        link = first.partition('rel="next" href="')[2].partition('"')[0].replace("&amp;", "&")
        second = (await owner.get(link)).text
        assert "number.09" in second
        assert "number.10" not in second
        assert 'rel="next"' not in second
        assert (await owner.get("/audit?before=x")).status_code == 400
        assert (await owner.get(f"/audit?before={'9' * 30}")).status_code == 400


async def test_logins_can_be_left_out(world: World, org_id: UUID) -> None:
    await write(world, org_id, "session.open")
    await write(world, org_id, "key.create")
    async with member(world, org_id) as owner:
        assert "session.open" in (await owner.get("/audit")).text
        page = (await owner.get("/audit?sessions=no")).text
        assert "session.open" not in page
        assert "key.create" in page


async def test_nothing_of_others_is_shown(world: World, org_id: UUID) -> None:
    await write(world, await make_org(world.database, "Globex"), "secret.change")
    await write(world, uuid4(), "secret.change")
    async with member(world, org_id) as owner:
        page = (await owner.get("/audit")).text
        assert "secret.change" not in page
        assert "Nothing was changed yet." in page


async def test_what_is_logged_is_escaped(world: World, org_id: UUID) -> None:
    fields = {"target": "<b>target", "after": {"<b>name": "<b>value", "list": ["<b>"]}, "actor": "<b>actor"}
    await write(world, org_id, "<b>action", **fields)
    async with member(world, org_id) as owner:
        page = (await owner.get("/audit")).text
        assert "<b>" not in page
        assert page.count("&lt;b&gt;") >= 6
