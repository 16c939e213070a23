"""All that events of Stripe's may have changed, to be compared and to be forgotten."""

from typing import Any

from sqlalchemy import text

from app.db import Database

# Without ids of our own and times of reading. Of periods nobody may hear until they are over.
_STATE = {
    "subscriptions": "SELECT stripe_subscription_id, plan, plan_version, billing_interval, status, started_at,"
    " trial_end, period_start, period_end, cancel_at_period_end, cancel_at, ended_at, pending_plan, past_due_since,"
    " is_current FROM subscriptions ORDER BY 1",
    "invoices": "SELECT id, status, total, amount_paid, lines FROM invoices ORDER BY 1",
    "payments": "SELECT id, purpose, invoice_id, amount, amount_refunded, dispute_status FROM payments ORDER BY 1",
    "credit": "SELECT kind, amount, ref_id FROM credit_ledger ORDER BY 1, 3",
    "budgets": "SELECT org_id, plan, status, restriction, credit FROM org_budgets ORDER BY 1",
    "waiting": "SELECT id FROM stripe_events WHERE processed_at IS NULL ORDER BY 1",
}
_FORGET = (
    "TRUNCATE stripe_events, metering_periods, subscriptions, invoices, payments, credit_ledger",
    "UPDATE org_budgets SET plan = 'free', status = 'active', restriction = NULL, credit = NULL",
)


async def state(database: Database) -> dict[str, list[tuple[Any, ...]]]:
    """By table, what we believe of Stripe and have made of it."""
    async with database.begin() as connection:
        return {
            name: [tuple(row) for row in (await connection.execute(text(statement))).all()]
            for name, statement in _STATE.items()
        }


async def forget(database: Database) -> None:
    """As if nothing had been heard from Stripe yet."""
    async with database.begin() as connection:
        for statement in _FORGET:
            await connection.execute(text(statement))
