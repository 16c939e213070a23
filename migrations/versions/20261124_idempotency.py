"""Idempotency keys and the answers that are kept for them."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "idempotency_keys",
        sa.Column("org_id", sa.Uuid(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.LargeBinary(), nullable=False),
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("request_id", sa.Uuid(), nullable=False),
        sa.Column("started_at", TIME, nullable=False),
        sa.Column("lease_until", TIME, nullable=False),
        sa.Column("expires_at", TIME, nullable=False),
        sa.Column("status", sa.SmallInteger(), nullable=True),
        sa.Column("headers", postgresql.JSONB(), nullable=True),
        sa.Column("is_complete", sa.Boolean(), server_default="false", nullable=False),
        sa.PrimaryKeyConstraint("org_id", "key", name="pk_idempotency_keys"),
        sa.UniqueConstraint("run_id", name="uq_idempotency_keys_run_id"),
        sa.ForeignKeyConstraint(["org_id"], ["orgs.id"], name="fk_idempotency_keys_org_id_orgs", ondelete="CASCADE"),
        sa.CheckConstraint("octet_length(fingerprint) = 32", name=op.f("ck_idempotency_keys_fingerprint_length")),
    )
    op.create_index("ix_idempotency_keys_expires_at", "idempotency_keys", ["expires_at"])
    op.create_table(
        "answer_parts",
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("run_id", "position", name="pk_answer_parts"),
        sa.ForeignKeyConstraint(
            ["run_id"],
            ["idempotency_keys.run_id"],
            name="fk_answer_parts_run_id_idempotency_keys",
            ondelete="CASCADE",
        ),
    )
