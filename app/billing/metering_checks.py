"""Checks of usage on its way to Stripe and onto invoices.

What was claimed is what is sent and what is invoiced; nothing is left, nothing waits for ever.
"""

from datetime import timedelta

from sqlalchemy import text

from app.billing.check import LIMIT, Check, read
from app.billing.invoices import AUDITED_FOR
from app.billing.prices import PICO_USD_PER_NANO_USD
from app.billing.statement import COST, PRICED
from app.db import Database

# Far above what a worker that runs needs: windows are claimed a minute after their end and sent within seconds.
_PATIENCE = timedelta(hours=2)
# What is not confirmed for a day is doubted, and settled by Stripe's sums within hours.
_DOUBT_PATIENCE = timedelta(days=3)

# Retention drops usage by the month of its start. What was billed soon after the end of a dropped month may be gone
# too, so the first hours of what is kept are not compared.
_FIRST = "SELECT date_trunc('month', min(started_at), 'UTC') + interval '2 hours' AS at FROM usage_events"
_UNLIKE_CLAIMS = text(
    f"WITH first AS ({_FIRST}), claimed AS (SELECT u.claim_id AS id, sum({COST}) AS cost, min(u.billed_at) AS billed_at"  # noqa: S608 - constants
    f" FROM usage_events u {PRICED} WHERE u.claim_id IS NOT NULL GROUP BY 1), accounted AS ("
    " SELECT id, 'meter event' AS kind, value::numeric * :pico_per_nano AS cost, window_start AS at"
    " FROM stripe_meter_outbox WHERE replaces IS NULL"
    # The ledger outlives organisations, their usage does not.
    " UNION ALL SELECT id, 'burn', -amount, created_at FROM credit_ledger WHERE kind = 'burn'"
    " AND org_id IN (SELECT id FROM orgs))"
    " SELECT COALESCE(a.kind, 'claim') AS kind, id, COALESCE(c.cost, 0) AS rows_cost, COALESCE(a.cost, 0) AS cost"
    " FROM claimed c FULL JOIN accounted a USING (id) WHERE COALESCE(c.cost, 0) <> COALESCE(a.cost, 0)"
    " AND COALESCE(c.billed_at, a.at) >= (SELECT at FROM first) ORDER BY 2 LIMIT :limit"
)
_BROKEN_CHAINS = text(
    "SELECT o.id, o.state, count(n.id) AS successors FROM stripe_meter_outbox o"
    " LEFT JOIN stripe_meter_outbox n ON n.replaces = o.id AND n.value = o.value"
    " GROUP BY o.id, o.state HAVING count(n.id) <> (CASE WHEN o.state = 'replaced' THEN 1 ELSE 0 END)"
    " ORDER BY o.id LIMIT :limit"
)
_STUCK = text(
    "SELECT id, org_id, state, event_ts, last_error FROM stripe_meter_outbox WHERE state = 'rejected'"
    " OR (state IN ('pending', 'sending') AND created_at < now() - CAST(:patience AS interval))"
    " OR (state = 'reconcile' AND created_at < now() - CAST(:doubt_patience AS interval))"
    " ORDER BY event_ts LIMIT :limit"
)
# What lies before ``claimed_until`` and is not claimed came late; the next window takes it, if there is one of a
# subscription that had begun by then.
_LEFT = text(
    "SELECT s.org_id, p.period_start, count(*) AS rows FROM metering_periods p JOIN subscriptions s"
    " ON s.id = p.subscription_id JOIN usage_events u ON u.org_id = s.org_id AND u.billed_at >= p.period_start"
    " AND u.billed_at < p.claimed_until WHERE NOT p.is_trial AND u.claim_id IS NULL AND NOT u.is_prepaid"
    " AND s.status NOT IN ('incomplete', 'incomplete_expired') AND NOT EXISTS (SELECT 1 FROM metering_periods later"
    " JOIN subscriptions t ON t.id = later.subscription_id WHERE t.org_id = s.org_id AND NOT later.is_trial"
    " AND later.claimed_until < later.period_end AND u.billed_at >= (SELECT min(period_start) FROM metering_periods"
    " WHERE subscription_id = t.id AND NOT is_trial)) GROUP BY 1, 2 ORDER BY 1, 2 LIMIT :limit"
)
_BEHIND = text(
    "SELECT s.org_id, p.claimed_until FROM metering_periods p JOIN subscriptions s ON s.id = p.subscription_id"
    " WHERE NOT p.is_trial AND p.claimed_until < LEAST(p.period_end, now() - CAST(:patience AS interval))"
    " AND s.status NOT IN ('incomplete', 'incomplete_expired') ORDER BY 2, 1 LIMIT :limit"
)
# As the worker found it last: it compares them again while they are recent.
_UNLIKE_INVOICES = text(
    "SELECT id, org_id, metered_value, ledger_value FROM invoices WHERE metered_value <> ledger_value"
    " AND status IN ('open', 'paid', 'uncollectible') AND created > now() - CAST(:audited_for AS interval)"
    " ORDER BY created, id LIMIT :limit"
)


async def find_unlike_claims(database: Database) -> list[str]:
    """Meter events and burns that are not the sum of the rows they claim."""
    rows = await read(database, _UNLIKE_CLAIMS, {**LIMIT, "pico_per_nano": PICO_USD_PER_NANO_USD})
    problems = [f"{row.kind} {row.id} is of {row.cost} (10^-12 USD), its rows of {row.rows_cost}" for row in rows]
    chains = await read(database, _BROKEN_CHAINS, LIMIT)
    return problems + [
        f"meter event {row.id} is {row.state}, and {row.successors} others carry its value" for row in chains
    ]


async def find_stuck_events(database: Database) -> list[str]:
    """Meter events that Stripe refused, or that wait for longer than anything explains."""
    bind = {**LIMIT, "patience": _PATIENCE, "doubt_patience": _DOUBT_PATIENCE}
    return [
        f"meter event {row.id} of organisation {row.org_id} ({row.event_ts}) is {row.state}: {row.last_error}"
        for row in await read(database, _STUCK, bind)
    ]


async def find_unclaimed_usage(database: Database) -> list[str]:
    """Usage of metering periods that nobody claims, and periods whose windows are not closed."""
    left = await read(database, _LEFT, LIMIT)
    behind = await read(database, _BEHIND, {**LIMIT, "patience": _PATIENCE})
    problems = [
        f"{row.rows} rows of organisation {row.org_id} in the period from {row.period_start} are on no invoice"
        for row in left
    ]
    return problems + [f"organisation {row.org_id} is claimed until {row.claimed_until} only" for row in behind]


async def find_unlike_invoices(database: Database) -> list[str]:
    """Recent invoices whose metered lines count something else than was claimed for their periods."""
    rows = await read(database, _UNLIKE_INVOICES, {**LIMIT, "audited_for": AUDITED_FOR})
    return [
        f"invoice {row.id} of organisation {row.org_id} counts {row.metered_value} (10^-9 USD of list price), the"
        f" ledger {row.ledger_value}"
        for row in rows
    ]


METERING_CHECKS = (
    Check("claims are the rows", "What is sent or burnt is the sum of usage rows, each in one.", find_unlike_claims),
    Check("usage reaches Stripe", "No meter event was refused, or waits for long.", find_stuck_events),
    Check("due usage is claimed", "Whatever is used under a subscription is metered.", find_unclaimed_usage),
    Check("invoices are the ledger", "A recent invoice has the usage that was claimed for it.", find_unlike_invoices),
)
