"""What organisations are entitled to: decided from what they have paid for, and written where admission reads it."""

from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import insert, select, text, update
from sqlalchemy.exc import DBAPIError

from app.billing import catalog, credits, subscriptions
from app.billing.entitlement import Entitlement, Standing, apply, apply_all, decide
from app.db import Database
from app.partitions import ensure_partitions
from app.tables import OrgBudget, Payment, UsageEvent
from tests.billing.stripe_objects import END, MID, START, Object, make_customer, subscription
from tests.billing.test_rollups import event
from tests.factories import make_org

GRACE = timedelta(days=7)
USD = 10**12


@pytest.mark.parametrize(
    ("standing", "expected"),
    [
        (Standing("free"), Entitlement("free")),
        (Standing("free", "growth", "active"), Entitlement("growth")),
        (Standing("growth"), Entitlement("free")),
        (Standing("free", "starter", "trialing"), Entitlement("starter-trial")),
        (Standing("free", "growth", "trialing"), Entitlement("growth-trial")),  # an operator's gift
        (Standing("growth", "growth", "past_due", MID), Entitlement("growth")),
        (Standing("growth", "growth", "past_due", MID - GRACE + timedelta(seconds=1)), Entitlement("growth")),
        (Standing("growth", "growth", "past_due", MID - GRACE), Entitlement("growth", "past_due")),
        (Standing("growth", "growth", "unpaid", MID), Entitlement("growth", "past_due")),
        (Standing("free", has_had_credit=True, has_credit=True), Entitlement("prepaid")),
        (Standing("prepaid", has_had_credit=True), Entitlement("free")),
        (Standing("prepaid", "growth", "active", has_had_credit=True, has_credit=True), Entitlement("growth")),
        (Standing("growth", "growth", "active", is_disputed=True), Entitlement("growth", "disputed")),
        (Standing("growth", "growth", "unpaid", START, is_disputed=True), Entitlement("growth", "disputed")),
        (
            Standing("prepaid", has_had_credit=True, has_credit=True, is_disputed=True),
            Entitlement("prepaid", "disputed"),
        ),
        (Standing("internal"), None),
        (Standing("internal", is_disputed=True), None),
        (Standing("internal", "starter", "active", has_subscribed=True), Entitlement("starter")),
        (Standing("internal", has_subscribed=True), Entitlement("free")),
        (Standing("internal", has_had_credit=True, has_credit=True), Entitlement("prepaid")),
    ],
)
def test_entitlement_follows_from_what_is_known(standing: Standing, expected: Entitlement | None) -> None:
    assert decide(standing, MID, GRACE) == expected


def test_without_grace_a_payment_that_failed_restricts_at_once() -> None:
    assert decide(Standing("growth", "growth", "past_due", MID), MID, timedelta(0)) == Entitlement("growth", "past_due")


async def test_a_payment_that_fails_is_served_for_the_days_of_grace_and_restored_when_paid(database: Database) -> None:
    org_id = await make_customer(database)
    await subscribe(database, status="past_due", since=START)
    for moment, expected in (
        (START, ("starter", "active", None)),
        (START + GRACE - timedelta(seconds=1), ("starter", "active", None)),
        (START + GRACE, ("starter", "restricted", "past_due")),
    ):
        await apply_at(database, org_id, moment)
        assert await budget_of(database, org_id) == expected
    await subscribe(database, status="active", at=MID)
    await apply_at(database, org_id, START + GRACE)
    assert await budget_of(database, org_id) == ("starter", "active", None)


async def test_every_change_is_audited_and_nothing_else_is(database: Database) -> None:
    org_id = await make_customer(database)
    await subscribe(database)
    for _ in range(3):
        await apply_at(database, org_id, MID)
    async with database.begin() as connection:
        rows = (await connection.execute(text('SELECT actor, action, target, "before", "after" FROM audit_log'))).all()
    assert [tuple(row) for row in rows] == [
        (
            "stripe",
            "entitlement.change",
            f"org:{org_id}",
            {"plan": "free", "restriction": None},
            {"plan": "starter", "restriction": None},
        )
    ]


async def test_credit_makes_prepaid_and_its_end_free(database: Database) -> None:
    org_id = await make_customer(database)
    await add_credit(database, org_id, 5 * USD, "grant", "a")
    await apply_at(database, org_id, MID)
    assert await budget_of(database, org_id) == ("prepaid", "active", None)
    assert await credit_of(database, org_id) == 5 * USD
    await add_credit(database, org_id, -5 * USD, "adjust", "b")
    await apply_at(database, org_id, MID)
    assert await budget_of(database, org_id) == ("free", "active", None)
    assert await credit_of(database, org_id) is None


async def test_credit_is_kept_while_there_is_a_subscription_and_comes_back(database: Database) -> None:
    org_id = await make_customer(database)
    await add_credit(database, org_id, 5 * USD, "purchase", "a")
    await subscribe(database)
    await apply_at(database, org_id, MID)
    assert (await budget_of(database, org_id), await credit_of(database, org_id)) == (("starter", "active", None), None)
    await subscribe(database, status="canceled", at=END)
    await apply_at(database, org_id, END)
    assert await budget_of(database, org_id) == ("prepaid", "active", None)
    assert await credit_of(database, org_id) == 5 * USD


async def test_what_runs_on_credit_is_paid_from_it_before_the_plan_ends(database: Database) -> None:
    org_id = await make_customer(database)
    await add_credit(database, org_id, 5 * USD, "grant", "a")
    await apply_at(database, org_id, MID)
    await change_budget(database, org_id, credit=0, num_running=1)
    await apply_at(database, org_id, MID)
    assert (await budget_of(database, org_id))[0] == "prepaid"
    await change_budget(database, org_id, num_running=0)
    await apply_at(database, org_id, MID)
    assert (await budget_of(database, org_id))[0] == "free"


async def test_prepaid_usage_that_no_burn_shows_is_spent_all_the_same(database: Database) -> None:
    """The ledger alone would say that there is credit: the plan would come and go by the minute."""
    org_id = await make_customer(database)
    await add_credit(database, org_id, 1_000, "grant", "a")
    async with database.begin() as connection:
        await ensure_partitions(connection, START.date())
        used = event(START, started_at=START, org_id=org_id, is_prepaid=True)
        await connection.execute(insert(UsageEvent), [used])
    await apply_at(database, org_id, MID)
    assert (await budget_of(database, org_id))[0] == "free"


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ("needs_response", "disputed"),
        ("under_review", "disputed"),
        ("appeal_under_review", "disputed"),
        ("a word of the future", "disputed"),
        ("lost", "disputed"),
        ("won", None),
        ("prevented", None),
        ("warning_needs_response", None),
        ("warning_closed", None),
        (None, None),
    ],
)
async def test_a_disputed_payment_restricts_until_it_is_won(
    database: Database, status: str | None, expected: str | None
) -> None:
    org_id = await make_customer(database)
    await pay(database, org_id, "ch_1", START, status)
    await apply_at(database, org_id, MID)
    assert (await budget_of(database, org_id))[2] == expected


async def test_after_a_dispute_was_lost_the_next_payment_restores(database: Database) -> None:
    org_id = await make_customer(database)
    await pay(database, org_id, "ch_1", START, "lost")
    await pay(database, org_id, "ch_0", START - timedelta(days=30), None)
    await apply_at(database, org_id, MID)
    assert (await budget_of(database, org_id))[2] == "disputed"
    await pay(database, org_id, "ch_2", MID, None, refunded=2500)
    await apply_at(database, org_id, MID)
    assert (await budget_of(database, org_id))[2] == "disputed", "what was given back is no payment"
    await pay(database, org_id, "ch_3", MID, None)
    await apply_at(database, org_id, MID)
    assert await budget_of(database, org_id) == ("free", "active", None)


async def test_what_an_operator_has_restricted_stays_so(database: Database) -> None:
    org_id = await make_customer(database)
    await change_budget(database, org_id, status="restricted")
    await subscribe(database)
    await apply_at(database, org_id, MID)
    assert await budget_of(database, org_id) == ("starter", "restricted", None)


async def test_the_operators_own_and_the_unknown_are_left_alone(database: Database) -> None:
    org_id = await make_customer(database, plan="internal")
    await change_budget(database, org_id, credit=None, spend_cap=7)
    await apply_at(database, org_id, MID)
    await apply_at(database, UUID(int=7), MID)
    assert await budget_of(database, org_id) == ("internal", "active", None)


async def test_everybody_is_looked_at_now_and_then(database: Database) -> None:
    """A grace runs out without an event."""
    org_id = await make_customer(database)
    other = await make_org(database, "Other")
    await subscribe(database, status="past_due", since=START)
    await apply_all(database, START + GRACE, GRACE)
    assert await budget_of(database, org_id) == ("starter", "restricted", "past_due")
    before = await budget_of(database, other)
    await apply_all(database, START + GRACE, GRACE)
    assert await budget_of(database, other) == before
    async with database.begin() as connection:
        assert await connection.scalar(text("SELECT count(*) FROM audit_log WHERE org_id = :id"), {"id": org_id}) == 1


async def test_what_the_database_refuses_of_one_keeps_nobody_elses_entitlement(database: Database) -> None:
    orgs = [await make_org(database, f"Org {number}", plan="free") for number in range(3)]
    async with database.begin() as connection:
        for number, org_id in enumerate(orgs):
            # The first has more than a balance can be.
            for ref, amount in (("a", USD), ("b", 9 * 10**18), ("c", 9 * 10**18))[: 1 if number else 3]:
                await credits.add(connection, org_id, "grant", amount, "test", f"{ref}{org_id}")
    with pytest.raises(DBAPIError):
        await apply_all(database, MID, GRACE)
    assert [(await budget_of(database, org_id))[0] for org_id in orgs] == ["free", "prepaid", "prepaid"]


async def test_admission_knows_every_plan_that_is_ever_written() -> None:
    statuses = (None, "trialing", "active", "past_due", "unpaid")
    sold = [plan.name for plan in catalog.VERSIONS.values() if plan.kind == "subscription"]
    for name in (None, *sold):
        for status in statuses:
            decided = decide(Standing("free", name, status), MID, GRACE)
            assert decided is not None
            assert catalog.plan(decided.plan).name == decided.plan


async def subscribe(
    database: Database, *, status: str = "active", since: datetime | None = None, at: datetime = START
) -> None:
    async with database.begin() as connection:
        ended: Object = {"ended_at": int(at.timestamp())} if status == "canceled" else {}
        await subscriptions.project(connection, subscription(status=status, **ended), at, open_since=since)


async def add_credit(database: Database, org_id: UUID, amount: int, kind: credits.Kind, ref: str) -> None:
    async with database.begin() as connection:
        await credits.add(connection, org_id, kind, amount, "test", ref)


async def pay(
    database: Database, org_id: UUID, id: str, created: datetime, dispute: str | None, refunded: int = 0
) -> None:
    values = {
        "id": id,
        "org_id": org_id,
        "purpose": "invoice",
        "amount": 2500,
        "amount_refunded": refunded,
        "dispute_status": dispute,
        "created": created,
        "synced_at": created,
    }
    async with database.begin() as connection:
        await connection.execute(insert(Payment).values(values))


async def change_budget(database: Database, org_id: UUID, **values: Any) -> None:
    async with database.begin() as connection:
        await connection.execute(update(OrgBudget).where(OrgBudget.org_id == org_id).values(values))


async def apply_at(database: Database, org_id: UUID, now: datetime) -> None:
    async with database.begin() as connection:
        await apply(connection, org_id, now, GRACE)


async def budget_of(database: Database, org_id: UUID) -> tuple[str, str, str | None]:
    async with database.begin() as connection:
        columns = (OrgBudget.plan, OrgBudget.status, OrgBudget.restriction)
        row = (await connection.execute(select(*columns).where(OrgBudget.org_id == org_id))).one()
    return row.plan, row.status, row.restriction


async def credit_of(database: Database, org_id: UUID) -> int | None:
    async with database.begin() as connection:
        return await connection.scalar(select(OrgBudget.credit).where(OrgBudget.org_id == org_id))
