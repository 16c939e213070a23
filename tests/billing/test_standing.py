"""Where an organisation stands, and the cap that it sets itself."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import UUID

import pytest
from sqlalchemy import update

from app.billing.catalog import PLANS
from app.billing.standing import Standing, forecast, read_standing, set_own_spend_cap
from app.db import Database
from app.errors import NotFound
from app.tables import OrgBudget, new_id
from tests.factories import make_org

NOW = datetime.now(UTC)
USD = 10**12


async def read(database: Database, org_id: UUID, now: datetime = NOW) -> Standing:
    async with database.begin() as connection:
        return await read_standing(connection, org_id, now)


async def set_budget(database: Database, org_id: UUID, **values: object) -> None:
    async with database.begin() as connection:
        await connection.execute(update(OrgBudget).where(OrgBudget.org_id == org_id).values(values))


async def test_what_nobody_limits_is_the_plan_s(database: Database) -> None:
    org_id = await make_org(database)
    await set_budget(database, org_id, plan="free", tokens_used=5, cost_used=7)
    standing = await read(database, org_id)
    assert standing.plan is PLANS["free"]
    assert standing.token_limit == PLANS["free"].monthly_token_limit
    assert standing.max_concurrent == PLANS["free"].max_concurrent
    assert (standing.tokens_used, standing.cost_used, standing.spend_cap, standing.credit) == (5, 7, None, None)


async def test_an_operator_s_limits_come_first_even_none_at_all(database: Database) -> None:
    org_id = await make_org(database)
    await set_budget(database, org_id, plan="free", monthly_token_limit=0, max_concurrent=1)
    standing = await read(database, org_id)
    assert (standing.token_limit, standing.max_concurrent) == (0, 1)


async def test_counts_of_last_month_are_over(database: Database) -> None:
    org_id = await make_org(database)
    await set_budget(database, org_id, tokens_used=5, cost_used=7)
    standing = await read(database, org_id, NOW + timedelta(days=31))
    assert (standing.tokens_used, standing.cost_used) == (0, 0)


async def test_a_cap_is_set_changed_and_taken_away(database: Database) -> None:
    org_id = await make_org(database)
    before = None
    for cap in (125 * USD // 10, 0, None):
        async with database.begin() as connection:
            assert await set_own_spend_cap(connection, org_id, cap) == before
        assert (await read(database, org_id)).spend_cap == cap
        before = cap


@pytest.mark.parametrize(("operator_s", "own", "lower"), [(7, None, 7), (None, 5, 5), (7, 9, 7), (7, 0, 0)])
async def test_the_lower_of_both_caps_counts(
    database: Database, operator_s: int | None, own: int | None, lower: int
) -> None:
    org_id = await make_org(database)
    await set_budget(database, org_id, spend_cap=operator_s, own_spend_cap=own)
    assert (await read(database, org_id)).spend_cap == lower


async def test_an_organisation_that_is_not_there_has_neither(database: Database) -> None:
    async with database.begin() as connection:
        with pytest.raises(NotFound):
            await read_standing(connection, new_id(), NOW)
        with pytest.raises(NotFound):
            await set_own_spend_cap(connection, new_id(), USD)


@pytest.mark.parametrize(
    ("now", "hours", "expected"),
    [
        # Half of November is left; 7 in a week is 1 a day, for 15 days more.
        (datetime(2031, 11, 16, tzinfo=UTC), 7 * 24, 100 + 15),
        # The same in two days is more a day, in 36 hours still more.
        (datetime(2031, 11, 16, tzinfo=UTC), 48, 100 + 52),
        (datetime(2031, 11, 16, tzinfo=UTC), 36, 100 + 70),
        # What began a moment ago is taken for a day's.
        (datetime(2031, 11, 16, tzinfo=UTC), 0, 100 + 105),
        (datetime(2031, 12, 31, tzinfo=UTC), 7 * 24, 101),
        (datetime(2031, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC), 7 * 24, 100),
    ],
)
def test_a_forecast_goes_on_as_it_did_lately(now: datetime, hours: int, expected: int) -> None:
    assert int(forecast(Decimal(100), Decimal(7), now - timedelta(hours=hours), now)) == expected
