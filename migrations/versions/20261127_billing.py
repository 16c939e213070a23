"""Subscriptions, metering, the inbox and the outbox, prepaid credit, and the audit log."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)
JSON = postgresql.JSONB

REFUSE_CHANGE = """
CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only', TG_TABLE_NAME USING ERRCODE = 'restrict_violation';
END
$$
"""
REFUSE_OTHER_EVENT = """
CREATE FUNCTION refuse_other_event() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (OLD.org_id, OLD.subscription_id, OLD.stripe_customer_id, OLD.meter, OLD.window_start, OLD.window_end, OLD.seq,
        OLD.value, OLD.event_ts, OLD.identifier) IS DISTINCT FROM
       (NEW.org_id, NEW.subscription_id, NEW.stripe_customer_id, NEW.meter, NEW.window_start, NEW.window_end, NEW.seq,
        NEW.value, NEW.event_ts, NEW.identifier) THEN
        RAISE EXCEPTION 'what a meter event says does not change' USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END
$$
"""
# The credit that there is opens the new ledger; it was given by operators.
OPEN_LEDGER = """
INSERT INTO credit_ledger (id, org_id, kind, amount, ref_type, ref_id)
SELECT gen_random_uuid(), org_id, 'adjust', credit, 'opening', org_id::text FROM org_budgets WHERE credit <> 0
"""


def upgrade() -> None:
    accounts()
    usage()
    subscriptions()
    inbox_and_outbox()
    credit()
    payments()
    audit()


def accounts() -> None:
    op.add_column("orgs", sa.Column("stripe_customer_id", sa.Text(), nullable=True))
    op.create_unique_constraint("uq_orgs_stripe_customer_id", "orgs", ["stripe_customer_id"])
    op.add_column("org_budgets", sa.Column("restriction", sa.Text(), nullable=True))
    op.create_check_constraint(
        op.f("ck_org_budgets_restriction"),
        "org_budgets",
        "restriction IN ('past_due', 'disputed') AND (restriction IS NULL OR status = 'restricted')",
    )
    op.alter_column("org_budgets", "plan", server_default="internal")
    op.execute(
        "UPDATE org_budgets SET plan = CASE WHEN credit IS NULL THEN 'internal' ELSE 'prepaid' END"
        " WHERE plan = 'standard'"
    )
    # A plan has rates, and a key that was looked up remembers them.
    op.execute(
        "CREATE TRIGGER tell_plan_changed AFTER UPDATE OF plan ON org_budgets"
        " FOR EACH ROW WHEN (OLD.plan <> NEW.plan) EXECUTE FUNCTION tell_key_changed()"
    )


def usage() -> None:
    # A constant default and a nullable column: no row is touched.
    op.add_column("usage_events", sa.Column("is_prepaid", sa.Boolean(), server_default="false", nullable=False))
    op.add_column("usage_events", sa.Column("claim_id", sa.Uuid(), nullable=True))
    for name, where in (
        ("ix_usage_events_unclaimed", "claim_id IS NULL AND NOT is_prepaid"),
        ("ix_usage_events_unburnt", "claim_id IS NULL AND is_prepaid"),
    ):
        op.create_index(name, "usage_events", ["org_id", "billed_at"], postgresql_where=sa.text(where))


def subscriptions() -> None:
    op.create_table(
        "catalog_prices",
        sa.Column("lookup_key", sa.Text(), nullable=False),
        sa.Column("stripe_price_id", sa.Text(), nullable=False),
        sa.Column("stripe_product_id", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.LargeBinary(), nullable=False),
        sa.Column("drift", sa.Text(), nullable=True),
        sa.Column("synced_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("lookup_key", name="pk_catalog_prices"),
        sa.UniqueConstraint("stripe_price_id", name="uq_catalog_prices_stripe_price_id"),
    )
    op.create_table(
        "subscriptions",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("org_id", sa.Uuid(), nullable=False),
        sa.Column("stripe_subscription_id", sa.Text(), nullable=False),
        sa.Column("stripe_schedule_id", sa.Text(), nullable=True),
        sa.Column("plan", sa.Text(), nullable=False),
        sa.Column("plan_version", sa.SmallInteger(), nullable=False),
        sa.Column("billing_interval", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("started_at", TIME, nullable=False),
        sa.Column("trial_end", TIME, nullable=True),
        sa.Column("period_start", TIME, nullable=False),
        sa.Column("period_end", TIME, nullable=False),
        sa.Column("cancel_at_period_end", sa.Boolean(), nullable=False),
        sa.Column("cancel_at", TIME, nullable=True),
        sa.Column("ended_at", TIME, nullable=True),
        sa.Column("pending_plan", sa.Text(), nullable=True),
        sa.Column("past_due_since", TIME, nullable=True),
        sa.Column("is_current", sa.Boolean(), nullable=False),
        sa.Column("snapshot", JSON(), nullable=False),
        sa.Column("synced_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_subscriptions"),
        sa.UniqueConstraint("stripe_subscription_id", name="uq_subscriptions_stripe_subscription_id"),
        sa.ForeignKeyConstraint(["org_id"], ["orgs.id"], name="fk_subscriptions_org_id_orgs", ondelete="CASCADE"),
        sa.CheckConstraint(
            "status IN ('incomplete', 'incomplete_expired', 'trialing', 'active', 'past_due', 'unpaid', 'paused',"
            " 'canceled')",
            name=op.f("ck_subscriptions_status"),
        ),
        sa.CheckConstraint("billing_interval IN ('month', 'year')", name=op.f("ck_subscriptions_billing_interval")),
    )
    op.create_index(
        "uq_subscriptions_current", "subscriptions", ["org_id"], unique=True, postgresql_where=sa.text("is_current")
    )
    op.create_index("ix_subscriptions_org_id_started_at", "subscriptions", ["org_id", "started_at"])
    op.create_table(
        "metering_periods",
        sa.Column("subscription_id", sa.Uuid(), nullable=False),
        sa.Column("period_start", TIME, nullable=False),
        sa.Column("period_end", TIME, nullable=False),
        sa.Column("is_trial", sa.Boolean(), nullable=False),
        sa.Column("claimed_until", TIME, nullable=False),
        sa.PrimaryKeyConstraint("subscription_id", "period_start", name="pk_metering_periods"),
        sa.ForeignKeyConstraint(
            ["subscription_id"],
            ["subscriptions.id"],
            name="fk_metering_periods_subscription_id_subscriptions",
            ondelete="CASCADE",
        ),
        sa.CheckConstraint("period_start < period_end", name=op.f("ck_metering_periods_not_empty")),
        sa.CheckConstraint(
            "claimed_until >= period_start AND claimed_until <= period_end",
            name=op.f("ck_metering_periods_claimed_within"),
        ),
    )
    op.create_index(
        "ix_metering_periods_open",
        "metering_periods",
        ["claimed_until"],
        postgresql_where=sa.text("NOT is_trial AND claimed_until < period_end"),
    )


def inbox_and_outbox() -> None:
    op.create_table(
        "stripe_events",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("created", TIME, nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("received_at", TIME, server_default=sa.text("now()"), nullable=False),
        sa.Column("due_at", TIME, server_default=sa.text("now()"), nullable=False),
        sa.Column("processed_at", TIME, nullable=True),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.Column("is_dead", sa.Boolean(), server_default="false", nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_stripe_events"),
    )
    op.create_index(
        "ix_stripe_events_due",
        "stripe_events",
        ["due_at"],
        postgresql_where=sa.text("processed_at IS NULL"),
    )
    op.create_table(
        "stripe_meter_outbox",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("org_id", sa.Uuid(), nullable=False),
        sa.Column("subscription_id", sa.Uuid(), nullable=False),
        sa.Column("stripe_customer_id", sa.Text(), nullable=False),
        sa.Column("meter", sa.Text(), nullable=False),
        sa.Column("window_start", TIME, nullable=False),
        sa.Column("window_end", TIME, nullable=False),
        sa.Column("seq", sa.Integer(), server_default="0", nullable=False),
        sa.Column("value", sa.BigInteger(), nullable=False),
        sa.Column("event_ts", TIME, nullable=False),
        sa.Column("identifier", sa.Uuid(), nullable=False),
        sa.Column("state", sa.Text(), server_default="pending", nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("due_at", TIME, server_default=sa.text("now()"), nullable=False),
        sa.Column("first_sent_at", TIME, nullable=True),
        sa.Column("acked_at", TIME, nullable=True),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.Column("replaces", sa.Uuid(), nullable=True),
        sa.Column("created_at", TIME, server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_stripe_meter_outbox"),
        sa.UniqueConstraint("identifier", name="uq_stripe_meter_outbox_identifier"),
        sa.CheckConstraint(
            "state IN ('pending', 'sending', 'acked', 'rejected', 'reconcile', 'replaced')",
            name=op.f("ck_stripe_meter_outbox_state"),
        ),
        sa.CheckConstraint(
            "value > 0 AND value < 1000000000000000", name=op.f("ck_stripe_meter_outbox_value_in_range")
        ),
    )
    op.create_index(
        "uq_stripe_meter_outbox_window",
        "stripe_meter_outbox",
        ["org_id", "meter", "window_start", "seq"],
        unique=True,
    )
    op.create_index(
        "ix_stripe_meter_outbox_due",
        "stripe_meter_outbox",
        ["due_at"],
        postgresql_where=sa.text("state IN ('pending', 'sending', 'reconcile')"),
    )
    op.execute(REFUSE_OTHER_EVENT)
    op.execute(
        "CREATE TRIGGER refuse_other_event BEFORE UPDATE ON stripe_meter_outbox"
        " FOR EACH ROW EXECUTE FUNCTION refuse_other_event()"
    )


def credit() -> None:
    op.create_table(
        "credit_ledger",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("org_id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("ref_type", sa.Text(), nullable=False),
        sa.Column("ref_id", sa.Text(), nullable=False),
        sa.Column("expires_at", TIME, nullable=True),
        sa.Column("note", sa.Text(), nullable=True),
        sa.Column("created_at", TIME, server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_credit_ledger"),
        sa.CheckConstraint(
            "kind IN ('grant', 'purchase', 'burn', 'expire', 'refund', 'adjust')", name=op.f("ck_credit_ledger_kind")
        ),
        sa.CheckConstraint("amount <> 0", name=op.f("ck_credit_ledger_amount_present")),
    )
    op.create_index("uq_credit_ledger_ref", "credit_ledger", ["kind", "ref_type", "ref_id"], unique=True)
    op.create_index("ix_credit_ledger_org_id_created_at", "credit_ledger", ["org_id", "created_at"])
    op.execute(OPEN_LEDGER)
    op.execute(REFUSE_CHANGE)
    refuse_change("credit_ledger")


def refuse_change(table: str) -> None:
    op.execute(
        f"CREATE TRIGGER refuse_change BEFORE UPDATE OR DELETE ON {table} FOR EACH ROW EXECUTE FUNCTION refuse_change()"
    )


def payments() -> None:
    op.create_table(
        "invoices",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("org_id", sa.Uuid(), nullable=False),
        sa.Column("stripe_subscription_id", sa.Text(), nullable=True),
        sa.Column("number", sa.Text(), nullable=True),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("subtotal", sa.BigInteger(), nullable=False),
        sa.Column("total", sa.BigInteger(), nullable=False),
        sa.Column("amount_due", sa.BigInteger(), nullable=False),
        sa.Column("amount_paid", sa.BigInteger(), nullable=False),
        sa.Column("period_start", TIME, nullable=False),
        sa.Column("period_end", TIME, nullable=False),
        sa.Column("created", TIME, nullable=False),
        sa.Column("finalized_at", TIME, nullable=True),
        sa.Column("hosted_invoice_url", sa.Text(), nullable=True),
        sa.Column("invoice_pdf", sa.Text(), nullable=True),
        sa.Column("lines", JSON(), nullable=False),
        sa.Column("metered_value", sa.BigInteger(), nullable=True),
        sa.Column("ledger_value", sa.BigInteger(), nullable=True),
        sa.Column("audited_at", TIME, nullable=True),
        sa.Column("synced_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_invoices"),
        sa.ForeignKeyConstraint(["org_id"], ["orgs.id"], name="fk_invoices_org_id_orgs", ondelete="CASCADE"),
    )
    op.create_index("ix_invoices_org_id_created", "invoices", ["org_id", "created"])
    op.create_table(
        "payments",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("org_id", sa.Uuid(), nullable=False),
        sa.Column("purpose", sa.Text(), nullable=False),
        sa.Column("invoice_id", sa.Text(), nullable=True),
        sa.Column("payment_intent_id", sa.Text(), nullable=True),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("amount_refunded", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("dispute_status", sa.Text(), nullable=True),
        sa.Column("created", TIME, nullable=False),
        sa.Column("synced_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_payments"),
        sa.ForeignKeyConstraint(["org_id"], ["orgs.id"], name="fk_payments_org_id_orgs", ondelete="CASCADE"),
        sa.CheckConstraint("purpose IN ('invoice', 'credit')", name=op.f("ck_payments_purpose")),
    )
    op.create_index("ix_payments_org_id_created", "payments", ["org_id", "created"])
    op.create_index("ix_payments_payment_intent_id", "payments", ["payment_intent_id"])


def audit() -> None:
    op.create_table(
        "audit_log",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("at", TIME, nullable=False),
        sa.Column("org_id", sa.Uuid(), nullable=True),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("before", JSON(), nullable=True),
        sa.Column("after", JSON(), nullable=True),
        sa.Column("ip", postgresql.INET(), nullable=True),
        sa.Column("request_id", sa.Uuid(), nullable=True),
        sa.Column("previous_hash", sa.LargeBinary(), nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_audit_log"),
        sa.CheckConstraint(
            "octet_length(hash) = 32 AND octet_length(previous_hash) = 32", name=op.f("ck_audit_log_hash_length")
        ),
    )
    op.create_index("ix_audit_log_org_id_id", "audit_log", ["org_id", "id"])
    refuse_change("audit_log")
