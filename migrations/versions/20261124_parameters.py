"""Parameters of usage rows, for replays."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Nullable and without a default: no row is touched, in no partition.
    op.add_column("usage_events", sa.Column("parameters", postgresql.JSONB(), nullable=True))
