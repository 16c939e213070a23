"""What an organisation is entitled to: a function of what it has paid for, and its one writer.

``decide`` is that function, without a database or a clock of its own. ``apply`` writes its
answer into ``org_budgets``, from where admission reads it: money and requests meet in rows.
Time alone changes it too (a grace runs out), so ``apply_all`` looks at everybody now and
then.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal
from uuid import UUID

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from app import audit
from app.billing import catalog, credits
from app.billing.turns import Turns
from app.db import Database
from app.telemetry import get_logger

log = get_logger(__name__)

Restriction = Literal["past_due", "disputed"]

# Of a payment whose dispute was lost the money is gone: its customer is trusted again
# with the next payment. An inquiry (warning_…) has not taken any money yet.
_DISPUTED = """EXISTS (
    SELECT FROM payments p WHERE p.org_id = b.org_id
    AND p.dispute_status NOT IN ('won', 'prevented', 'warning_needs_response', 'warning_under_review', 'warning_closed')
    AND (p.dispute_status <> 'lost' OR NOT EXISTS (
        SELECT FROM payments later WHERE later.org_id = p.org_id AND later.created > p.created
        AND later.dispute_status IS NULL AND later.amount > later.amount_refunded))
)"""
_STANDING = f"""
SELECT b.org_id, b.plan AS budget_plan, b.status AS budget_status, b.restriction, b.credit, b.num_running,
    s.plan, s.status, s.past_due_since, {_DISPUTED} AS is_disputed,
    EXISTS (SELECT FROM subscriptions x WHERE x.org_id = b.org_id
        AND x.status NOT IN ('incomplete', 'incomplete_expired')) AS has_subscribed,
    EXISTS (SELECT FROM credit_ledger c WHERE c.org_id = b.org_id) AS has_had_credit,
    COALESCE(b.credit, (SELECT sum(amount) FROM credit_ledger c WHERE c.org_id = b.org_id), 0) > 0 AS has_credit
FROM org_budgets b LEFT JOIN subscriptions s ON s.org_id = b.org_id AND s.is_current
"""  # noqa: S608 - constants
_ALL = text(f"{_STANDING} ORDER BY b.org_id")
_ONE = text(f"{_STANDING} WHERE b.org_id = :org_id")
_LOCK = text("SELECT FROM org_budgets WHERE org_id = :org_id FOR UPDATE")
_WRITE = text(
    "UPDATE org_budgets SET plan = :plan, restriction = CAST(:restriction AS text), status ="
    " CASE WHEN CAST(:restriction AS text) IS NOT NULL"
    " THEN 'restricted' WHEN restriction IS NOT NULL THEN 'active' ELSE status END WHERE org_id = :org_id"
)


@dataclass(frozen=True, slots=True)
class Standing:
    """What is known of an organisation when it is decided upon.

    Attributes:
        budget_plan: What it has been entitled to so far.
        plan: Of its current subscription; None: it has none that lives. Likewise what follows.
        status: Stripe's word.
        past_due_since: When a payment first failed that is still due.
        has_subscribed: It ever had a subscription that was more than begun.
        has_had_credit: Prepaid credit was ever bought by it, or given to it.
        has_credit: There is some left.
        is_disputed: A payment of it is in dispute, or was lost to one and none has followed.
    """

    budget_plan: str
    plan: str | None = None
    status: str | None = None
    past_due_since: datetime | None = None
    has_subscribed: bool = False
    has_had_credit: bool = False
    has_credit: bool = False
    is_disputed: bool = False


@dataclass(frozen=True, slots=True)
class Entitlement:
    """What an organisation may do: a plan of the catalogue, and why not even that at present."""

    plan: str
    restriction: Restriction | None = None

    @property
    def is_prepaid(self) -> bool:
        """Whether its requests are paid from credit."""
        return self.plan == "prepaid"


def decide(standing: Standing, now: datetime, grace: timedelta) -> Entitlement | None:
    """What an organisation is entitled to at ``now``.

    Args:
        standing: All that is known of it.
        now: Aware.
        grace: How long it is served on after a payment has failed.

    Returns:
        None: it is the operator's own, and its budget is left alone.
    """
    if standing.budget_plan == "internal" and not (standing.has_subscribed or standing.has_had_credit):
        return None
    if standing.is_disputed:
        return Entitlement(_plan(standing), "disputed")
    if standing.status == "unpaid" or (standing.past_due_since is not None and standing.past_due_since + grace <= now):
        return Entitlement(_plan(standing), "past_due")
    return Entitlement(_plan(standing))


async def apply(connection: AsyncConnection, org_id: UUID, now: datetime, grace: timedelta) -> None:
    """Writes into ``org_budgets`` what the organisation is entitled to at ``now``; its next admission sees it.

    Takes what is written so far and asks Stripe nothing. Locks the budget, and the audit log
    where something changes: it is the last step of its transaction. A budget that an
    operator has restricted stays so.

    Args:
        connection: An open transaction.
        org_id: The organisation; one without a budget stays without.
        now: Aware.
        grace: How long it is served on after a payment has failed.
    """
    await connection.execute(_LOCK, {"org_id": org_id})
    row = (await connection.execute(_ONE, {"org_id": org_id})).one_or_none()
    if row is None:
        return
    entitlement = decide(await _exact_standing(connection, row), now, grace)
    if entitlement is None or not _changes(row, entitlement):
        return
    values = {"plan": entitlement.plan, "restriction": entitlement.restriction}
    await connection.execute(_WRITE, {"org_id": org_id, **values})
    await credits.switch(connection, org_id, is_prepaid=entitlement.is_prepaid)
    log.info("entitlement.changed", org_id=str(org_id), **values)
    await audit.record(
        connection,
        org_id=org_id,
        actor=audit.STRIPE,
        action="entitlement.change",
        target=f"org:{org_id}",
        before={"plan": row.budget_plan, "restriction": row.restriction},
        after=values,
    )


async def apply_all(database: Database, now: datetime, grace: timedelta) -> None:
    """Does so for every organisation for which it would change something; a transaction each.

    Raises:
        DBAPIError: The database refused it of one of them; the others have what they are entitled to.
    """
    async with database.begin() as connection:
        rows: Sequence[Row[tuple[object, ...]]] = (await connection.execute(_ALL)).all()
    turns = Turns("entitlement.failed")
    for row in rows:
        entitlement = decide(_standing(row), now, grace)
        if entitlement is not None and _changes(row, entitlement):
            with turns.of(org_id=str(row.org_id)):
                async with database.begin() as connection:
                    await apply(connection, row.org_id, now, grace)
    turns.end()


async def find_others(connection: AsyncConnection, now: datetime, graces: Sequence[timedelta]) -> list[UUID]:
    """Organisations whose budget says something else than what they are entitled to, under whichever of the graces."""
    found = []
    for row in (await connection.execute(_ALL)).all():
        standing = await _exact_standing(connection, row)
        decisions = [decide(standing, now, grace) for grace in graces]
        if all(decision is not None and _changes(row, decision) for decision in decisions):
            found.append(row.org_id)
    return found


async def _exact_standing(connection: AsyncConnection, row: Row[tuple[object, ...]]) -> Standing:
    standing = _standing(row)
    if row.credit is None and standing.has_credit:
        # Prepaid usage that no burn shows yet has been spent as well.
        return replace(standing, has_credit=await credits.balance(connection, row.org_id) > 0)
    return standing


def _plan(standing: Standing) -> str:
    if standing.plan is not None:
        return standing.plan + catalog.TRIAL if standing.status == "trialing" else standing.plan
    return "prepaid" if standing.has_credit else "free"


def _standing(row: Row[tuple[object, ...]]) -> Standing:
    return Standing(
        budget_plan=row.budget_plan,
        plan=row.plan,
        status=row.status,
        past_due_since=row.past_due_since,
        has_subscribed=row.has_subscribed,
        has_had_credit=row.has_had_credit,
        has_credit=row.has_credit,
        is_disputed=row.is_disputed,
    )


def _changes(row: Row[tuple[object, ...]], entitlement: Entitlement) -> bool:
    if row.budget_plan == "prepaid" and entitlement.plan == "free" and row.num_running:
        # What runs was admitted against credit and is still to be paid from it.
        return False
    return (row.budget_plan, row.restriction) != (entitlement.plan, entitlement.restriction)
