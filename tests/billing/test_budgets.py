"""Limits as operators set them."""

from typing import Any

import pytest

from app import audit
from app.billing.budgets import Change, set_budget
from app.db import Database
from app.errors import BadRequest, Conflict, NotFound
from app.tables import new_id
from tests.factories import make_org

USD = 10**12


async def ask(database: Database, statement: str) -> tuple[Any, ...]:
    async with database.begin() as connection:
        return tuple((await connection.exec_driver_sql(statement)).one())


async def budget(database: Database) -> tuple[Any, ...]:
    columns = "plan, monthly_token_limit, spend_cap, max_concurrent, credit"
    return await ask(database, f"SELECT {columns} FROM org_budgets")


async def apply(database: Database, org_id: Any, *changes: Change) -> None:
    for change in changes:
        async with database.begin() as connection:
            await set_budget(connection, org_id, change)


async def test_what_is_given_is_set_and_the_rest_stays(database: Database) -> None:
    org_id = await make_org(database)
    assert await budget(database) == ("internal", None, None, None, None)
    first = Change(monthly_token_limit=5, spend_cap=1)
    await apply(database, org_id, first, Change(max_concurrent=3, spend_cap=2 * USD), Change(plan="free"))
    assert await budget(database) == ("free", 5, 2 * USD, 3, None)
    await apply(database, org_id, Change(plan="internal"))
    assert (await budget(database))[0] == "internal"


async def test_a_limit_that_is_lifted_is_the_plans_again(database: Database) -> None:
    org_id = await make_org(database)
    await apply(database, org_id, Change(monthly_token_limit=5, spend_cap=USD, max_concurrent=3))
    await apply(database, org_id, Change(lifted=("spend_cap", "max_concurrent")))
    assert await budget(database) == ("internal", 5, None, None, None)
    await apply(database, org_id, Change(lifted=("monthly_token_limit",)))
    assert await budget(database) == ("internal", None, None, None, None)


async def test_credit_adds_up_in_the_ledger(database: Database) -> None:
    org_id = await make_org(database)
    await apply(database, org_id, Change(credit=10 * USD), Change(credit=-25 * USD // 10))
    found = await ask(database, "SELECT sum(amount), array_agg(kind ORDER BY created_at) FROM credit_ledger")
    assert found == (7_500_000_000_000, ["grant", "adjust"])
    # Which is not for this to say: see app.billing.entitlement.
    assert await budget(database) == ("internal", None, None, None, None)


async def test_what_was_changed_is_in_the_audit_log(database: Database) -> None:
    org_id = await make_org(database)
    await apply(database, org_id, Change(max_concurrent=3))
    await apply(database, org_id, Change(spend_cap=USD, credit=5 * USD, lifted=("max_concurrent",)))
    async with database.begin() as connection:
        statement = 'SELECT actor, action, target, "before", "after" FROM audit_log ORDER BY id'
        (_, entry) = (await connection.exec_driver_sql(statement)).all()
    assert tuple(entry) == (
        audit.OPERATOR,
        "budget.set",
        f"org:{org_id}",
        {"spend_cap": None, "max_concurrent": 3},
        {"spend_cap": USD, "max_concurrent": None, "credit_added": 5 * USD},
    )


@pytest.mark.parametrize(
    "change",
    [
        Change(),
        Change(credit=0),
        Change(monthly_token_limit=-1),
        Change(spend_cap=-1),
        Change(max_concurrent=0),
        Change(plan="growth"),
        Change(plan="prepaid"),
        Change(lifted=("credit",)),
    ],
)
async def test_what_cannot_be_is_refused(database: Database, change: Change) -> None:
    org_id = await make_org(database)
    with pytest.raises(BadRequest):
        await apply(database, org_id, change)


async def test_a_customer_does_not_become_internal(database: Database) -> None:
    org_id = await make_org(database)
    await apply(database, org_id, Change(plan="free"), Change(credit=USD))
    with pytest.raises(Conflict, match="is a customer"):
        await apply(database, org_id, Change(plan="internal"))


async def test_a_plan_that_was_paid_for_is_not_taken_away(database: Database) -> None:
    org_id = await make_org(database)
    async with database.begin() as connection:
        await connection.exec_driver_sql("UPDATE org_budgets SET plan = 'growth'")
    with pytest.raises(Conflict, match="is on growth"):
        await apply(database, org_id, Change(plan="free"))


async def test_limits_of_nobody_cannot_be_set(database: Database) -> None:
    with pytest.raises(NotFound):
        await apply(database, new_id(), Change(max_concurrent=1))


async def test_a_change_that_fails_leaves_no_trace(database: Database) -> None:
    org_id = await make_org(database)
    with pytest.raises(Conflict):
        async with database.begin() as connection:
            await set_budget(connection, org_id, Change(credit=USD))
            await set_budget(connection, org_id, Change(plan="internal"))
    assert await ask(database, "SELECT (SELECT count(*) FROM audit_log), (SELECT count(*) FROM credit_ledger)") == (
        0,
        0,
    )
