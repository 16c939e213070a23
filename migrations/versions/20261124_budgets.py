"""Budgets of organisations and keys, and reservations of requests that run."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)
MONTH = sa.text("(date_trunc('month', (now() AT TIME ZONE 'UTC')))::date")
# What this month's rows have cost so far, at the one price list that there was.
BACKFILL = """
INSERT INTO org_budgets (org_id, tokens_used, cost_used)
SELECT o.id, COALESCE(SUM(u.input_tokens + u.output_tokens), 0), COALESCE(SUM(
    (u.input_tokens - u.cached_tokens) * p.input + u.cached_tokens * p.cached + u.output_tokens * p.output), 0)
FROM orgs o
LEFT JOIN usage_events u ON u.org_id = o.id
    AND u.billed_at >= date_trunc('month', (now() AT TIME ZONE 'UTC')) AT TIME ZONE 'UTC'
LEFT JOIN (VALUES ('generation', 150000, 75000, 600000), ('classification', 100000, 100000, 0),
    ('embedding', 20000, 20000, 0)) AS p (kind, input, cached, output) ON p.kind = u.kind
GROUP BY o.id
"""
BACKFILL_KEYS = """
UPDATE rate_buckets b SET cost_used = spent.cost FROM (
    SELECT u.key_id, SUM((u.input_tokens - u.cached_tokens) * p.input + u.cached_tokens * p.cached
        + u.output_tokens * p.output) AS cost
    FROM usage_events u
    JOIN (VALUES ('generation', 150000, 75000, 600000), ('classification', 100000, 100000, 0),
        ('embedding', 20000, 20000, 0)) AS p (kind, input, cached, output) ON p.kind = u.kind
    WHERE u.billed_at >= date_trunc('month', (now() AT TIME ZONE 'UTC')) AT TIME ZONE 'UTC'
    GROUP BY u.key_id) AS spent
WHERE spent.key_id = b.key_id
"""


def upgrade() -> None:
    org_budgets()
    keys()
    reservations()
    op.execute(BACKFILL)
    op.execute(BACKFILL_KEYS)


def org_budgets() -> None:
    op.create_table(
        "org_budgets",
        sa.Column("org_id", sa.Uuid(), nullable=False),
        sa.Column("plan", sa.Text(), server_default="standard", nullable=False),
        sa.Column("status", sa.Text(), server_default="active", nullable=False),
        sa.Column("max_concurrent", sa.Integer(), nullable=True),
        sa.Column("monthly_token_limit", sa.BigInteger(), nullable=True),
        sa.Column("spend_cap", sa.BigInteger(), nullable=True),
        sa.Column("credit", sa.BigInteger(), nullable=True),
        sa.Column("month", sa.Date(), server_default=MONTH, nullable=False),
        sa.Column("tokens_used", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("tokens_held", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("cost_used", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("cost_held", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("num_running", sa.Integer(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("org_id", name="pk_org_budgets"),
        sa.ForeignKeyConstraint(["org_id"], ["orgs.id"], name="fk_org_budgets_org_id_orgs", ondelete="CASCADE"),
        sa.CheckConstraint("status IN ('active', 'restricted')", name=op.f("ck_org_budgets_status")),
        sa.CheckConstraint(
            "max_concurrent > 0 AND monthly_token_limit >= 0 AND spend_cap >= 0",
            name=op.f("ck_org_budgets_limits_in_range"),
        ),
        sa.CheckConstraint(
            "tokens_used >= 0 AND tokens_held >= 0 AND cost_used >= 0 AND cost_held >= 0 AND num_running >= 0",
            name=op.f("ck_org_budgets_counts_not_negative"),
        ),
    )
    # Every request updates its row: room on the page keeps the update off the index.
    op.execute("ALTER TABLE org_budgets SET (fillfactor = 50)")


def keys() -> None:
    op.add_column("api_keys", sa.Column("monthly_cap", sa.BigInteger(), nullable=True))
    op.create_check_constraint(op.f("ck_api_keys_monthly_cap_not_negative"), "api_keys", "monthly_cap >= 0")
    op.add_column("rate_buckets", sa.Column("month", sa.Date(), server_default=MONTH, nullable=False))
    for name in ("cost_used", "cost_held"):
        op.add_column("rate_buckets", sa.Column(name, sa.BigInteger(), server_default="0", nullable=False))
    op.create_check_constraint(
        op.f("ck_rate_buckets_costs_not_negative"), "rate_buckets", "cost_used >= 0 AND cost_held >= 0"
    )
    op.execute("ALTER TABLE rate_buckets SET (fillfactor = 50)")


def reservations() -> None:
    op.create_table(
        "reservations",
        sa.Column("request_id", sa.Uuid(), nullable=False),
        sa.Column("org_id", sa.Uuid(), nullable=False),
        sa.Column("key_id", sa.Uuid(), nullable=False),
        sa.Column("holder", sa.Uuid(), nullable=False),
        sa.Column("cost", sa.BigInteger(), nullable=False),
        sa.Column("tokens", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("request_id", name="pk_reservations"),
        sa.CheckConstraint("cost >= 0 AND tokens >= 0", name=op.f("ck_reservations_amounts_not_negative")),
    )
    # The sweeper: those that have expired. The table holds running requests only, so the
    # few that a dead process left are found without an index of their own.
    op.create_index("ix_reservations_expires_at", "reservations", ["expires_at"])
