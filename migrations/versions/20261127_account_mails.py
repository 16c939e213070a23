"""Mails about accounts wait in a queue."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)
KINDS = "'sign_up', 'reset', 'invitation', 'password_changed', 'second_factor_on', 'second_factor_off'"


def upgrade() -> None:
    op.create_table(
        "account_mails",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("email", sa.Text(), nullable=False),
        sa.Column("language", sa.Text(), nullable=False),
        sa.Column("reference", sa.Uuid(), nullable=True),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("due_at", TIME, nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_account_mails"),
        sa.CheckConstraint(f"kind IN ({KINDS})", name=op.f("ck_account_mails_kind")),
    )
    op.create_index("ix_account_mails_due_at", "account_mails", ["due_at"])
