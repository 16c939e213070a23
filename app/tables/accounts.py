"""Who is a customer, who may log in, and with which keys."""

from datetime import date, datetime
from ipaddress import IPv4Network, IPv6Network
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Identity, Index, Integer, Text, func
from sqlalchemy.dialects.postgresql import ARRAY, CIDR, INET, JSONB
from sqlalchemy.orm import Mapped, mapped_column

from app.tables.base import THIS_MONTH, Base, new_id, one_of

ORG_STATUSES = ("active", "suspended")
ROLES = ("owner", "admin", "billing", "developer", "viewer")
REVOKE_REASONS = ("revoked", "leaked", "rotated")


class Org(Base):
    """A customer: owns keys, usage and money."""

    __tablename__ = "orgs"
    __table_args__ = (one_of("status", ORG_STATUSES), CheckConstraint("name <> ''", name="name_present"))

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    name: Mapped[str]
    status: Mapped[str] = mapped_column(server_default="active")
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    stripe_customer_id: Mapped[str | None] = mapped_column(unique=True)


class User(Base):
    """A person who may log in to the portal."""

    __tablename__ = "users"
    # The embedded server has no citext: one spelling per address is enforced here.
    __table_args__ = (CheckConstraint("email = lower(email) AND email <> ''", name="email_lower"),)

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    email: Mapped[str] = mapped_column(unique=True)
    password_hash: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Membership(Base):
    """What a user may do in an organisation."""

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
    """A login; the cookie's token is stored as a hash only."""

    __tablename__ = "portal_sessions"
    # The worker deletes expired logins.
    __table_args__ = (Index(None, "expires_at"),)

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    token_hash: Mapped[bytes] = mapped_column(unique=True)
    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime]


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
    """

    __tablename__ = "api_keys"
    __table_args__ = (
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
