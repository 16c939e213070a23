"""All tables. Constraints live here and in the database, never in Python alone.

Ids are time-ordered UUIDs made by the application (``new_id``), so that a row's id
is known before it is written. Times are aware UTC, tokens are bigint, money is
an exact bigint of 10^-12 USD, the unit in which tokens x price is whole: up to nine
million USD. The migrations are the authority for what a database holds;
a test compares them with this file.
"""

import os
import time
from datetime import date, datetime
from ipaddress import IPv4Network, IPv6Network
from typing import Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Date,
    DateTime,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    SmallInteger,
    Text,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, CIDR, JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from app.db import metadata

ORG_STATUSES = ("active", "suspended")
BUDGET_STATUSES = ("active", "restricted")
ROLES = ("owner", "admin", "billing", "developer", "viewer")
USAGE_KINDS = ("generation", "classification", "embedding")
USAGE_STATES = ("final", "recovered")
REVOKE_REASONS = ("revoked", "leaked", "rotated")


_THIS_MONTH = text("(date_trunc('month', (now() AT TIME ZONE 'UTC')))::date")


def new_id() -> UUID:
    """A UUID version 7 (RFC 9562 section 5.7): milliseconds first, then 74 random bits."""
    milliseconds = time.time_ns() // 1_000_000
    value = (milliseconds << 80) | int.from_bytes(os.urandom(10), "big")
    value = (value & ~(0xF << 76)) | (0x7 << 76)
    value = (value & ~(0x3 << 62)) | (0x2 << 62)
    return UUID(int=value)


def _one_of(column: str, values: tuple[str, ...]) -> CheckConstraint:
    return CheckConstraint(f"{column} IN ({', '.join(repr(value) for value in values)})", name=column)


class Base(DeclarativeBase):
    """Aware times and 64-bit integers unless a column says otherwise."""

    metadata = metadata
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy reads this class attribute
        datetime: DateTime(timezone=True),
        int: BigInteger(),
        date: Date(),
        float: Float(53),
        str: Text(),
        bytes: LargeBinary(),
    }


class Org(Base):
    """A customer: owns keys, usage and money."""

    __tablename__ = "orgs"
    __table_args__ = (_one_of("status", ORG_STATUSES), CheckConstraint("name <> ''", name="name_present"))

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    name: Mapped[str]
    status: Mapped[str] = mapped_column(server_default="active")
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class OrgBudget(Base):
    """What an organisation may spend, has spent this month and holds for requests that run.

    Amounts are 10^-12 USD. ``tokens_used`` and ``cost_used`` are those of usage rows
    billed in ``month`` (UTC, its first day); whoever writes first in a new month starts
    them anew. What is held belongs to the rows of ``reservations``. Without a row
    nothing is admitted.

    Attributes:
        status: ``restricted``: no entitlement at present, nothing is admitted.
        max_concurrent: Requests that run at once; None: the plan's.
        monthly_token_limit: Input and output of a month; None: no limit.
        spend_cap: Of a month; None: no limit.
        credit: Prepaid balance, reduced by each usage row; None: not prepaid.
    """

    __tablename__ = "org_budgets"
    __table_args__ = (
        _one_of("status", BUDGET_STATUSES),
        CheckConstraint("max_concurrent > 0 AND monthly_token_limit >= 0 AND spend_cap >= 0", name="limits_in_range"),
        CheckConstraint(
            "tokens_used >= 0 AND tokens_held >= 0 AND cost_used >= 0 AND cost_held >= 0 AND num_running >= 0",
            name="counts_not_negative",
        ),
    )

    org_id: Mapped[UUID] = mapped_column(ForeignKey("orgs.id", ondelete="CASCADE"), primary_key=True)
    plan: Mapped[str] = mapped_column(server_default="standard")
    status: Mapped[str] = mapped_column(server_default="active")
    max_concurrent: Mapped[int | None] = mapped_column(Integer())
    monthly_token_limit: Mapped[int | None]
    spend_cap: Mapped[int | None]
    credit: Mapped[int | None]
    month: Mapped[date] = mapped_column(server_default=_THIS_MONTH)
    tokens_used: Mapped[int] = mapped_column(server_default="0")
    tokens_held: Mapped[int] = mapped_column(server_default="0")
    cost_used: Mapped[int] = mapped_column(server_default="0")
    cost_held: Mapped[int] = mapped_column(server_default="0")
    num_running: Mapped[int] = mapped_column(Integer(), server_default="0")


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
        _one_of("role", ROLES),
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
        _one_of("revoke_reason", REVOKE_REASONS),
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
    month: Mapped[date] = mapped_column(server_default=_THIS_MONTH)
    cost_used: Mapped[int] = mapped_column(server_default="0")
    cost_held: Mapped[int] = mapped_column(server_default="0")


class Reservation(Base):
    """What a running request may cost at most; deleted by whoever settles or releases it.

    No foreign keys: an organisation may go while its requests run.

    Attributes:
        holder: The API process that runs it, by the id of its journal.
        cost: 10^-12 USD.
        expires_at: From then on the worker releases it, whatever became of the request.
    """

    __tablename__ = "reservations"
    __table_args__ = (
        CheckConstraint("cost >= 0 AND tokens >= 0", name="amounts_not_negative"),
        # The sweeper: those that have expired.
        Index(None, "expires_at"),
    )

    request_id: Mapped[UUID] = mapped_column(primary_key=True)
    org_id: Mapped[UUID]
    key_id: Mapped[UUID]
    holder: Mapped[UUID]
    cost: Mapped[int]
    tokens: Mapped[int]
    expires_at: Mapped[datetime]


class UsageEvent(Base):
    """What one request is billed for. Insert-only; one row per request id.

    Partitioned by month of ``started_at``, which therefore belongs to the key; the
    id holds the same instant, so a request id still has one row only. Rows outlive
    the key and organisation that caused them, hence no foreign keys. ``parameters`` are
    those of ``app.api.parameters``; rows from before there were any have none.
    """

    __tablename__ = "usage_events"
    __table_args__ = (
        _one_of("kind", USAGE_KINDS),
        _one_of("state", USAGE_STATES),
        CheckConstraint(
            "input_tokens >= 0 AND cached_tokens >= 0 AND output_tokens >= 0 AND cached_tokens <= input_tokens",
            name="tokens_in_range",
        ),
        # GET /v1/usage and, later, the outbox: an organisation's rows by time of billing.
        Index(None, "org_id", "billed_at"),
        # Rollups: everybody's rows of an hour. Rows lie nearly in this order, so a page range says enough.
        Index(None, "billed_at", postgresql_using="brin", postgresql_with={"autosummarize": "on"}),
        {"postgresql_partition_by": "RANGE (started_at)"},
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    started_at: Mapped[datetime] = mapped_column(primary_key=True)
    org_id: Mapped[UUID]
    key_id: Mapped[UUID]
    model: Mapped[str]
    model_digest: Mapped[str]
    kind: Mapped[str]
    input_tokens: Mapped[int]
    cached_tokens: Mapped[int] = mapped_column(server_default="0")
    output_tokens: Mapped[int]
    finish_reason: Mapped[str | None]
    billed_at: Mapped[datetime] = mapped_column(server_default=func.now())
    engine_ms: Mapped[float] = mapped_column(server_default="0")
    price_version: Mapped[int] = mapped_column(SmallInteger(), server_default="1")
    state: Mapped[str] = mapped_column(server_default="final")
    parameters: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))


class UsageRollupHour(Base):
    """Sums of one hour's usage events. Rebuildable, never the truth; see ``app.billing.rollups``."""

    __tablename__ = "usage_rollup_hour"
    __table_args__ = (
        CheckConstraint("extract(epoch FROM hour)::bigint % 3600 = 0", name="hour_is_whole"),
        # All rows of an hour, to replace them.
        Index(None, "hour"),
    )

    org_id: Mapped[UUID] = mapped_column(primary_key=True)
    hour: Mapped[datetime] = mapped_column(primary_key=True)
    model: Mapped[str] = mapped_column(primary_key=True)
    key_id: Mapped[UUID] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(primary_key=True)
    price_version: Mapped[int] = mapped_column(SmallInteger(), primary_key=True)
    requests: Mapped[int]
    input_tokens: Mapped[int]
    cached_tokens: Mapped[int]
    output_tokens: Mapped[int]


class RolledHour(Base):
    """An hour (UTC) whose sums were made; ``is_current``: nothing has changed below them since.

    The trigger ``mark_hour_changed`` on ``usage_events`` unsets it for rows that are
    written into the past, changed or deleted.
    """

    __tablename__ = "rolled_hours"
    # What is to be made anew: few.
    __table_args__ = (Index("ix_rolled_hours_stale", "hour", postgresql_where=text("NOT is_current")),)

    hour: Mapped[datetime] = mapped_column(primary_key=True)
    is_current: Mapped[bool] = mapped_column(Boolean())


class IdempotencyKey(Base):
    """A request that is run once however often it is sent, and how its answer begins; see ``app.idempotency``.

    Attributes:
        key: As the caller chose it.
        fingerprint: SHA-256 of what was sent, and with which API key.
        run_id: Of whoever runs or has run it; fences those who did before.
        request_id: The id of its usage row, which stays when it is run again.
        lease_until: From then on it may be run again, unless the answer is complete.
        status: Of the answer; None until it begins.
    """

    __tablename__ = "idempotency_keys"
    __table_args__ = (
        CheckConstraint("octet_length(fingerprint) = 32", name="fingerprint_length"),
        # The worker deletes those that have expired.
        Index(None, "expires_at"),
    )

    org_id: Mapped[UUID] = mapped_column(ForeignKey("orgs.id", ondelete="CASCADE"), primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    fingerprint: Mapped[bytes]
    run_id: Mapped[UUID] = mapped_column(unique=True)
    request_id: Mapped[UUID]
    started_at: Mapped[datetime]
    lease_until: Mapped[datetime]
    expires_at: Mapped[datetime]
    status: Mapped[int | None] = mapped_column(SmallInteger())
    headers: Mapped[dict[str, str] | None] = mapped_column(JSONB(none_as_null=True))
    is_complete: Mapped[bool] = mapped_column(Boolean(), server_default="false")


class AnswerPart(Base):
    """A piece of the body of such an answer."""

    __tablename__ = "answer_parts"

    run_id: Mapped[UUID] = mapped_column(ForeignKey("idempotency_keys.run_id", ondelete="CASCADE"), primary_key=True)
    position: Mapped[int] = mapped_column(Integer(), primary_key=True)
    body: Mapped[bytes]
