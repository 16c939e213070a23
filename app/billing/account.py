"""What an organisation is shown of its plan, its running period and its invoices.

Read from our own rows alone, so it can be shown while Stripe is away; how old it then
is, ``Account.unreported_since`` tells. Amounts of Stripe's are cents.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.billing import catalog
from app.billing.catalog import NANO_USD_PER_STANDARD_TOKEN, PLANS, Interval, Plan
from app.billing.prices import PICO_USD_PER_NANO_USD
from app.billing.statement import COST, PRICED, Query, read_lines
from app.errors import NotFound
from app.tables import Invoice, MeteringPeriod, OrgBudget, Subscription

REPORT_DELAY = timedelta(minutes=30)
"""Usage that waits longer for Stripe says that Stripe is away."""
MAX_INVOICES = 100
_MAX_LINES = 10_000
"""Models and kinds of work by month: more than there can be."""

# What was claimed is summed already, so what is left to be read is that of the last minutes. One statement, so that
# no claim comes between the two.
_USED = text(
    "SELECT (SELECT COALESCE(SUM(value), 0) FROM stripe_meter_outbox WHERE subscription_id = :subscription_id"  # noqa: S608 - constants
    " AND event_ts >= :start AND event_ts < :end AND state NOT IN ('replaced', 'written_off'))"
    f" * {PICO_USD_PER_NANO_USD}"
    f" + (SELECT COALESCE(SUM({COST}), 0) FROM usage_events u {PRICED} WHERE u.org_id = :org_id"
    " AND u.billed_at >= :start AND u.billed_at < :end AND u.claim_id IS NULL AND NOT u.is_prepaid)"
)
# A change of the plan has billed a part of the period already.
_BILLED = text(
    "SELECT COALESCE(SUM((line->>'quantity')::bigint), 0)::bigint FROM invoices i,"
    " jsonb_array_elements(i.lines) AS line WHERE i.stripe_subscription_id = :subscription"
    " AND (line->>'is_metered')::boolean AND i.status <> 'void'"
    " AND to_timestamp((line->'period'->>'start')::bigint) >= :start"
    " AND to_timestamp((line->'period'->>'end')::bigint) BETWEEN :start AND :now"
)
_WAITING = text(
    "SELECT min(created_at) FROM stripe_meter_outbox WHERE org_id = :org_id"
    " AND state IN ('pending', 'sending', 'reconcile') AND created_at < :before"
)
_CLAIMED_VALUE = text(
    "SELECT COALESCE(SUM(value), 0) FROM stripe_meter_outbox"
    " WHERE org_id = :org_id AND event_ts >= :start AND event_ts < :end AND replaces IS NULL"
    " AND state <> 'written_off'"
)
# By what claimed them: late rows are on the invoice of the period that claimed them.
_CLAIMED = text(
    f"SELECT u.model, u.kind, COUNT(*) AS requests, SUM(u.input_tokens)::bigint AS input_tokens,"  # noqa: S608 - constants
    f" SUM(u.output_tokens)::bigint AS output_tokens, SUM({COST}) AS cost"
    f" FROM stripe_meter_outbox o JOIN usage_events u ON u.claim_id = o.id AND u.org_id = o.org_id {PRICED}"
    " WHERE o.org_id = :org_id AND o.event_ts >= :start AND o.event_ts < :end AND o.replaces IS NULL"
    " AND o.state <> 'written_off'"
    " AND u.billed_at < :end GROUP BY u.model, u.kind ORDER BY u.model, u.kind"
)


@dataclass(frozen=True, slots=True)
class Held:
    """The subscription that entitles an organisation.

    Attributes:
        stripe_subscription_id: At Stripe.
        plan: In the version that was bought.
        status: Stripe's word.
        period_end: Of what is paid for.
        trial_end: While it is tried; None: it is not.
        ends_at: It ends then; None: it goes on.
        pending_plan: What it becomes at ``period_end``.
        past_due_since: When a payment first failed that is still due.
    """

    stripe_subscription_id: str
    plan: Plan
    interval: Interval
    status: str
    period_start: datetime
    period_end: datetime
    trial_end: datetime | None
    ends_at: datetime | None
    pending_plan: Plan | None
    past_due_since: datetime | None

    @property
    def flat_cents(self) -> int:
        """What it costs by its interval, without usage, discounts and tax."""
        return self.plan.flat_cents(self.interval)


@dataclass(frozen=True, slots=True)
class Running:
    """A period of usage that is not over.

    Attributes:
        value: List price of what was used so far, in nano-USD; 0 in a trial, in which nothing is metered.
        billed: How much of it has been billed already, by a change of the plan.
    """

    plan: Plan
    start: datetime
    end: datetime
    is_trial: bool
    value: int
    billed: int

    @property
    def tokens(self) -> int:
        """What was used and not billed yet, in standard tokens, rounded down."""
        return self._open // NANO_USD_PER_STANDARD_TOKEN

    @property
    def tokens_above(self) -> int:
        """Standard tokens beyond what is included, rounded up."""
        return -(-max(0, self._open - self.plan.included_value) // NANO_USD_PER_STANDARD_TOKEN)

    @property
    def cents(self) -> Decimal:
        """What the usage costs so far beside the flat price, exact."""
        return Decimal(0) if self.is_trial else catalog.cost_of_usage(self.plan, self._open)

    @property
    def _open(self) -> int:
        return max(0, self.value - self.billed)


@dataclass(frozen=True, slots=True)
class Account:
    """An organisation's standing.

    Attributes:
        plan: What its next request is judged by.
        restriction: Why nothing is served; None: it is.
        credit: Prepaid, 10^-12 USD; None: not prepaid.
        tokens_used: Input and output of this calendar month.
        unreported_since: Usage waits for Stripe since then; None: Stripe takes it.
    """

    plan: Plan
    restriction: str | None
    credit: int | None
    tokens_used: int
    held: Held | None
    running: Running | None
    unreported_since: datetime | None


@dataclass(frozen=True, slots=True)
class Used:
    """What one model did for an organisation in a period, as its invoice has it; ``cost`` in 10^-12 USD."""

    model: str
    kind: str
    requests: int
    input_tokens: int
    output_tokens: int
    cost: Decimal


async def read_account(connection: AsyncConnection, org_id: UUID, now: datetime) -> Account:
    """An organisation's standing at ``now``.

    Raises:
        NotFound: No such organisation.
    """
    budget = (await connection.execute(select(OrgBudget.__table__).where(OrgBudget.org_id == org_id))).one_or_none()
    if budget is None:
        raise NotFound("There is no organisation %(id)s.", values={"id": org_id}, code="org_not_found", param="org")
    current = select(Subscription.__table__).where(Subscription.org_id == org_id, Subscription.is_current)
    row = (await connection.execute(current)).one_or_none()
    held = None if row is None else _held(row)
    is_month_current = (budget.month.year, budget.month.month) == (now.year, now.month)
    return Account(
        plan=catalog.plan(budget.plan),
        restriction=budget.restriction,
        credit=budget.credit,
        tokens_used=budget.tokens_used if is_month_current else 0,
        held=held,
        running=None if row is None or held is None else await _running(connection, row.id, org_id, held, now),
        unreported_since=await connection.scalar(_WAITING, {"org_id": org_id, "before": now - REPORT_DELAY}),
    )


async def read_invoices(connection: AsyncConnection, org_id: UUID, limit: int = MAX_INVOICES) -> Sequence[Any]:
    """Rows of ``invoices``, newest first; drafts are not the customer's yet."""
    statement = select(Invoice.__table__).where(Invoice.org_id == org_id, Invoice.status != "draft")
    return (await connection.execute(statement.order_by(Invoice.created.desc(), Invoice.id).limit(limit))).all()


async def read_invoice(connection: AsyncConnection, org_id: UUID, invoice_id: str) -> Any:  # noqa: ANN401 - a row
    """A row of ``invoices``.

    Raises:
        NotFound: The organisation has no such invoice.
    """
    statement = select(Invoice.__table__).where(Invoice.org_id == org_id, Invoice.id == invoice_id)
    row = None if "\0" in invoice_id else (await connection.execute(statement)).one_or_none()
    if row is None or row.status == "draft":
        raise NotFound("There is no such invoice.", code="invoice_not_found")
    return row


async def read_used(connection: AsyncConnection, org_id: UUID, start: datetime, end: datetime) -> list[Used]:
    """What was claimed for a period, by model and kind of work.

    Args:
        connection: An open transaction.
        org_id: Whose.
        start: Of the period, inclusive.
        end: Exclusive.
    """
    bind = {"org_id": org_id, "start": start, "end": end}
    # Where no row was late or prepaid, what was claimed for the period is what was billed in it, which is summed.
    billed = await _read_billed(connection, org_id, start, end)
    claimed = await connection.scalar(_CLAIMED_VALUE, bind)
    if sum(one.cost for one in billed) == int(claimed or 0) * PICO_USD_PER_NANO_USD:
        return billed
    rows = await connection.execute(_CLAIMED, bind)
    return [Used(row.model, row.kind, row.requests, row.input_tokens, row.output_tokens, row.cost) for row in rows]


def metered_period(lines: Sequence[Mapping[str, Any]]) -> tuple[datetime, datetime] | None:
    """From when to when the usage on an invoice was made; None: there is none on it."""
    periods = [line["period"] for line in lines if line["is_metered"]]
    if not periods:
        return None
    start, end = min(one["start"] for one in periods), max(one["end"] for one in periods)
    return datetime.fromtimestamp(start, UTC), datetime.fromtimestamp(end, UTC)


async def _read_billed(connection: AsyncConnection, org_id: UUID, start: datetime, end: datetime) -> list[Used]:
    """What was billed in a period, by model and kind of work."""
    query = Query(org_id, start, end, "month", ("model", "kind"), _MAX_LINES)
    lines, _ = await read_lines(connection, query)
    sums: dict[tuple[str, str], Used] = {}
    for line in lines:
        key = (line.model or "", line.kind or "")
        one = sums.get(key, Used(*key, 0, 0, 0, Decimal(0)))
        sums[key] = Used(
            *key,
            one.requests + line.requests,
            one.input_tokens + line.input_tokens,
            one.output_tokens + line.output_tokens,
            one.cost + line.cost,
        )
    return [sums[key] for key in sorted(sums)]


def _held(row: Any) -> Held:  # noqa: ANN401 - a row of subscriptions
    return Held(
        stripe_subscription_id=row.stripe_subscription_id,
        plan=catalog.plan(row.plan, row.plan_version),
        interval=row.billing_interval,
        status=row.status,
        period_start=row.period_start,
        period_end=row.period_end,
        trial_end=row.trial_end if row.status == "trialing" else None,
        ends_at=row.cancel_at or (row.period_end if row.cancel_at_period_end else None),
        pending_plan=PLANS.get(row.pending_plan) if row.pending_plan else None,
        past_due_since=row.past_due_since,
    )


async def _running(
    connection: AsyncConnection, subscription_id: UUID, org_id: UUID, held: Held, now: datetime
) -> Running | None:
    within = select(MeteringPeriod.__table__).where(
        MeteringPeriod.subscription_id == subscription_id,
        MeteringPeriod.period_start <= now,
        MeteringPeriod.period_end > now,
    )
    period = (await connection.execute(within)).one_or_none()
    if period is None:
        return None
    span = {"org_id": org_id, "start": period.period_start, "end": period.period_end}
    cost = 0 if period.is_trial else await connection.scalar(_USED, {**span, "subscription_id": subscription_id})
    told = {"subscription": held.stripe_subscription_id, "start": period.period_start, "now": now}
    billed = await connection.scalar(_BILLED, told)
    value = int(cost or 0) // PICO_USD_PER_NANO_USD
    return Running(held.plan, period.period_start, period.period_end, period.is_trial, value, int(billed or 0))
