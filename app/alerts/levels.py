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
from app.billing.standing import read_standing
from app.billing.statement import Query, read_lines

Measure = Literal["spend_cap", "token_limit", "included", "credit"]

_PERIOD = text(
    "SELECT s.plan, s.plan_version, p.period_start FROM subscriptions s"
    " JOIN metering_periods p ON p.subscription_id = s.id AND NOT p.is_trial"
    " AND p.period_start <= :now AND p.period_end > :now WHERE s.org_id = :org_id AND s.is_current"
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
    """Every limit that the organisation has at present.

    Args:
        connection: An open transaction.
        org_id: The organisation.
        now: Says which month and metering period run.

    Raises:
        NotFound: No such organisation.
    """
    month = now.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    standing = await read_standing(connection, org_id, now)
    levels = []
    if standing.spend_cap is not None:
        levels.append(Level("spend_cap", month, standing.cost_used, standing.spend_cap))
    if standing.token_limit is not None:
        levels.append(Level("token_limit", month, standing.tokens_used, standing.token_limit))
    period = (await connection.execute(_PERIOD, {"org_id": org_id, "now": now})).one_or_none()
    if period is not None:
        levels.append(await _included(connection, org_id, period, now))
    if standing.credit is not None:
        levels += await _credit(connection, org_id, standing.credit)
    return levels


async def _included(connection: AsyncConnection, org_id: UUID, period: Row[Any], now: datetime) -> Level:
    query = Query(org_id, period.period_start, now, "month", limit=1000)
    lines, _ = await read_lines(connection, query)
    used = int(sum(line.cost for line in lines)) // PICO_USD_PER_NANO_USD
    plan = catalog.plan(period.plan, period.plan_version)
    return Level("included", period.period_start, used, plan.included_value)


async def _credit(connection: AsyncConnection, org_id: UUID, credit: int) -> list[Level]:
    last = (await connection.execute(_LAST_CREDIT, {"org_id": org_id})).one_or_none()
    if last is None or last.base <= 0:
        return []
    return [Level("credit", last.created_at, max(0, last.base - credit), last.base)]
