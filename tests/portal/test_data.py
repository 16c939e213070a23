"""A customer's own data: kept or not, taken along, deleted."""

import io
import zipfile
from uuid import UUID

import pytest
from sqlalchemy import text

from tests.api.world import World
from tests.factories import make_key, make_org
from tests.portal.visiting import Browser, visiting

BODY = {"model": "bytes", "prompt": "a secret text"}


async def test_requests_are_kept_shown_and_forgotten(world: World, acme: UUID, owner: Browser) -> None:
    key = await make_key(world.database, world.settings, acme)
    assert "They are not kept." in await owner.page("/data")
    await owner.send_form("/data/prompts", "/data", keep="yes", days="7")
    assert "They are kept for 7 days." in await owner.page("/data")
    answer = await world.post("/v1/completions", BODY, key)
    await world.app.state.prompts._waiting.join()
    id = answer.headers["x-request-id"]
    page = await owner.page(f"/data/requests?id={id}")
    assert "a secret text" in page
    assert "Hello" in page
    await owner.send_form("/data/prompts", "/data", keep="no", days="7")
    assert (await owner.get(f"/data/requests?id={id}")).status_code == 404


async def test_what_is_tried_in_the_playground_is_not_kept(world: World, owner: Browser) -> None:
    await owner.send_form("/data/prompts", "/data", keep="yes", days="7")
    assert "playground is never kept" in await owner.page("/data")
    answer = await owner.post("/playground/completions", json=BODY, headers={"sec-fetch-site": "same-origin"})
    assert answer.status_code == 200
    await world.app.state.prompts._waiting.join()
    assert (await owner.get(f"/data/requests?id={answer.headers['x-request-id']}")).status_code == 404


@pytest.mark.parametrize("days", ["0", "91", "", "x"])
async def test_days_that_cannot_be_are_told(owner: Browser, days: str) -> None:
    answer = await owner.send_form("/data/prompts", "/data", keep="yes", days=days)
    assert answer.status_code == 400
    assert 'id="f-days-problem"' in answer.text


async def test_an_unknown_request_is_not_there(owner: Browser) -> None:
    for id in ("nonsense", "01a21baa-0000-7000-8000-000000000000"):
        assert (await owner.get(f"/data/requests?id={id}")).status_code == 404


async def test_what_is_kept_of_others_cannot_be_seen(world: World, acme: UUID) -> None:
    other = await make_key(world.database, world.settings)
    async with world.database.begin() as connection:
        await connection.execute(text("UPDATE orgs SET prompt_retention_days = 7"))
    id = (await world.post("/v1/completions", BODY, other)).headers["x-request-id"]
    await world.app.state.prompts._waiting.join()
    async with visiting(world, acme) as browser:
        assert (await browser.get(f"/data/requests?id={id}")).status_code == 404


async def test_everything_comes_in_one_file(world: World, acme: UUID, owner: Browser) -> None:
    answer = await owner.send_form("/data/export", "/data")
    assert answer.headers["content-type"] == "application/zip"
    assert answer.headers["cache-control"] == "no-store"
    archive = zipfile.ZipFile(io.BytesIO(answer.content))
    assert {"README.txt", "usage_events.csv", "api_keys.csv"} <= set(archive.namelist())
    assert acme.hex in archive.read("memberships.csv").decode().replace("-", "")


async def test_an_organisation_is_deleted_by_its_name(world: World, acme: UUID, owner: Browser) -> None:
    answer = await owner.send_form("/data/delete", "/data", name="Acm")
    assert answer.status_code == 400
    assert (await owner.send_form("/data/delete", "/data", name="Acme")).headers["location"] == "/organizations"
    async with world.database.begin() as connection:
        state = (
            await connection.execute(text(f"SELECT status, delete_at IS NOT NULL FROM orgs WHERE id = '{acme}'"))
        ).all()
        actions = (await connection.execute(text("SELECT action FROM audit_log"))).scalars().all()
    assert [tuple(row) for row in state] == [("suspended", True)]
    assert actions == ["org.delete"]


async def test_an_organisation_that_is_deleted_is_nobodys_any_more(world: World, acme: UUID, owner: Browser) -> None:
    other = await make_org(world.database, "Other")
    async with world.database.begin() as connection:
        everywhere = (
            "INSERT INTO memberships (org_id, user_id, role) SELECT :org_id, user_id, 'viewer' FROM memberships"
        )
        await connection.execute(text(everywhere), {"org_id": other})
    await owner.send_form("/data/delete", "/data", name="Acme")
    # What the person looks at is what is left.
    assert "Other" in await owner.page("/overview")
    page = await owner.page("/organizations")
    assert "Acme" not in page
    assert (await owner.send_form("/organizations/switch", "/organizations", org=str(acme))).status_code in {404, 405}


@pytest.mark.parametrize("role", ["admin", "billing", "developer", "viewer"])
async def test_only_owners_delete(world: World, acme: UUID, role: str) -> None:
    async with visiting(world, acme, role) as member:
        answer = await member.send_form("/data/delete", "/settings", name="Acme")
        assert answer.status_code == 403
        assert (await member.get("/data")).status_code == (200 if role == "admin" else 403)


async def test_a_plan_is_cancelled_first(world: World, acme: UUID, owner: Browser) -> None:
    insert = (
        "INSERT INTO subscriptions (id, org_id, stripe_subscription_id, plan, plan_version, billing_interval, status,"
        " started_at, period_start, period_end, cancel_at_period_end, is_current, snapshot, synced_at) VALUES"
        " (gen_random_uuid(), :org_id, 'sub_1', 'starter', 1, 'month', 'active', now(), now(), now(), false, true,"
        " '{}', now())"
    )
    async with world.database.begin() as connection:
        await connection.execute(text(insert), {"org_id": acme})
    answer = await owner.send_form("/data/delete", "/data", name="Acme")
    assert answer.status_code == 400
    assert "Cancel the subscription first" in answer.text
