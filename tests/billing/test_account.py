"""What an organisation is shown of its plan, its running period and its invoices."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import UUID

import pytest

from app.billing import account, changes, claims
from app.billing.account import Account
from app.billing.changes import Desk
from app.db import Database
from app.errors import NotFound
from app.partitions import ensure_partitions
from app.tables import new_id
from tests.billing.metered import use
from tests.billing.stripe_world import GRACE, START, StripeWorld
from tests.factories import make_org

MILLION = 1_000_000 * 150
"""A million tokens of input at list price, in nano-USD."""


async def read(world: StripeWorld, org_id: object) -> Account:
    async with world.database.begin() as connection:
        return await account.read_account(connection, org_id, world.now)  # type: ignore[arg-type]


async def test_nobody_has_no_account(database: Database) -> None:
    async with database.begin() as connection:
        with pytest.raises(NotFound):
            await account.read_account(connection, new_id(), START)


async def test_who_has_bought_nothing_has_a_month_only(stripe_world: StripeWorld) -> None:
    org_id = await make_org(stripe_world.database, plan="free")
    seen = await read(stripe_world, org_id)
    assert (seen.plan.name, seen.held, seen.running, seen.credit) == ("free", None, None, None)


async def test_tokens_of_another_month_are_not_shown(stripe_world: StripeWorld) -> None:
    org_id = await make_org(stripe_world.database, plan="free")
    await stripe_world.run("UPDATE org_budgets SET tokens_used = 7, month = '2027-01-01'")
    assert (await read(stripe_world, org_id)).tokens_used == 7
    stripe_world.now = START + timedelta(days=1)
    assert (await read(stripe_world, org_id)).tokens_used == 0


async def test_what_runs_up_is_rated_as_the_plan_says(stripe_world: StripeWorld) -> None:
    async with stripe_world.database.begin() as connection:
        await ensure_partitions(connection, START.date())
    org_id, customer = await stripe_world.customer()
    stripe_world.subscribe(customer, "starter")
    await stripe_world.settle()
    before, later = START - timedelta(seconds=1), START + timedelta(days=1)
    await use(stripe_world.database, org_id, before, tokens=5_000_000)
    await use(stripe_world.database, org_id, later, tokens=5_000_000, is_prepaid=True)
    await use(stripe_world.database, org_id, later, tokens=102_000_001)
    running = (await read(stripe_world, org_id)).running
    assert running is not None
    assert (running.value, running.billed) == (102_000_001 * 150, 0)
    assert (running.tokens, running.tokens_above) == (102_000_001, 2_000_001)
    assert running.cents == Decimal("30.000015")
    assert not running.is_trial


async def test_what_a_change_has_billed_is_not_shown_as_due(stripe_world: StripeWorld) -> None:
    async with stripe_world.database.begin() as connection:
        await ensure_partitions(connection, START.date())
    org_id, customer = await stripe_world.customer()
    stripe_world.subscribe(customer, "starter")
    await stripe_world.settle()
    await use(stripe_world.database, org_id, START + timedelta(days=1), tokens=2_000_000)
    stripe_world.go(START + timedelta(days=14))
    desk = Desk(stripe_world.database, stripe_world.gateway, org_id, stripe_world.now, GRACE)
    await changes.change_plan(desk, "growth", "month")
    await stripe_world.settle()
    await use(stripe_world.database, org_id, START + timedelta(days=15), tokens=3_000_000)
    stripe_world.now = START + timedelta(days=16)
    running = (await read(stripe_world, org_id)).running
    assert running is not None
    assert (running.plan.name, running.value, running.billed) == ("growth", 5 * MILLION, 2 * MILLION)
    assert (running.tokens, running.tokens_above, running.cents) == (3_000_000, 0, Decimal(0))


async def test_a_trial_costs_nothing(stripe_world: StripeWorld) -> None:
    org_id, customer = await stripe_world.customer()
    stripe_world.subscribe(customer, "starter", trial_period_days=14)
    await stripe_world.settle()
    seen = await read(stripe_world, org_id)
    assert seen.running is not None
    assert seen.held is not None
    assert (seen.running.is_trial, seen.running.cents) == (True, Decimal(0))
    assert seen.held.trial_end == START + timedelta(days=14)


async def test_after_the_last_known_period_nothing_runs(stripe_world: StripeWorld) -> None:
    org_id, customer = await stripe_world.customer()
    stripe_world.subscribe(customer)
    await stripe_world.settle()
    stripe_world.now = START + timedelta(days=60)
    seen = await read(stripe_world, org_id)
    assert seen.held is not None
    assert seen.running is None


async def test_an_end_that_was_planned_at_stripe_is_shown(stripe_world: StripeWorld) -> None:
    org_id, customer = await stripe_world.customer()
    subscription = stripe_world.subscribe(customer)
    stripe_world.v1.subscriptions.update(subscription, {"cancel_at_period_end": True})
    await stripe_world.settle()
    held = (await read(stripe_world, org_id)).held
    assert held is not None
    assert held.ends_at == held.period_end


def test_an_invoice_without_usage_has_no_period_of_it() -> None:
    assert account.metered_period([{"is_metered": False, "period": {"start": 1, "end": 2}}]) is None


async def test_an_invoice_has_what_was_claimed_for_it_and_late_rows_are_on_the_next(stripe_world: StripeWorld) -> None:
    database = stripe_world.database
    async with database.begin() as connection:
        await ensure_partitions(connection, START.date())
    org_id, customer = await stripe_world.customer()
    stripe_world.subscribe(customer, "starter")
    await stripe_world.settle()
    turn, end = datetime(2027, 2, 28, 12, tzinfo=UTC), datetime(2027, 3, 31, 12, tzinfo=UTC)
    await use(database, org_id, START + timedelta(days=1), tokens=1_000)
    stripe_world.go(turn + timedelta(minutes=5))
    await stripe_world.settle()
    await claims.claim_due(database, stripe_world.now)
    assert await used(stripe_world, org_id, START, turn) == [1_000]
    await use(database, org_id, START + timedelta(days=2), tokens=500)
    stripe_world.go(turn + timedelta(hours=2))
    await stripe_world.settle()
    await claims.claim_due(database, stripe_world.now)
    assert await used(stripe_world, org_id, START, turn) == [1_000]
    assert await used(stripe_world, org_id, turn, end) == [500]


async def used(stripe_world: StripeWorld, org_id: UUID, start: datetime, end: datetime) -> list[int]:
    """Input tokens of each line behind the invoice of a period."""
    async with stripe_world.database.begin() as connection:
        return [one.input_tokens for one in await account.read_used(connection, org_id, start, end)]
