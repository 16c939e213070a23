"""Where an organisation stands this month: its plan, what it has used, what it may use.

The customer's own cap is set here as well. It is judged by admission with every
request; what runs already is paid for by its reservation.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import UUID

from sqlalchemy import select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from app.billing import catalog
from app.billing.catalog import Plan
from app.errors import NotFound
from app.tables import OrgBudget

_SHORTEST = timedelta(days=1)
_MICROSECOND = timedelta(microseconds=1)

_STANDING = text(
    "SELECT b.plan, b.restriction, b.month, b.tokens_used, b.cost_used, b.monthly_token_limit, b.max_concurrent,"
    " b.spend_cap, b.own_spend_cap, b.credit, o.created_at"
    " FROM org_budgets b JOIN orgs o ON o.id = b.org_id WHERE b.org_id = :org_id"
)


@dataclass(frozen=True, slots=True)
class Standing:
    """An organisation's limits and how far it has got; amounts in 10^-12 USD.

    Attributes:
        plan: What its next request is judged by.
        restriction: Why nothing is served; None: it is.
        tokens_used: Input and output of this calendar month (UTC).
        token_limit: Of the same; None: no limit.
        max_concurrent: Requests at once.
        cost_used: Of this month, at list price.
        operator_spend_cap: Of a month, as an operator set it; None: no cap.
        own_spend_cap: Likewise, as the organisation set it itself.
        credit: Prepaid balance; None: not prepaid.
        created_at: When the organisation was.
    """

    plan: Plan
    restriction: str | None
    tokens_used: int
    token_limit: int | None
    max_concurrent: int
    cost_used: int
    operator_spend_cap: int | None
    own_spend_cap: int | None
    credit: int | None
    created_at: datetime

    @property
    def spend_cap(self) -> int | None:
        """Of a month, the lower of both, which admission judges by; None: no cap."""
        return min((cap for cap in (self.operator_spend_cap, self.own_spend_cap) if cap is not None), default=None)


async def read_standing(connection: AsyncConnection, org_id: UUID, now: datetime) -> Standing:
    """An organisation's standing at ``now``.

    Raises:
        NotFound: No such organisation.
    """
    row = (await connection.execute(_STANDING, {"org_id": org_id})).one_or_none()
    if row is None:
        raise _no_org(org_id)
    plan = catalog.plan(row.plan)
    # Whoever writes first in a new month starts its counts anew.
    is_current = (row.month.year, row.month.month) == (now.astimezone(UTC).year, now.astimezone(UTC).month)
    return Standing(
        plan=plan,
        restriction=row.restriction,
        tokens_used=row.tokens_used if is_current else 0,
        token_limit=plan.monthly_token_limit if row.monthly_token_limit is None else row.monthly_token_limit,
        max_concurrent=row.max_concurrent or plan.max_concurrent,
        cost_used=row.cost_used if is_current else 0,
        operator_spend_cap=row.spend_cap,
        own_spend_cap=row.own_spend_cap,
        credit=row.credit,
        created_at=row.created_at,
    )


async def set_own_spend_cap(connection: AsyncConnection, org_id: UUID, cap: int | None) -> int | None:
    """Sets the organisation's own cap of a month, or takes it away; the next admission sees it.

    An operator's cap stays beside it.

    Args:
        connection: An open transaction; the organisation's row is locked until it ends.
        org_id: The organisation.
        cap: In 10^-12 USD, at least 0; None: no cap.

    Returns:
        The cap before, in 10^-12 USD.

    Raises:
        NotFound: No such organisation.
    """
    assert cap is None or cap >= 0, "as it was read by parse_usd"
    statement = select(OrgBudget.own_spend_cap).where(OrgBudget.org_id == org_id).with_for_update()
    row = (await connection.execute(statement)).one_or_none()
    if row is None:
        raise _no_org(org_id)
    await connection.execute(update(OrgBudget).where(OrgBudget.org_id == org_id).values(own_spend_cap=cap))
    before: int | None = row.own_spend_cap
    return before


def forecast(spent: Decimal, recent: Decimal, since: datetime, now: datetime) -> Decimal:
    """What a month will have cost if it goes on as it did lately.

    Args:
        spent: Of the month so far.
        recent: From ``since`` to ``now``, in the same unit.
        since: Aware; less than a day counts as one, so that a first hour is not taken for a rule.
        now: Aware.

    Returns:
        In the same unit, rounded down.
    """
    now = now.astimezone(UTC)
    end = datetime(now.year + now.month // 12, now.month % 12 + 1, 1, tzinfo=UTC)
    return spent + recent * ((end - now) // _MICROSECOND) // (max(_SHORTEST, now - since) // _MICROSECOND)


def _no_org(org_id: UUID) -> NotFound:
    return NotFound("There is no organisation %(id)s.", values={"id": org_id}, code="org_not_found", param="org")
