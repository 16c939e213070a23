"""Who is a customer, who may log in, and with which keys."""

from datetime import date, datetime
from ipaddress import IPv4Network, IPv6Network
from typing import Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    ForeignKey,
    Identity,
    Index,
    Integer,
    SmallInteger,
    Text,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, CIDR, INET, JSONB
from sqlalchemy.orm import Mapped, mapped_column

from app.tables.base import THIS_MONTH, Base, new_id, one_of

ORG_STATUSES = ("active", "suspended")
ROLES = ("owner", "admin", "billing", "developer", "viewer")
MAIL_KINDS = ("sign_up", "reset", "invitation", "password_changed", "second_factor_on", "second_factor_off")
REVOKE_REASONS = ("revoked", "leaked", "rotated")


class Org(Base):
    """A customer: owns keys, usage and money.

    Attributes:
        prompt_retention_days: For how long its requests and answers are kept; None: not at all.
        delete_at: From then on the worker deletes it with all its data; None: never.
    """

    __tablename__ = "orgs"
    __table_args__ = (
        one_of("status", ORG_STATUSES),
        CheckConstraint("name <> ''", name="name_present"),
        CheckConstraint("prompt_retention_days BETWEEN 1 AND 90", name="prompt_retention_in_range"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    name: Mapped[str]
    status: Mapped[str] = mapped_column(server_default="active")
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    stripe_customer_id: Mapped[str | None] = mapped_column(unique=True)
    prompt_retention_days: Mapped[int | None] = mapped_column(SmallInteger())
    delete_at: Mapped[datetime | None]


class User(Base):
    """A person who may log in to the portal: whose address was confirmed.

    Attributes:
        language: In which mails are written; None: not known.
    """

    __tablename__ = "users"
    # The embedded server has no citext: one spelling per address is enforced here.
    __table_args__ = (CheckConstraint("email = lower(email) AND email <> ''", name="email_lower"),)

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    email: Mapped[str] = mapped_column(unique=True)
    password_hash: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    language: Mapped[str | None]


class Membership(Base):
    """What a user may do in an organisation; a trigger (``refuse_last_owner``) keeps one owner in each."""

    __tablename__ = "memberships"
    __table_args__ = (
        one_of("role", ROLES),
        # The organisations of the logged-in user.
        Index(None, "user_id"),
    )

    org_id: Mapped[UUID] = mapped_column(ForeignKey("orgs.id", ondelete="CASCADE"), primary_key=True)
    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), primary_key=True)
    role: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class PortalSession(Base):
    """A login; the cookie's token is stored as a hash only.

    Attributes:
        org_id: The organisation that is looked at; None: the first that was joined.
        last_seen_at: Dated every few minutes.
        awaits_code: The password was right, the second factor is still asked for.
    """

    __tablename__ = "portal_sessions"
    __table_args__ = (
        # The worker deletes expired logins.
        Index(None, "expires_at"),
        # The logins of a person.
        Index(None, "user_id"),
        CheckConstraint("octet_length(token_hash) = 32", name="token_hash_length"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    token_hash: Mapped[bytes] = mapped_column(unique=True)
    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime]
    org_id: Mapped[UUID | None] = mapped_column(ForeignKey("orgs.id", ondelete="SET NULL"))
    last_seen_at: Mapped[datetime | None]
    ip: Mapped[str | None] = mapped_column(INET())
    user_agent: Mapped[str | None]
    awaits_code: Mapped[bool] = mapped_column(server_default="false")


class SignUp(Base):
    """What a person asked for whose address is not confirmed: nothing exists before it is.

    Attributes:
        token_hash: Of the token in the mail; until it is sent, of none.
        browser_hash: Of the cookie that only the asking browser has.
    """

    __tablename__ = "sign_ups"
    __table_args__ = (
        # The worker deletes what was never confirmed.
        Index(None, "expires_at"),
        CheckConstraint("octet_length(token_hash) = 32", name="token_hash_length"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    token_hash: Mapped[bytes] = mapped_column(unique=True)
    browser_hash: Mapped[bytes]
    email: Mapped[str]
    password_hash: Mapped[str]
    org_name: Mapped[str]
    language: Mapped[str | None]
    expires_at: Mapped[datetime]


class PasswordReset(Base):
    """A link by which somebody who reads a person's mail may set a new password, once."""

    __tablename__ = "password_resets"
    __table_args__ = (
        # The worker deletes those that are over.
        Index(None, "expires_at"),
        # Those of a person, ended when one is used.
        Index(None, "user_id"),
        CheckConstraint("octet_length(token_hash) = 32", name="token_hash_length"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    token_hash: Mapped[bytes] = mapped_column(unique=True)
    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    expires_at: Mapped[datetime]


class Invitation(Base):
    """A role that waits in an organisation for whoever reads the mail of an address."""

    __tablename__ = "invitations"
    __table_args__ = (
        one_of("role", ROLES),
        CheckConstraint("email = lower(email) AND email <> ''", name="email_lower"),
        CheckConstraint("octet_length(token_hash) = 32", name="token_hash_length"),
        # One for each address; also the invitations of an organisation.
        Index("uq_invitations_org_id_email", "org_id", "email", unique=True),
        # The worker deletes those that are over.
        Index(None, "expires_at"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    org_id: Mapped[UUID] = mapped_column(ForeignKey("orgs.id", ondelete="CASCADE"))
    email: Mapped[str]
    role: Mapped[str]
    token_hash: Mapped[bytes] = mapped_column(unique=True)
    invited_by: Mapped[UUID | None] = mapped_column(ForeignKey("users.id", ondelete="SET NULL"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime]


class SecondFactor(Base):
    """An authenticator of a person. Its secret is not here: it follows from ``salt`` and the installation's key.

    Attributes:
        confirmed_at: From then on a login needs a code; None: being set up.
        last_counter: The 30 s step of the newest code that was accepted: none is accepted twice. While it is
            being set up, the step in which that was begun.
        num_failures: Wrong codes since then.
        locked_until: No code is accepted before; None: never locked.
    """

    __tablename__ = "second_factors"

    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), primary_key=True)
    salt: Mapped[bytes]
    confirmed_at: Mapped[datetime | None]
    last_counter: Mapped[int] = mapped_column(server_default="0")
    num_failures: Mapped[int] = mapped_column(Integer(), server_default="0")
    locked_until: Mapped[datetime | None]


class RecoveryCode(Base):
    """Stands in for the second factor once."""

    __tablename__ = "recovery_codes"

    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), primary_key=True)
    code_hash: Mapped[bytes] = mapped_column(primary_key=True)


class AccountMail(Base):
    """A mail about an account on its way to somebody; see ``app.accounts.mailings``. It holds no link.

    Attributes:
        reference: The sign-up or the invitation that it is about; None: nothing but the address.
        due_at: From then on whoever works on it may try; each attempt moves it first.
    """

    __tablename__ = "account_mails"
    __table_args__ = (
        one_of("kind", MAIL_KINDS),
        # What is to be sent.
        Index(None, "due_at"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    kind: Mapped[str]
    email: Mapped[str]
    language: Mapped[str]
    reference: Mapped[UUID | None]
    created_at: Mapped[datetime]
    due_at: Mapped[datetime]
    attempts: Mapped[int] = mapped_column(Integer(), server_default="0")


class Throttled(Base):
    """Whoever tried something lately, by the hash of a name; see ``app.throttle``. Not written ahead.

    Attributes:
        free_at: When nothing of it counts any more.
    """

    __tablename__ = "throttled"
    __table_args__ = (
        CheckConstraint("octet_length(name_hash) = 32", name="name_hash_length"),
        {"prefixes": ["UNLOGGED"]},
    )

    name_hash: Mapped[bytes] = mapped_column(primary_key=True)
    free_at: Mapped[datetime]


class ApiKey(Base):
    """A key as it is remembered: an HMAC of it, and enough to recognise it.

    A trigger (``tell_key_changed``) tells every process on the channel of
    ``app.key_cache`` when a row changes in what a request depends on.

    Attributes:
        requests_per_minute: Its own limit; None: the plan's. Likewise tokens.
        monthly_cap: What it may cost in a calendar month (UTC), in 10^-12 USD; None: no
            limit but the organisation's.
        allowed_models: Names; None: every model.
        ip_allow: Networks it may be used from; None: from anywhere.
        revoke_reason: None while it is not revoked, and of rows from before it was kept.
        replaced_by: The key that took its place in a rotation.
        bucket_id: Whose row of ``rate_buckets`` it draws from: that of the first key of its
            rotations; None: its own.
        created_by: The person, where it was made in the portal.
        is_playground: What members try in the portal is billed to it; nobody has it in full.
    """

    __tablename__ = "api_keys"
    __table_args__ = (
        # An organisation's playground has one key.
        Index(
            "uq_api_keys_playground",
            "org_id",
            unique=True,
            postgresql_where=text("is_playground AND revoked_at IS NULL"),
        ),
        # The keys of an organisation, newest first.
        Index(None, "org_id", "created_at"),
        CheckConstraint("requests_per_minute > 0", name="requests_per_minute_positive"),
        CheckConstraint("tokens_per_minute > 0", name="tokens_per_minute_positive"),
        CheckConstraint("octet_length(key_hash) = 32", name="key_hash_length"),
        CheckConstraint("monthly_cap >= 0", name="monthly_cap_not_negative"),
        CheckConstraint("cardinality(allowed_models) > 0", name="allowed_models_present"),
        CheckConstraint("cardinality(ip_allow) > 0", name="ip_allow_present"),
        CheckConstraint("replaced_by <> id", name="replaced_by_another"),
        one_of("revoke_reason", REVOKE_REASONS),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    org_id: Mapped[UUID] = mapped_column(ForeignKey("orgs.id", ondelete="CASCADE"))
    name: Mapped[str]
    key_hash: Mapped[bytes] = mapped_column(unique=True)
    prefix: Mapped[str]
    last4: Mapped[str]
    scopes: Mapped[list[str]] = mapped_column(ARRAY(Text()))
    requests_per_minute: Mapped[int | None] = mapped_column(Integer())
    tokens_per_minute: Mapped[int | None] = mapped_column(Integer())
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    last_used_at: Mapped[datetime | None]
    monthly_cap: Mapped[int | None]
    allowed_models: Mapped[list[str] | None] = mapped_column(ARRAY(Text()))
    ip_allow: Mapped[list[IPv4Network | IPv6Network] | None] = mapped_column(ARRAY(CIDR()))
    revoke_reason: Mapped[str | None]
    replaced_by: Mapped[UUID | None] = mapped_column(ForeignKey("api_keys.id", ondelete="SET NULL"))
    bucket_id: Mapped[UUID | None]
    created_by: Mapped[UUID | None] = mapped_column(ForeignKey("users.id", ondelete="SET NULL"))
    is_playground: Mapped[bool] = mapped_column(Boolean(), server_default="false")


class RateBucket(Base):
    """Token buckets of a key, refilled by the statement that draws from them, and its month's spending.

    Costs are 10^-12 USD, with the meaning that they have in ``OrgBudget``.
    """

    __tablename__ = "rate_buckets"
    __table_args__ = (CheckConstraint("cost_used >= 0 AND cost_held >= 0", name="costs_not_negative"),)

    key_id: Mapped[UUID] = mapped_column(ForeignKey("api_keys.id", ondelete="CASCADE"), primary_key=True)
    requests_level: Mapped[float]
    tokens_level: Mapped[float]
    updated_at: Mapped[datetime]
    month: Mapped[date] = mapped_column(server_default=THIS_MONTH)
    cost_used: Mapped[int] = mapped_column(server_default="0")
    cost_held: Mapped[int] = mapped_column(server_default="0")


class AuditEntry(Base):
    """Who changed what, chained: each entry's hash covers the one before; rows cannot be changed or deleted.

    Attributes:
        org_id: Whose matter it is; None: the installation's. No foreign key: entries outlive organisations.
        actor: ``user:ID``, ``key:ID``, ``operator``, ``stripe`` or ``tollgate`` (its own jobs).
        action: ``noun.verb``.
        target: What it was done to, as ``kind:id``.
        hash: SHA-256 of the entry and ``previous_hash``; see ``app.audit``.
    """

    __tablename__ = "audit_log"
    __table_args__ = (
        CheckConstraint("octet_length(hash) = 32 AND octet_length(previous_hash) = 32", name="hash_length"),
        # The entries of an organisation, newest first.
        Index(None, "org_id", "id"),
    )

    id: Mapped[int] = mapped_column(BigInteger(), Identity(always=True), primary_key=True)
    at: Mapped[datetime]
    org_id: Mapped[UUID | None]
    actor: Mapped[str]
    action: Mapped[str]
    target: Mapped[str]
    before: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    after: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    ip: Mapped[str | None] = mapped_column(INET())
    request_id: Mapped[UUID | None]
    previous_hash: Mapped[bytes]
    hash: Mapped[bytes]
