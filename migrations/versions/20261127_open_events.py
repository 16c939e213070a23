"""Indexes for what grows by every quarter of an hour of every customer: meter events, and Stripe's events."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Only the worker writes here, and may wait; pages go on reading.
    op.create_index(
        "ix_stripe_meter_outbox_open",
        "stripe_meter_outbox",
        ["due_at"],
        postgresql_where=sa.text("state IN ('pending', 'sending', 'reconcile', 'rejected')"),
    )
    op.create_index(
        "ix_stripe_meter_outbox_subscription_id_event_ts", "stripe_meter_outbox", ["subscription_id", "event_ts"]
    )
    by_time("stripe_meter_outbox", "event_ts")
    # A webhook waits for a second; one that was not answered is sent again.
    by_time("stripe_events", "received_at")
    # Last: from here on readers wait as well.
    op.drop_index("ix_stripe_meter_outbox_due", "stripe_meter_outbox")


def by_time(table: str, column: str) -> None:
    op.create_index(
        f"ix_{table}_{column}", table, [column], postgresql_using="brin", postgresql_with={"autosummarize": "on"}
    )
