"""What a plan allows, and what a model costs, over HTTP."""

import asyncio
from typing import Any

import pytest

from app.billing.catalog import PLANS
from app.billing.prices import PRICES
from app.config import Settings
from app.db import Database
from tests.api.world import World, say, serving, write_model
from tests.factories import make_key, make_org

COMPLETION = {"model": "bytes", "prompt": "abc", "max_tokens": 2}
RATE = "x-ratelimit-limit-requests"


async def change(world: World, statement: str) -> None:
    async with world.database.begin() as connection:
        await connection.exec_driver_sql(statement)


@pytest.mark.parametrize("plan", ["free", "starter", "starter-trial", "growth", "scale", "prepaid", "internal"])
async def test_a_key_has_the_rates_of_its_organisations_plan(world: World, plan: str) -> None:
    await change(world, f"UPDATE org_budgets SET plan = '{plan}'")
    headers = (await world.post("/v1/completions", COMPLETION)).headers
    assert headers[RATE] == str(PLANS[plan].requests_per_minute)
    assert headers["x-ratelimit-limit-tokens"] == str(PLANS[plan].tokens_per_minute)


async def test_a_change_of_the_plan_reaches_keys_that_were_looked_up(world: World) -> None:
    """And no other: a key of another organisation is looked up anew as well, and finds its own."""
    other = await make_key(world.database, world.settings, await make_org(world.database, "Other"))
    internal, growth = (str(PLANS[name].requests_per_minute) for name in ("internal", "growth"))
    assert (await world.post("/v1/completions", COMPLETION)).headers[RATE] == internal
    statement = "UPDATE org_budgets SET plan = 'growth' WHERE org_id = (SELECT id FROM orgs WHERE name = 'Acme')"
    await change(world, statement)
    async with asyncio.timeout(5):
        while (await world.post("/v1/completions", COMPLETION)).headers[RATE] != growth:
            pass
    assert (await world.post("/v1/completions", COMPLETION, other)).headers[RATE] == internal


async def test_a_keys_own_rates_go_before_the_plans(world: World) -> None:
    await change(world, "UPDATE org_budgets SET plan = 'growth'")
    different: tuple[dict[str, Any], ...] = ({"requests_per_minute": 7}, {"tokens_per_minute": 900})
    for terms in different:
        key = await make_key(world.database, world.settings, name="own", **terms)
        await change(world, "UPDATE org_budgets SET plan = 'growth'")
        headers = (await world.post("/v1/completions", COMPLETION, key)).headers
        expected = {"requests_per_minute": 1_200, "tokens_per_minute": 4_000_000} | terms
        assert headers[RATE] == str(expected["requests_per_minute"])
        assert headers["x-ratelimit-limit-tokens"] == str(expected["tokens_per_minute"])


async def test_a_plan_that_is_not_known_here_has_the_limits_of_free(world: World) -> None:
    await change(world, "UPDATE org_budgets SET plan = 'galaxy'")
    assert (await world.post("/v1/completions", COMPLETION)).headers[RATE] == str(PLANS["free"].requests_per_minute)


async def test_the_free_tokens_of_a_month_end(world: World) -> None:
    await change(world, "UPDATE org_budgets SET plan = 'free', tokens_used = 999_996")
    assert (await world.post("/v1/completions", COMPLETION)).headers["x-budget-stopped"] == "1"
    refused = await world.post("/v1/completions", COMPLETION)
    assert refused.status_code == 429
    assert "tokens of this month" in refused.json()["error"]["message"]


async def test_as_many_requests_run_at_once_as_the_plan_allows(world: World) -> None:
    await change(world, "UPDATE org_budgets SET plan = 'free', num_running = 2")
    assert (await world.post("/v1/completions", COMPLETION)).status_code == 429
    await change(world, "UPDATE org_budgets SET num_running = 1")
    assert (await world.post("/v1/completions", COMPLETION)).status_code == 200
    await change(world, "UPDATE org_budgets SET num_running = 0")


async def test_a_restricted_organisation_is_shown_the_way_to_the_billing_page(world: World) -> None:
    await change(world, "UPDATE org_budgets SET status = 'restricted', restriction = 'past_due'")
    refused = await world.post("/v1/completions", COMPLETION)
    assert refused.status_code == 429
    assert refused.headers["x-should-retry"] == "false"
    assert f"{world.settings.portal_url}/billing" in refused.json()["error"]["message"]


async def test_a_model_with_a_price_of_its_own_is_held_and_billed_at_it(settings: Settings, database: Database) -> None:
    write_model(settings.models_dir)
    write_model(settings.models_dir, "tang-poetry")
    cost = PRICES[2, "generation"].cost(3, 0, 2)
    async with serving(settings, database) as world:
        world.key = await make_key(database, settings)
        world.engine.answer = lambda _: say("ab", finish="length")
        await change(world, f"UPDATE org_budgets SET spend_cap = {cost}")
        assert (await world.post("/v1/completions", {**COMPLETION, "model": "tang-poetry"})).status_code == 200
        (row,) = await world.usage_rows()
        assert (row.price_version, row.model) == (2, "tang-poetry")
        usage = (await world.get("/v1/usage", group_by="model")).json()
        assert usage["data"][0]["cost"]["value"] == f"{cost / 10**12:.6f}"
        async with database.begin() as connection:
            statement = "SELECT cost_used, cost_held FROM org_budgets"
            assert tuple((await connection.exec_driver_sql(statement)).one()) == (cost, 0)
