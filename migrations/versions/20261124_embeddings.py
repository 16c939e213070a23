"""Usage rows of embeddings."""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

NAME = "ck_usage_events_kind"


def upgrade() -> None:
    # The rows that are there satisfy it already: checked without holding up writers.
    op.execute(f"ALTER TABLE usage_events DROP CONSTRAINT {NAME}")
    op.execute(
        f"ALTER TABLE usage_events ADD CONSTRAINT {NAME}"
        " CHECK (kind IN ('generation', 'classification', 'embedding')) NOT VALID"
    )
    op.execute(f"ALTER TABLE usage_events VALIDATE CONSTRAINT {NAME}")
