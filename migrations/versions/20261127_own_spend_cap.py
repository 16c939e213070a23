"""The cap that an organisation sets itself, beside an operator's.

Both were one column, so that either could lift the other's. Whose a cap is, is what the
audit log says of its last change.
"""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

_GIVE_BACK = """
UPDATE org_budgets b SET own_spend_cap = spend_cap, spend_cap = NULL
WHERE spend_cap IS NOT NULL AND (
    SELECT a.action FROM audit_log a
    WHERE a.org_id = b.org_id AND (a.action = 'cap.set' OR a.action = 'budget.set' AND a.after ? 'spend_cap')
    ORDER BY a.id DESC LIMIT 1
) = 'cap.set'
"""


def upgrade() -> None:
    # A row an organisation: checked at once.
    op.add_column("org_budgets", sa.Column("own_spend_cap", sa.BigInteger(), nullable=True))
    op.create_check_constraint(op.f("ck_org_budgets_own_spend_cap_not_negative"), "org_budgets", "own_spend_cap >= 0")
    op.execute(_GIVE_BACK)
