"""Checks of what organisations have: prepaid credit, one subscription, a plan, an audit log in order."""

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import text

from app import audit
from app.billing import entitlement
from app.billing.catalog import PLANS
from app.billing.check import LIMIT, MAX_FINDINGS, Check, cost_of, read, snapshot
from app.db import Database

GRACES = (timedelta(0), timedelta(days=60))
"""The shortest and the longest that can be set: a budget has to be right under one of them."""

_CREDITS = text(
    "SELECT b.org_id, b.credit, COALESCE((SELECT sum(amount) FROM credit_ledger l WHERE l.org_id = b.org_id), 0)"
    " AS balance FROM org_budgets b WHERE b.credit IS NOT NULL ORDER BY b.org_id"
)
# What usage took from the credit and no entry of the ledger accounts for yet.
_UNCLAIMED = text(
    "SELECT org_id, kind, price_version, sum(input_tokens) AS input_tokens, sum(cached_tokens) AS cached_tokens,"
    " sum(output_tokens) AS output_tokens FROM usage_events WHERE is_prepaid AND claim_id IS NULL GROUP BY 1, 2, 3"
)
_PLANS = text("SELECT org_id, plan, credit IS NOT NULL AS is_prepaid FROM org_budgets ORDER BY org_id")
_LIVE = "status IN ('trialing', 'active', 'past_due', 'unpaid', 'paused') AND ended_at IS NULL"
_TOO_MANY = text(
    f"SELECT org_id, count(*) AS live, count(*) FILTER (WHERE is_current) AS current FROM subscriptions WHERE {_LIVE}"  # noqa: S608 - a constant
    " GROUP BY org_id HAVING count(*) <> 1 OR count(*) FILTER (WHERE is_current) <> 1 ORDER BY org_id LIMIT :limit"
)


async def find_unlike_credits(database: Database) -> list[str]:
    """Credits that are not the ledger's balance less what prepaid usage cost since."""
    async with snapshot(database) as connection:
        credits = (await connection.execute(_CREDITS)).all()
        unclaimed = (await connection.execute(_UNCLAIMED)).all()
    spent: dict[Any, int] = {}
    for row in unclaimed:
        spent[row.org_id] = spent.get(row.org_id, 0) + cost_of(row)
    return [
        f"organisation {row.org_id} has {row.credit} (10^-12 USD) of credit; its ledger {row.balance}, of which"
        f" {spent.get(row.org_id, 0)} is spent"
        for row in credits
        if row.credit != row.balance - spent.get(row.org_id, 0)
    ]


async def find_unlike_plans(database: Database) -> list[str]:
    """Budgets under a plan that does not exist, or that pay from credit under another plan than prepaid."""
    problems = []
    for row in await read(database, _PLANS):
        if row.plan not in PLANS:
            problems.append(f"organisation {row.org_id} is on the plan {row.plan}, which is not in the catalogue")
        elif row.is_prepaid != (PLANS[row.plan].kind == "prepaid"):
            problems.append(f"organisation {row.org_id} pays from credit, or not, against its plan {row.plan}")
    return problems


async def find_unlike_entitlements(database: Database) -> list[str]:
    """Budgets that grant something else than what was paid for, whatever grace is given."""
    async with snapshot(database) as connection:
        found = await entitlement.find_others(connection, datetime.now(UTC), GRACES)
    return [f"organisation {org_id} is entitled to something else than its budget says" for org_id in found]


async def find_subscriptions_in_excess(database: Database) -> list[str]:
    """Organisations with several subscriptions that live, or with one that does not count."""
    rows = await read(database, _TOO_MANY, LIMIT)
    return [
        f"organisation {row.org_id} has {row.live} subscriptions that live, of which {row.current} entitle it"
        for row in rows
    ]


async def find_broken_audit(database: Database) -> list[str]:
    """Entries of the audit log that were changed, taken out or put in."""
    async with snapshot(database) as connection:
        return await audit.find_broken(connection, MAX_FINDINGS + 1)


ACCOUNT_CHECKS = (
    Check("credit is the ledger", "Prepaid credit is what was paid in less what was used.", find_unlike_credits),
    Check("plans are the catalogue's", "An organisation is on a plan that there is.", find_unlike_plans),
    Check("budgets are entitlements", "Everybody gets what was paid for.", find_unlike_entitlements),
    Check("one subscription", "Nobody pays for two subscriptions at once.", find_subscriptions_in_excess),
    Check("the audit log is whole", "Nobody changed what was recorded.", find_broken_audit),
)
