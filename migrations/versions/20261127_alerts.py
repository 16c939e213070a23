"""Alerts, customers' webhook addresses, and notifications on their way."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "alerts",
        sa.Column("org_id", sa.Uuid(), nullable=False),
        sa.Column("measure", sa.Text(), nullable=False),
        sa.Column("period_start", TIME, nullable=False),
        sa.Column("percent", sa.SmallInteger(), nullable=False),
        sa.Column("used", sa.BigInteger(), nullable=False),
        sa.Column("limit", sa.BigInteger(), nullable=False),
        sa.Column("reached_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("org_id", "measure", "period_start", "percent", name="pk_alerts"),
        sa.ForeignKeyConstraint(["org_id"], ["orgs.id"], name="fk_alerts_org_id_orgs", ondelete="CASCADE"),
        sa.CheckConstraint(
            "measure IN ('spend_cap', 'token_limit', 'included', 'credit')", name=op.f("ck_alerts_measure")
        ),
        sa.CheckConstraint("percent > 0", name=op.f("ck_alerts_percent_positive")),
    )
    op.create_table(
        "webhook_endpoints",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("org_id", sa.Uuid(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("secret_version", sa.Integer(), server_default="1", nullable=False),
        sa.Column("created_by", sa.Uuid(), nullable=True),
        sa.Column("created_at", TIME, server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_webhook_endpoints"),
        sa.ForeignKeyConstraint(["org_id"], ["orgs.id"], name="fk_webhook_endpoints_org_id_orgs", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(
            ["created_by"], ["users.id"], name="fk_webhook_endpoints_created_by_users", ondelete="SET NULL"
        ),
        sa.CheckConstraint("url <> ''", name=op.f("ck_webhook_endpoints_url_present")),
    )
    op.create_index("ix_webhook_endpoints_org_id", "webhook_endpoints", ["org_id"])
    op.create_table(
        "notifications",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("org_id", sa.Uuid(), nullable=False),
        sa.Column("channel", sa.Text(), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("event", postgresql.JSONB(), nullable=False),
        sa.Column("state", sa.Text(), server_default="pending", nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("due_at", TIME, nullable=False),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.Column("created_at", TIME, server_default=sa.text("now()"), nullable=False),
        sa.Column("sent_at", TIME, nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_notifications"),
        sa.ForeignKeyConstraint(["org_id"], ["orgs.id"], name="fk_notifications_org_id_orgs", ondelete="CASCADE"),
        sa.CheckConstraint("channel IN ('mail', 'webhook')", name=op.f("ck_notifications_channel")),
        sa.CheckConstraint("state IN ('pending', 'sent', 'failed')", name=op.f("ck_notifications_state")),
    )
    op.create_index("ix_notifications_due", "notifications", ["due_at"], postgresql_where=sa.text("state = 'pending'"))
    op.create_index("ix_notifications_org_id_created_at", "notifications", ["org_id", "created_at"])
