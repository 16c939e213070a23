"""How much of each of its limits an organisation has used.

``spend_cap`` and ``credit`` are counted in 10^-12 USD, ``included`` in 10^-9 USD of list
price, ``token_limit`` in tokens.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.billing import catalog
from app.billing.prices import PICO_USD_PER_NANO_USD
from app.billing.statement import Query, read_lines
from app.errors import NotFound

Measure = Literal["spend_cap", "token_limit", "included", "credit"]

_BUDGET = text(
    "SELECT b.plan, b.spend_cap, b.monthly_token_limit, b.credit,"
    " CASE WHEN b.month = :month THEN b.cost_used ELSE 0 END AS cost_used,"
    " CASE WHEN b.month = :month THEN b.tokens_used ELSE 0 END AS tokens_used,"
    " s.plan AS bought, s.plan_version, p.period_start"
    " FROM org_budgets b"
    " LEFT JOIN subscriptions s ON s.org_id = b.org_id AND s.is_current"
    " LEFT JOIN metering_periods p ON p.subscription_id = s.id AND NOT p.is_trial"
    " AND p.period_start <= :now AND p.period_end > :now"
    " WHERE b.org_id = :org_id"
)
# What there was when credit was last added: all that is used since is used of that.
_LAST_CREDIT = text(
    "SELECT created_at, (SELECT sum(amount) FROM credit_ledger e WHERE e.org_id = l.org_id"
    " AND (e.created_at, e.id) <= (l.created_at, l.id))::bigint AS base"
    " FROM credit_ledger l WHERE org_id = :org_id AND amount > 0 ORDER BY created_at DESC, id DESC LIMIT 1"
)


@dataclass(frozen=True, slots=True)
class Level:
    """A limit and what is used of it.

    Attributes:
        period_start: Since when it is counted.
        used: In the unit of the measure, >= 0.
        limit: Likewise.
    """

    measure: Measure
    period_start: datetime
    used: int
    limit: int

    @property
    def percent(self) -> int:
        """The share that is used, rounded down; a limit of 0 is used up."""
        return 100 if not self.limit else self.used * 100 // self.limit


async def read_levels(connection: AsyncConnection, org_id: UUID, now: datetime) -> list[Level]:
    """Every limit that the organisation has at present; none where there is no such organisation.

    Args:
        connection: An open transaction.
        org_id: The organisation.
        now: Says which month and metering period run.
    """
    month = now.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    bind = {"org_id": org_id, "now": now, "month": month.date()}
    budget = (await connection.execute(_BUDGET, bind)).one_or_none()
    if budget is None:
        return []
    levels = []
    if budget.spend_cap is not None:
        levels.append(Level("spend_cap", month, budget.cost_used, budget.spend_cap))
    tokens = _token_limit(budget)
    if tokens is not None:
        levels.append(Level("token_limit", month, budget.tokens_used, tokens))
    if budget.period_start is not None:
        levels.append(await _included(connection, org_id, budget, now))
    if budget.credit is not None:
        levels += await _credit(connection, org_id, budget.credit)
    return levels


def _token_limit(budget: Row[Any]) -> int | None:
    if budget.monthly_token_limit is not None:
        return int(budget.monthly_token_limit)
    try:
        return catalog.plan(budget.plan).monthly_token_limit
    except NotFound:  # a plan that the catalogue has no more allows what it did
        return None


async def _included(connection: AsyncConnection, org_id: UUID, budget: Row[Any], now: datetime) -> Level:
    query = Query(org_id, budget.period_start, now, "month", limit=1000)
    lines, _ = await read_lines(connection, query)
    used = int(sum(line.cost for line in lines)) // PICO_USD_PER_NANO_USD
    plan = catalog.plan(budget.bought, budget.plan_version)
    return Level("included", budget.period_start, used, plan.included_value)


async def _credit(connection: AsyncConnection, org_id: UUID, credit: int) -> list[Level]:
    last = (await connection.execute(_LAST_CREDIT, {"org_id": org_id})).one_or_none()
    if last is None or last.base <= 0:
        return []
    return [Level("credit", last.created_at, max(0, last.base - credit), last.base)]
