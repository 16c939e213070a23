"""A state for meter events that a person charges nobody for."""

from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Only the worker writes here, and may wait while the rows are looked at.
    op.drop_constraint(op.f("ck_stripe_meter_outbox_state"), "stripe_meter_outbox")
    op.create_check_constraint(
        op.f("ck_stripe_meter_outbox_state"),
        "stripe_meter_outbox",
        "state IN ('pending', 'sending', 'acked', 'rejected', 'reconcile', 'replaced', 'written_off')",
    )
