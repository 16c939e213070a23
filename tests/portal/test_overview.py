"""The first page after the login."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

from sqlalchemy import update

from app.tables import OrgBudget
from tests.api.world import World
from tests.factories import make_key, make_org
from tests.portal.test_usage_pages import bill
from tests.portal.visiting import Browser, visiting

NOW = datetime.now(UTC)


async def test_somebody_new_is_told_the_first_steps(world: World, acme: UUID, owner: Browser) -> None:
    page = await owner.page("/overview")
    assert "First steps" in page
    assert 'href="/keys/new"' in page
    assert f"curl {world.url}/v1/completions" in page
    assert 'class="done"' not in page
    await make_key(world.database, world.settings, acme)
    assert 'class="done"' in await owner.page("/overview")
    async with visiting(world, acme, "viewer") as viewer:
        assert 'href="/keys/new"' not in await viewer.page("/overview")


async def test_spend_forecast_quota_and_models(world: World, acme: UUID, owner: Browser) -> None:
    await bill(world.database, acme, {}, {"model": "tang-poetry", "price_version": 2})
    async with world.database.begin() as connection:
        statement = update(OrgBudget).where(OrgBudget.org_id == acme)
        await connection.execute(statement.values(plan="free", tokens_used=2020, spend_cap=25 * 10**12))
    page = await owner.page("/overview")
    assert '<p class="value" id="spent" data-live="spent">$0.000210</p>' in page
    assert "2 requests" in page
    assert "2,020" in page
    assert "of 1,000,000 this month" in page
    assert "$25.00" in page
    assert page.index("shakespeare") < page.index("tang-poetry")  # dearest first
    assert 'class="bars-chart"' in page
    assert "First steps" not in page


async def test_credit_is_shown_where_it_pays(world: World, acme: UUID, owner: Browser) -> None:
    assert "Prepaid credit" not in await owner.page("/overview")
    async with world.database.begin() as connection:
        statement = update(OrgBudget).where(OrgBudget.org_id == acme)
        await connection.execute(statement.values(plan="prepaid", credit=9_123_456_700_000))
    page = await owner.page("/overview")
    assert "Prepaid credit" in page
    assert "$9.123457" in page


async def test_usage_of_long_ago_is_over_and_that_of_others_is_theirs(world: World, acme: UUID, owner: Browser) -> None:
    await bill(world.database, acme, {"model": "old-model", "billed_at": NOW - timedelta(days=70)})
    other = await make_org(world.database, "Globex")
    await bill(world.database, other, {"model": "their-model"})
    page = await owner.page("/overview")
    assert "old-model" not in page
    assert "their-model" not in page
    assert "Globex" not in page
    assert "$0.000000" in page


async def test_a_month_begins_with_its_first_microsecond_here_and_in_the_usage_api(
    world: World, acme: UUID, owner: Browser
) -> None:
    month = NOW.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    await bill(world.database, acme, {"billed_at": month}, {"billed_at": month - timedelta(microseconds=1)})
    page = await owner.page("/overview")
    assert 'data-live="spent">$0.000126</p>' in page
    assert "1 request<" in page
    key = await make_key(world.database, world.settings, acme)
    api = await world.get("/v1/usage", key, bucket="month", start=(month - timedelta(days=1)).isoformat())
    assert [line["cost"]["value"] for line in api.json()["data"]] == ["0.000126", "0.000126"]


async def test_the_forecast_goes_by_the_last_seven_days(world: World, acme: UUID, owner: Browser) -> None:
    midnight = NOW.replace(hour=0, minute=0, second=0, microsecond=0)
    await bill(
        world.database,
        acme,
        {"input_tokens": 10**9, "cached_tokens": 0, "output_tokens": 0, "billed_at": midnight - timedelta(days=7)},
    )
    async with world.database.begin() as connection:
        await connection.exec_driver_sql("UPDATE orgs SET created_at = created_at - interval '1 year'")
    page = await owner.page("/overview")
    spent = page.split('id="spent" data-live="spent">$')[1].split("<")[0]
    forecast = page.split('Forecast for the month</h2><p class="value">$')[1].split("<")[0]
    # What was a week ago has no bearing on the days to come.
    assert float(forecast) == round(float(spent), 2)
