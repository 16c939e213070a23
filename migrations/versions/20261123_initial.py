"""Organisations, users, keys, rate buckets and the usage ledger."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)
NOW = sa.func.now()

# The month that runs and three to come; the worker keeps three ahead from then on.
MONTH_PARTITIONS = """
DO $$
DECLARE
    first timestamptz;
BEGIN
    FOR ahead IN 0..3 LOOP
        first := (date_trunc('month', now() AT TIME ZONE 'UTC') + make_interval(months => ahead)) AT TIME ZONE 'UTC';
        EXECUTE format(
            'CREATE TABLE %I PARTITION OF usage_events FOR VALUES FROM (%L) TO (%L)',
            'usage_events_y' || to_char(first AT TIME ZONE 'UTC', 'YYYY"m"MM'),
            first,
            (first AT TIME ZONE 'UTC' + interval '1 month') AT TIME ZONE 'UTC'
        );
    END LOOP;
END
$$
"""


def upgrade() -> None:
    accounts()
    portal_sessions()
    keys()
    usage()
    op.execute(MONTH_PARTITIONS)


def accounts() -> None:
    op.create_table(
        "orgs",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), server_default="active", nullable=False),
        sa.Column("created_at", TIME, server_default=NOW, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_orgs"),
        sa.CheckConstraint("status IN ('active', 'suspended')", name=op.f("ck_orgs_status")),
        sa.CheckConstraint("name <> ''", name=op.f("ck_orgs_name_present")),
    )
    op.create_table(
        "users",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("email", sa.Text(), nullable=False),
        sa.Column("password_hash", sa.Text(), nullable=False),
        sa.Column("created_at", TIME, server_default=NOW, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_users"),
        sa.UniqueConstraint("email", name="uq_users_email"),
        sa.CheckConstraint("email = lower(email) AND email <> ''", name=op.f("ck_users_email_lower")),
    )
    op.create_table(
        "memberships",
        sa.Column("org_id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("created_at", TIME, server_default=NOW, nullable=False),
        sa.PrimaryKeyConstraint("org_id", "user_id", name="pk_memberships"),
        sa.ForeignKeyConstraint(["org_id"], ["orgs.id"], name="fk_memberships_org_id_orgs", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name="fk_memberships_user_id_users", ondelete="CASCADE"),
        sa.CheckConstraint(
            "role IN ('owner', 'admin', 'billing', 'developer', 'viewer')", name=op.f("ck_memberships_role")
        ),
    )
    op.create_index("ix_memberships_user_id", "memberships", ["user_id"])


def portal_sessions() -> None:
    op.create_table(
        "portal_sessions",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("token_hash", sa.LargeBinary(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("created_at", TIME, server_default=NOW, nullable=False),
        sa.Column("expires_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_portal_sessions"),
        sa.UniqueConstraint("token_hash", name="uq_portal_sessions_token_hash"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name="fk_portal_sessions_user_id_users", ondelete="CASCADE"),
    )
    op.create_index("ix_portal_sessions_expires_at", "portal_sessions", ["expires_at"])


def keys() -> None:
    op.create_table(
        "api_keys",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("org_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("key_hash", sa.LargeBinary(), nullable=False),
        sa.Column("prefix", sa.Text(), nullable=False),
        sa.Column("last4", sa.Text(), nullable=False),
        sa.Column("scopes", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("requests_per_minute", sa.Integer(), nullable=True),
        sa.Column("tokens_per_minute", sa.Integer(), nullable=True),
        sa.Column("expires_at", TIME, nullable=True),
        sa.Column("revoked_at", TIME, nullable=True),
        sa.Column("created_at", TIME, server_default=NOW, nullable=False),
        sa.Column("last_used_at", TIME, nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_api_keys"),
        sa.UniqueConstraint("key_hash", name="uq_api_keys_key_hash"),
        sa.ForeignKeyConstraint(["org_id"], ["orgs.id"], name="fk_api_keys_org_id_orgs", ondelete="CASCADE"),
        sa.CheckConstraint("requests_per_minute > 0", name=op.f("ck_api_keys_requests_per_minute_positive")),
        sa.CheckConstraint("tokens_per_minute > 0", name=op.f("ck_api_keys_tokens_per_minute_positive")),
        sa.CheckConstraint("octet_length(key_hash) = 32", name=op.f("ck_api_keys_key_hash_length")),
    )
    op.create_index("ix_api_keys_org_id_created_at", "api_keys", ["org_id", "created_at"])
    op.create_table(
        "rate_buckets",
        sa.Column("key_id", sa.Uuid(), nullable=False),
        sa.Column("requests_level", sa.Float(53), nullable=False),
        sa.Column("tokens_level", sa.Float(53), nullable=False),
        sa.Column("updated_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("key_id", name="pk_rate_buckets"),
        sa.ForeignKeyConstraint(
            ["key_id"], ["api_keys.id"], name="fk_rate_buckets_key_id_api_keys", ondelete="CASCADE"
        ),
    )


def usage() -> None:
    op.create_table(
        "usage_events",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("started_at", TIME, nullable=False),
        sa.Column("org_id", sa.Uuid(), nullable=False),
        sa.Column("key_id", sa.Uuid(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("model_digest", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("input_tokens", sa.BigInteger(), nullable=False),
        sa.Column("cached_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("output_tokens", sa.BigInteger(), nullable=False),
        sa.Column("finish_reason", sa.Text(), nullable=True),
        sa.Column("billed_at", TIME, server_default=NOW, nullable=False),
        sa.Column("engine_ms", sa.Float(53), server_default="0", nullable=False),
        sa.Column("price_version", sa.SmallInteger(), server_default="1", nullable=False),
        sa.Column("state", sa.Text(), server_default="final", nullable=False),
        sa.PrimaryKeyConstraint("id", "started_at", name="pk_usage_events"),
        sa.CheckConstraint("kind IN ('generation', 'classification')", name=op.f("ck_usage_events_kind")),
        sa.CheckConstraint("state IN ('final', 'recovered')", name=op.f("ck_usage_events_state")),
        sa.CheckConstraint(
            "input_tokens >= 0 AND cached_tokens >= 0 AND output_tokens >= 0 AND cached_tokens <= input_tokens",
            name=op.f("ck_usage_events_tokens_in_range"),
        ),
        postgresql_partition_by="RANGE (started_at)",
    )
    op.create_index("ix_usage_events_org_id_billed_at", "usage_events", ["org_id", "billed_at"])
