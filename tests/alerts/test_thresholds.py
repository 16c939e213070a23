"""What is used up is told once a period, to those whom it concerns."""

import asyncio
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from sqlalchemy import insert, select, text, update

from app.alerts import endpoints, thresholds
from app.alerts.levels import Level, read_levels
from app.billing import catalog
from app.billing.prices import PRICES
from app.db import Database
from app.tables import CreditEntry, MeteringPeriod, Notification, OrgBudget, Subscription, UsageEvent, new_id
from tests.factories import make_org, make_user

NOW = datetime.now(UTC)
MONTH = NOW.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
ALERTS = text("SELECT measure, percent FROM alerts ORDER BY measure, percent")


async def set_budget(database: Database, org_id: UUID, **values: object) -> None:
    async with database.begin() as connection:
        await connection.execute(update(OrgBudget).where(OrgBudget.org_id == org_id).values(values))


async def levels_of(database: Database, org_id: UUID, now: datetime = NOW) -> list[Level]:
    async with database.begin() as connection:
        return await read_levels(connection, org_id, now)


async def alerts(database: Database) -> list[tuple[str, int]]:
    async with database.begin() as connection:
        return [tuple(row) for row in await connection.execute(ALERTS)]


async def notifications(database: Database) -> list[tuple[str, str, int]]:
    async with database.begin() as connection:
        rows = await connection.execute(select(Notification.channel, Notification.target, Notification.event))
        return sorted((row.channel, row.target, row.event["data"]["percent"]) for row in rows)


async def test_an_organisation_without_limits_has_no_levels(database: Database) -> None:
    org_id = await make_org(database)
    await set_budget(database, org_id, plan="internal")
    assert await levels_of(database, org_id) == []


async def test_caps_and_limits_are_those_of_this_month(database: Database) -> None:
    org_id = await make_org(database)
    await set_budget(database, org_id, spend_cap=200, cost_used=99, monthly_token_limit=10, tokens_used=8)
    assert await levels_of(database, org_id) == [
        Level("spend_cap", MONTH, 99, 200),
        Level("token_limit", MONTH, 8, 10),
    ]
    following = MONTH + timedelta(days=32)
    assert [level.used for level in await levels_of(database, org_id, following)] == [0, 0]


async def test_a_plan_brings_its_own_limit(database: Database) -> None:
    org_id = await make_org(database)
    await set_budget(database, org_id, plan="free", tokens_used=7)
    limit = catalog.plan("free").monthly_token_limit
    assert [(level.measure, level.used, level.limit) for level in await levels_of(database, org_id)] == [
        ("token_limit", 7, limit)
    ]


async def test_credit_is_counted_from_when_some_was_last_added(database: Database) -> None:
    org_id = await make_org(database)
    await set_budget(database, org_id, plan="prepaid", credit=0)
    assert await levels_of(database, org_id) == []
    at = NOW - timedelta(days=1)
    entries = [("purchase", 100, at), ("burn", -90, at + timedelta(hours=1)), ("purchase", 40, at + timedelta(hours=2))]
    async with database.begin() as connection:
        for kind, amount, created_at in entries:
            values = {"org_id": org_id, "kind": kind, "amount": amount, "ref_type": "t", "ref_id": str(created_at)}
            await connection.execute(insert(CreditEntry).values(**values, id=new_id(), created_at=created_at))
    await set_budget(database, org_id, credit=20)
    assert await levels_of(database, org_id) == [Level("credit", at + timedelta(hours=2), 30, 50)]


async def test_what_a_plan_includes_is_counted_in_the_metering_period(database: Database) -> None:
    org_id, subscription_id, start = await make_org(database), new_id(), NOW - timedelta(hours=2)
    plan = catalog.plan("starter")
    row = {
        "id": subscription_id,
        "org_id": org_id,
        "stripe_subscription_id": "sub_1",
        "plan": "starter",
        "plan_version": 1,
        "billing_interval": "month",
        "status": "active",
        "started_at": start,
        "period_start": start,
        "period_end": start + timedelta(days=30),
        "cancel_at_period_end": False,
        "is_current": True,
        "snapshot": {},
        "synced_at": NOW,
    }
    period = {"subscription_id": subscription_id, "is_trial": False, "claimed_until": start}
    usage = {
        "org_id": org_id,
        "key_id": new_id(),
        "model": "m",
        "model_digest": "d",
        "kind": "generation",
        "input_tokens": plan.included_tokens // 2,
        "output_tokens": 0,
        "started_at": NOW,
        "price_version": 1,
    }
    async with database.begin() as connection:
        await connection.execute(insert(Subscription).values(row))
        bounds = {"period_start": start, "period_end": start + timedelta(days=30)}
        await connection.execute(insert(MeteringPeriod).values(period | bounds))
        rows = [usage | {"id": new_id(), "billed_at": at} for at in (start - timedelta(hours=1), start)]
        await connection.execute(insert(UsageEvent), rows)
    used = plan.included_tokens // 2 * PRICES[1, "generation"].input // 1000
    assert await levels_of(database, org_id) == [Level("included", start, used, plan.included_value)]
    assert 2 * used == plan.included_value


@pytest.mark.parametrize(("used", "limit", "percent"), [(0, 0, 100), (1, 200, 0), (159, 200, 79), (160, 200, 80)])
def test_a_share_is_rounded_down(used: int, limit: int, percent: int) -> None:
    assert Level("spend_cap", NOW, used, limit).percent == percent


async def test_a_threshold_is_told_once_a_month(database: Database) -> None:
    org_id = await make_org(database)
    await make_user(database, org_id)
    await set_budget(database, org_id, spend_cap=100, cost_used=50)
    for _ in range(2):
        await thresholds.tell_due(database, NOW)
    assert await notifications(database) == [("mail", "someone@acme.example", 50)]
    following = (MONTH + timedelta(days=32)).replace(day=1)
    await set_budget(database, org_id, month=following.date(), cost_used=60)
    await thresholds.tell_due(database, following)
    assert len(await notifications(database)) == 2


async def test_an_alert_that_nobody_is_told_is_there_to_be_seen(database: Database) -> None:
    org_id = await make_org(database)
    await set_budget(database, org_id, spend_cap=0)
    await thresholds.tell_due(database, NOW)
    assert await notifications(database) == []
    assert await alerts(database) == [("spend_cap", 50), ("spend_cap", 80), ("spend_cap", 100)]


async def test_an_organisation_that_cannot_be_judged_keeps_nobody_from_being_told(database: Database) -> None:
    for plan in ("forgotten", "internal", "forgotten"):
        await set_budget(database, await make_org(database), plan=plan, spend_cap=0)
    await thresholds.tell_due(database, NOW)
    assert len(await alerts(database)) == 3


async def test_of_several_thresholds_at_once_the_highest_is_told(database: Database) -> None:
    org_id = await make_org(database)
    await make_user(database, org_id)
    await set_budget(database, org_id, spend_cap=100, cost_used=85)
    await thresholds.tell_due(database, NOW)
    assert await alerts(database) == [("spend_cap", 50), ("spend_cap", 80)]
    assert [percent for _, _, percent in await notifications(database)] == [80]


async def test_a_limit_that_is_changed_is_told_again_only_once_more_is_used(database: Database) -> None:
    org_id = await make_org(database)
    await make_user(database, org_id)
    told = []
    steps = [(100, 80), (1000, 80), (100, 80), (100, 100), (110, 100), (110, 110), (120, 119), (1000, 499), (1000, 500)]
    for cap, used in steps:
        before = len(await notifications(database))
        await set_budget(database, org_id, spend_cap=cap, cost_used=used)
        await thresholds.tell_due(database, NOW)
        told.append(len(await notifications(database)) - before)
    assert told == [1, 0, 0, 1, 0, 1, 0, 0, 1]
    assert [percent for _, _, percent in await notifications(database)] == [50, 80, 100, 100]


async def test_a_limit_that_is_lowered_to_what_is_used_is_told_in_full(database: Database) -> None:
    org_id = await make_org(database)
    await make_user(database, org_id)
    for cap in (100, 60):
        await set_budget(database, org_id, spend_cap=cap, cost_used=60)
        await thresholds.tell_due(database, NOW)
    assert [percent for _, _, percent in await notifications(database)] == [50, 100]


async def test_two_workers_tell_once(database: Database) -> None:
    org_id = await make_org(database)
    await make_user(database, org_id)
    for cap, used in ((100, 100), (200, 200)):
        await set_budget(database, org_id, spend_cap=cap, cost_used=used)
        await asyncio.gather(*(thresholds.tell_due(database, NOW) for _ in range(4)))
    assert [percent for _, _, percent in await notifications(database)] == [100, 100]


async def test_those_who_can_act_and_every_address_are_told(database: Database) -> None:
    org_id, other = await make_org(database), await make_org(database, "Other")
    for role in ("owner", "admin", "billing", "developer", "viewer"):
        await make_user(database, org_id, f"{role}@acme.example", role)
    await make_user(database, other, "foreign@other.example")
    async with database.begin() as connection:
        endpoint = await endpoints.add_endpoint(connection, org_id, "https://acme.example/hook")
        await endpoints.add_endpoint(connection, other, "https://other.example/hook")
    await set_budget(database, org_id, spend_cap=1, cost_used=1)
    await thresholds.tell_due(database, NOW)
    assert await notifications(database) == [
        ("mail", "admin@acme.example", 100),
        ("mail", "billing@acme.example", 100),
        ("mail", "owner@acme.example", 100),
        ("webhook", str(endpoint), 100),
    ]
    async with database.begin() as connection:
        listed = await thresholds.list_alerts(connection, org_id)
    assert [alert.percent for alert in listed] == [100, 80, 50]
