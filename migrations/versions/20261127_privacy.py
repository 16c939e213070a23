"""Requests that customers let us keep."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    # Nullable and without a default: no row is touched.
    op.add_column("orgs", sa.Column("prompt_retention_days", sa.SmallInteger(), nullable=True))
    op.create_check_constraint(
        op.f("ck_orgs_prompt_retention_in_range"), "orgs", "prompt_retention_days BETWEEN 1 AND 90"
    )
    op.add_column("orgs", sa.Column("delete_at", TIME, nullable=True))
    # A key that was looked up remembers it.
    op.execute("DROP TRIGGER tell_key_changed ON orgs")
    op.execute(
        "CREATE TRIGGER tell_key_changed AFTER UPDATE OF status, prompt_retention_days ON orgs"
        " FOR EACH ROW EXECUTE FUNCTION tell_key_changed()"
    )
    op.create_table(
        "stored_requests",
        sa.Column("request_id", sa.Uuid(), nullable=False),
        sa.Column("org_id", sa.Uuid(), nullable=False),
        sa.Column("started_at", TIME, nullable=False),
        sa.Column("route", sa.Text(), nullable=False),
        sa.Column("request", sa.LargeBinary(), nullable=False),
        sa.Column("answer", sa.LargeBinary(), nullable=False),
        sa.Column("expires_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("request_id", name="pk_stored_requests"),
        sa.ForeignKeyConstraint(["org_id"], ["orgs.id"], name="fk_stored_requests_org_id_orgs", ondelete="CASCADE"),
    )
    op.create_index("ix_stored_requests_org_id_started_at", "stored_requests", ["org_id", "started_at"])
    op.create_index("ix_stored_requests_expires_at", "stored_requests", ["expires_at"])
