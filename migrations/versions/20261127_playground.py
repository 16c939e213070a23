"""The key that an organisation's playground is billed to."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # A constant default: no row is touched.
    op.add_column("api_keys", sa.Column("is_playground", sa.Boolean(), server_default="false", nullable=False))
    op.create_index(
        "uq_api_keys_playground",
        "api_keys",
        ["org_id"],
        unique=True,
        postgresql_where=sa.text("is_playground AND revoked_at IS NULL"),
    )
