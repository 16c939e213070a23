"""Attempts are counted for all processes together."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "throttled",
        sa.Column("name_hash", sa.LargeBinary(), nullable=False),
        sa.Column("free_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name_hash", name="pk_throttled"),
        sa.CheckConstraint("octet_length(name_hash) = 32", name=op.f("ck_throttled_name_hash_length")),
        # What a crash forgets here is no loss, and nobody waits for a disk.
        prefixes=["UNLOGGED"],
    )
