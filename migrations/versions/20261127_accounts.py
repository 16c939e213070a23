"""People: sign-ups, password resets, invitations, second factors, and what a login is shown by."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)

# Two owners who leave at once: the second waits for the first on the organisation's row,
# and then sees that nobody would be left. An organisation that is deleted is not there any more.
REFUSE_LAST_OWNER = """
CREATE FUNCTION refuse_last_owner() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM 1 FROM orgs WHERE id = OLD.org_id FOR NO KEY UPDATE;
    IF FOUND AND NOT EXISTS (SELECT FROM memberships WHERE org_id = OLD.org_id AND role = 'owner') THEN
        RAISE EXCEPTION 'an organisation has at least one owner' USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NULL;
END
$$
"""


def upgrade() -> None:
    people()
    logins()
    links()
    second_factors()


def people() -> None:
    op.add_column("users", sa.Column("language", sa.Text(), nullable=True))
    op.execute(REFUSE_LAST_OWNER)
    for event, condition in (
        ("DELETE", "OLD.role = 'owner'"),
        ("UPDATE", "OLD.role = 'owner' AND (NEW.role, NEW.org_id) IS DISTINCT FROM (OLD.role, OLD.org_id)"),
    ):
        op.execute(
            f"CREATE TRIGGER refuse_last_owner_{event.lower()} AFTER {event} ON memberships"
            f" FOR EACH ROW WHEN ({condition}) EXECUTE FUNCTION refuse_last_owner()"
        )


def logins() -> None:
    op.add_column("portal_sessions", sa.Column("org_id", sa.Uuid(), nullable=True))
    op.create_foreign_key(
        "fk_portal_sessions_org_id_orgs", "portal_sessions", "orgs", ["org_id"], ["id"], ondelete="SET NULL"
    )
    op.add_column("portal_sessions", sa.Column("last_seen_at", TIME, nullable=True))
    op.add_column("portal_sessions", sa.Column("ip", postgresql.INET(), nullable=True))
    op.add_column("portal_sessions", sa.Column("user_agent", sa.Text(), nullable=True))
    op.add_column("portal_sessions", sa.Column("awaits_code", sa.Boolean(), server_default="false", nullable=False))
    op.create_check_constraint(
        op.f("ck_portal_sessions_token_hash_length"), "portal_sessions", "octet_length(token_hash) = 32"
    )
    op.create_index("ix_portal_sessions_user_id", "portal_sessions", ["user_id"])


def links() -> None:
    op.create_table(
        "sign_ups",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("token_hash", sa.LargeBinary(), nullable=False),
        sa.Column("browser_hash", sa.LargeBinary(), nullable=False),
        sa.Column("email", sa.Text(), nullable=False),
        sa.Column("password_hash", sa.Text(), nullable=False),
        sa.Column("org_name", sa.Text(), nullable=False),
        sa.Column("language", sa.Text(), nullable=True),
        sa.Column("expires_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_sign_ups"),
        sa.UniqueConstraint("token_hash", name="uq_sign_ups_token_hash"),
        sa.CheckConstraint("octet_length(token_hash) = 32", name=op.f("ck_sign_ups_token_hash_length")),
    )
    op.create_index("ix_sign_ups_expires_at", "sign_ups", ["expires_at"])
    op.create_table(
        "password_resets",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("token_hash", sa.LargeBinary(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("expires_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_password_resets"),
        sa.UniqueConstraint("token_hash", name="uq_password_resets_token_hash"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name="fk_password_resets_user_id_users", ondelete="CASCADE"),
        sa.CheckConstraint("octet_length(token_hash) = 32", name=op.f("ck_password_resets_token_hash_length")),
    )
    op.create_index("ix_password_resets_expires_at", "password_resets", ["expires_at"])
    op.create_index("ix_password_resets_user_id", "password_resets", ["user_id"])
    op.create_table(
        "invitations",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("org_id", sa.Uuid(), nullable=False),
        sa.Column("email", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("token_hash", sa.LargeBinary(), nullable=False),
        sa.Column("invited_by", sa.Uuid(), nullable=True),
        sa.Column("created_at", TIME, server_default=sa.text("now()"), nullable=False),
        sa.Column("expires_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_invitations"),
        sa.UniqueConstraint("token_hash", name="uq_invitations_token_hash"),
        sa.ForeignKeyConstraint(["org_id"], ["orgs.id"], name="fk_invitations_org_id_orgs", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(
            ["invited_by"], ["users.id"], name="fk_invitations_invited_by_users", ondelete="SET NULL"
        ),
        sa.CheckConstraint(
            "role IN ('owner', 'admin', 'billing', 'developer', 'viewer')", name=op.f("ck_invitations_role")
        ),
        sa.CheckConstraint("email = lower(email) AND email <> ''", name=op.f("ck_invitations_email_lower")),
        sa.CheckConstraint("octet_length(token_hash) = 32", name=op.f("ck_invitations_token_hash_length")),
    )
    op.create_index("uq_invitations_org_id_email", "invitations", ["org_id", "email"], unique=True)
    op.create_index("ix_invitations_expires_at", "invitations", ["expires_at"])


def second_factors() -> None:
    op.create_table(
        "second_factors",
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("salt", sa.LargeBinary(), nullable=False),
        sa.Column("confirmed_at", TIME, nullable=True),
        sa.Column("last_counter", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("num_failures", sa.Integer(), server_default="0", nullable=False),
        sa.Column("locked_until", TIME, nullable=True),
        sa.PrimaryKeyConstraint("user_id", name="pk_second_factors"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name="fk_second_factors_user_id_users", ondelete="CASCADE"),
    )
    op.create_table(
        "recovery_codes",
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("code_hash", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("user_id", "code_hash", name="pk_recovery_codes"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name="fk_recovery_codes_user_id_users", ondelete="CASCADE"),
    )
