"""Terms of keys, news of their changes, and hour rollups of usage."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)

# One word on the channel per key; an empty one means: forget all. An organisation
# that is suspended concerns all its keys, and that is rare.
TELL_KEY_CHANGED = """
CREATE FUNCTION tell_key_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_TABLE_NAME = 'api_keys' THEN
        PERFORM pg_notify('tollgate_keys', encode(OLD.key_hash, 'hex'));
    ELSE
        PERFORM pg_notify('tollgate_keys', '');
    END IF;
    RETURN NULL;
END
$$
"""

# The shared lock makes a rollup of this hour wait until the change is committed.
MARK_HOUR_CHANGED = """
CREATE FUNCTION mark_hour_changed() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    billed_at timestamptz := CASE WHEN TG_OP = 'DELETE' THEN OLD.billed_at ELSE NEW.billed_at END;
BEGIN
    PERFORM pg_advisory_xact_lock_shared(hashtext('usage_rollups'));
    INSERT INTO rolled_hours (hour, is_current) VALUES (date_trunc('hour', billed_at, 'UTC'), false)
        ON CONFLICT (hour) DO UPDATE SET is_current = false;
    IF TG_OP = 'UPDATE' AND OLD.billed_at <> NEW.billed_at THEN
        INSERT INTO rolled_hours (hour, is_current) VALUES (date_trunc('hour', OLD.billed_at, 'UTC'), false)
            ON CONFLICT (hour) DO UPDATE SET is_current = false;
    END IF;
    RETURN NULL;
END
$$
"""


def upgrade() -> None:
    key_terms()
    news_of_keys()
    rollups()
    news_of_usage()


def key_terms() -> None:
    # Nullable and without a default: no row is touched.
    op.add_column("api_keys", sa.Column("allowed_models", postgresql.ARRAY(sa.Text()), nullable=True))
    op.add_column("api_keys", sa.Column("ip_allow", postgresql.ARRAY(postgresql.CIDR()), nullable=True))
    op.add_column("api_keys", sa.Column("revoke_reason", sa.Text(), nullable=True))
    op.add_column("api_keys", sa.Column("replaced_by", sa.Uuid(), nullable=True))
    op.add_column("api_keys", sa.Column("created_by", sa.Uuid(), nullable=True))
    op.add_column("api_keys", sa.Column("bucket_id", sa.Uuid(), nullable=True))
    for name, column, target in (
        ("fk_api_keys_replaced_by_api_keys", "replaced_by", "api_keys"),
        ("fk_api_keys_created_by_users", "created_by", "users"),
    ):
        op.create_foreign_key(name, "api_keys", target, [column], ["id"], ondelete="SET NULL")
    for name, condition in (
        ("allowed_models_present", "cardinality(allowed_models) > 0"),
        ("ip_allow_present", "cardinality(ip_allow) > 0"),
        ("replaced_by_another", "replaced_by <> id"),
        ("revoke_reason", "revoke_reason IN ('revoked', 'leaked', 'rotated')"),
    ):
        op.create_check_constraint(op.f(f"ck_api_keys_{name}"), "api_keys", condition)


def news_of_keys() -> None:
    op.execute(TELL_KEY_CHANGED)
    # The date of last use is left out: nothing that a request depends on.
    op.execute(
        "CREATE TRIGGER tell_key_changed AFTER DELETE OR UPDATE OF key_hash, scopes, requests_per_minute,"
        " tokens_per_minute, monthly_cap, allowed_models, ip_allow, expires_at, revoked_at ON api_keys"
        " FOR EACH ROW EXECUTE FUNCTION tell_key_changed()"
    )
    op.execute(
        "CREATE TRIGGER tell_key_changed AFTER UPDATE OF status ON orgs"
        " FOR EACH ROW EXECUTE FUNCTION tell_key_changed()"
    )


def rollups() -> None:
    op.create_table(
        "usage_rollup_hour",
        sa.Column("org_id", sa.Uuid(), nullable=False),
        sa.Column("hour", TIME, nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("key_id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("price_version", sa.SmallInteger(), nullable=False),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.Column("input_tokens", sa.BigInteger(), nullable=False),
        sa.Column("cached_tokens", sa.BigInteger(), nullable=False),
        sa.Column("output_tokens", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint(
            "org_id", "hour", "model", "key_id", "kind", "price_version", name="pk_usage_rollup_hour"
        ),
        sa.CheckConstraint(
            "extract(epoch FROM hour)::bigint % 3600 = 0", name=op.f("ck_usage_rollup_hour_hour_is_whole")
        ),
    )
    op.create_index("ix_usage_rollup_hour_hour", "usage_rollup_hour", ["hour"])
    op.create_table(
        "rolled_hours",
        sa.Column("hour", TIME, nullable=False),
        sa.Column("is_current", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("hour", name="pk_rolled_hours"),
    )
    op.create_index("ix_rolled_hours_stale", "rolled_hours", ["hour"], postgresql_where=sa.text("NOT is_current"))
    # Holds up writers while it is built: seconds for tens of millions of rows.
    op.create_index(
        "ix_usage_events_billed_at",
        "usage_events",
        ["billed_at"],
        postgresql_using="brin",
        postgresql_with={"autosummarize": "on"},
    )


def news_of_usage() -> None:
    op.execute(MARK_HOUR_CHANGED)
    # A row of the present has the time of its own transaction and costs one comparison.
    op.execute(
        "CREATE TRIGGER mark_hour_changed_by_insert AFTER INSERT ON usage_events"
        " FOR EACH ROW WHEN (NEW.billed_at < now()) EXECUTE FUNCTION mark_hour_changed()"
    )
    op.execute(
        "CREATE TRIGGER mark_hour_changed_by_update AFTER UPDATE OF id, org_id, key_id, model, kind, input_tokens,"
        " cached_tokens, output_tokens, billed_at, price_version ON usage_events"
        " FOR EACH ROW EXECUTE FUNCTION mark_hour_changed()"
    )
    op.execute(
        "CREATE TRIGGER mark_hour_changed_by_delete AFTER DELETE ON usage_events"
        " FOR EACH ROW EXECUTE FUNCTION mark_hour_changed()"
    )
