"""The cap that an organisation sets itself, and what it is shown of its limits."""

import itertools
from datetime import UTC, datetime
from uuid import UUID

import pytest
from sqlalchemy import text, update

from app.billing.standing import read_standing
from app.tables import OrgBudget
from tests.api.world import World
from tests.factories import make_key
from tests.portal.visiting import Browser, visiting


async def cap_of(world: World, org_id: UUID) -> int | None:
    async with world.database.begin() as connection:
        return (await read_standing(connection, org_id, datetime.now(UTC))).spend_cap


async def set_budget(world: World, org_id: UUID, **values: object) -> None:
    async with world.database.begin() as connection:
        await connection.execute(update(OrgBudget).where(OrgBudget.org_id == org_id).values(values))


async def test_a_cap_holds_from_the_next_request_on(world: World, acme: UUID, owner: Browser) -> None:
    key = await make_key(world.database, world.settings, acme)
    request = {"model": "bytes", "prompt": "abc"}
    assert (await world.post("/v1/completions", request, key)).status_code == 200
    assert (await owner.send_form("/limits", "/limits", spend_cap="0.000004")).headers["location"].endswith("saved")
    refused = await world.post("/v1/completions", request, key)
    assert (refused.status_code, refused.headers["x-should-retry"]) == (429, "false")
    assert "$0.000003 of $0.000004 spent this month" in await owner.page("/limits")
    await owner.send_form("/limits", "/limits", spend_cap="")
    assert (await world.post("/v1/completions", request, key)).status_code == 200
    assert "no cap is set" in await owner.page("/limits")


async def test_an_operator_s_cap_is_shown_and_cannot_be_lifted(world: World, acme: UUID, owner: Browser) -> None:
    assert "set by the operator" not in await owner.page("/limits")
    await set_budget(world, acme, spend_cap=5 * 10**12)
    page = await owner.page("/limits")
    assert "A cap of $5.00 is set by the operator" in page
    assert 'name="spend_cap" type="text" value=""' in page
    for amount in ("7", ""):
        await owner.send_form("/limits", "/limits", spend_cap=amount)
        assert await cap_of(world, acme) == 5 * 10**12
    await owner.send_form("/limits", "/limits", spend_cap="3")
    assert await cap_of(world, acme) == 3 * 10**12


@pytest.mark.parametrize("amount", ["-1", "much", "1.0000001", "9000000000"])
async def test_what_is_no_amount_changes_nothing(world: World, acme: UUID, owner: Browser, amount: str) -> None:
    await owner.send_form("/limits", "/limits", spend_cap="5")
    answer = await owner.send_form("/limits", "/limits", spend_cap=amount)
    assert answer.status_code == 400
    assert f'value="{amount}"' in answer.text
    assert await cap_of(world, acme) == 5 * 10**12


async def test_a_change_of_the_cap_is_in_the_audit_log(world: World, acme: UUID, owner: Browser) -> None:
    for amount in ("5", "", "0"):
        await owner.send_form("/limits", "/limits", spend_cap=amount)
    async with world.database.begin() as connection:
        statement = text("SELECT before, after FROM audit_log WHERE org_id = :org AND action = 'cap.set' ORDER BY id")
        entries = [tuple(row) for row in await connection.execute(statement, {"org": acme})]
    caps = [None, 5 * 10**12, None, 0]
    assert entries == [({"spend_cap": before}, {"spend_cap": after}) for before, after in itertools.pairwise(caps)]


async def test_the_billing_role_sets_a_cap_and_a_developer_does_not(world: World, acme: UUID) -> None:
    async with visiting(world, acme, "billing") as browser:
        assert (await browser.send_form("/limits", "/limits", spend_cap="7")).status_code == 303
    for role in ("developer", "viewer"):
        async with visiting(world, acme, role) as browser:
            assert (await browser.get("/limits")).status_code == 403
            assert (await browser.send_form("/limits", "/settings", spend_cap="9")).status_code == 403
    assert await cap_of(world, acme) == 7 * 10**12


@pytest.mark.parametrize("token", [None, "", "0" * 64])
async def test_another_site_cannot_set_a_cap(world: World, acme: UUID, owner: Browser, token: str | None) -> None:
    data = {"spend_cap": "9"} | ({} if token is None else {"token": token})
    assert (await owner.post("/limits", data=data)).status_code == 403
    assert await cap_of(world, acme) is None


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"status": "restricted", "restriction": "past_due"}, "the last invoice is not paid"),
        ({"status": "restricted", "restriction": "disputed"}, "a payment is disputed"),
        ({"plan": "prepaid", "credit": 0}, "The prepaid credit is used up."),
        ({"spend_cap": 5, "cost_used": 5}, "The cap of this month is reached"),
        ({"monthly_token_limit": 0}, "The tokens of this month are used up"),
    ],
)
async def test_why_requests_are_refused_is_said_on_top(
    world: World, acme: UUID, owner: Browser, values: dict[str, object], said: str
) -> None:
    for path in ("/overview", "/limits"):
        assert 'role="alert"' not in await owner.page(path)
    await set_budget(world, acme, **values)
    for path in ("/overview", "/limits"):
        page = await owner.page(path)
        assert 'role="alert"' in page
        assert said in page


async def test_a_plan_s_limits_are_shown(world: World, acme: UUID, owner: Browser) -> None:
    await set_budget(world, acme, plan="free", tokens_used=250_000)
    page = await owner.page("/limits")
    assert "250,000 of 1,000,000 tokens used this month" in page
    assert '<progress class="gauge" max="1000000" value="250000"' in page
    await set_budget(world, acme, tokens_used=1_200_000)
    assert '<progress class="gauge bad" max="1000000" value="1000000"' in await owner.page("/limits")
    await set_budget(world, acme, plan="scale")
    assert "1,200,000 tokens used this month; the plan has no hard limit." in await owner.page("/limits")
