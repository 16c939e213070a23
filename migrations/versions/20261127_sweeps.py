"""Up to when Stripe was asked for events that were never delivered."""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "stripe_sweeps",
        sa.Column("id", sa.SmallInteger(), server_default="1", autoincrement=False, nullable=False),
        sa.Column("until", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_stripe_sweeps"),
        sa.CheckConstraint("id = 1", name=op.f("ck_stripe_sweeps_one_row")),
    )
