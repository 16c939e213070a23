"""What may be spent, what is held, what was used: the tables of the request path, and what is made of them."""

from datetime import date, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    Boolean,
    CheckConstraint,
    ForeignKey,
    Index,
    Integer,
    SmallInteger,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from app.tables.base import THIS_MONTH, Base, one_of

BUDGET_STATUSES = ("active", "restricted")
RESTRICTIONS = ("past_due", "disputed")
USAGE_KINDS = ("generation", "classification", "embedding")
USAGE_STATES = ("final", "recovered")


class OrgBudget(Base):
    """What an organisation may spend, has spent this month and holds for requests that run.

    Amounts are 10^-12 USD. ``tokens_used`` and ``cost_used`` are those of usage rows
    billed in ``month`` (UTC, its first day); whoever writes first in a new month starts
    them anew. What is held belongs to the rows of ``reservations``. Without a row
    nothing is admitted.

    Attributes:
        plan: Of the catalogue (``app.billing.catalog``); what is None below is the plan's.
        status: ``restricted``: no entitlement at present, nothing is admitted.
        restriction: Why, where it is restricted; a word of ``RESTRICTIONS``.
        max_concurrent: Requests that run at once; None: the plan's.
        monthly_token_limit: Input and output of a month; None: the plan's, which may be none.
        spend_cap: Of a month, as an operator set it; None: no limit.
        own_spend_cap: Likewise, as the organisation set it itself; the lower one counts.
        credit: Prepaid balance, reduced by each usage row; None: not prepaid.
    """

    __tablename__ = "org_budgets"
    __table_args__ = (
        one_of("status", BUDGET_STATUSES),
        CheckConstraint("max_concurrent > 0 AND monthly_token_limit >= 0 AND spend_cap >= 0", name="limits_in_range"),
        CheckConstraint("own_spend_cap >= 0", name="own_spend_cap_not_negative"),
        CheckConstraint(
            "restriction IN ('past_due', 'disputed') AND (restriction IS NULL OR status = 'restricted')",
            name="restriction",
        ),
        CheckConstraint(
            "tokens_used >= 0 AND tokens_held >= 0 AND cost_used >= 0 AND cost_held >= 0 AND num_running >= 0",
            name="counts_not_negative",
        ),
    )

    org_id: Mapped[UUID] = mapped_column(ForeignKey("orgs.id", ondelete="CASCADE"), primary_key=True)
    plan: Mapped[str] = mapped_column(server_default="internal")
    status: Mapped[str] = mapped_column(server_default="active")
    restriction: Mapped[str | None]
    max_concurrent: Mapped[int | None] = mapped_column(Integer())
    monthly_token_limit: Mapped[int | None]
    spend_cap: Mapped[int | None]
    own_spend_cap: Mapped[int | None]
    credit: Mapped[int | None]
    month: Mapped[date] = mapped_column(server_default=THIS_MONTH)
    tokens_used: Mapped[int] = mapped_column(server_default="0")
    tokens_held: Mapped[int] = mapped_column(server_default="0")
    cost_used: Mapped[int] = mapped_column(server_default="0")
    cost_held: Mapped[int] = mapped_column(server_default="0")
    num_running: Mapped[int] = mapped_column(Integer(), server_default="0")


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

    Attributes:
        is_prepaid: Its cost was taken off the organisation's credit when it was written.
        claim_id: The ``MeterOutbox`` or ``CreditEntry`` row that accounts for it; None: none yet,
            or none ever where nothing is due (free plan, trial, internal use).
    """

    __tablename__ = "usage_events"
    __table_args__ = (
        one_of("kind", USAGE_KINDS),
        one_of("state", USAGE_STATES),
        CheckConstraint(
            "input_tokens >= 0 AND cached_tokens >= 0 AND output_tokens >= 0 AND cached_tokens <= input_tokens",
            name="tokens_in_range",
        ),
        # GET /v1/usage: an organisation's rows by time of billing.
        Index(None, "org_id", "billed_at"),
        # The claims of the outbox, however far back a late row lies; and those of prepaid credit.
        Index(
            "ix_usage_events_unclaimed",
            "org_id",
            "billed_at",
            postgresql_where=text("claim_id IS NULL AND NOT is_prepaid"),
        ),
        Index(
            "ix_usage_events_unburnt", "org_id", "billed_at", postgresql_where=text("claim_id IS NULL AND is_prepaid")
        ),
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
    is_prepaid: Mapped[bool] = mapped_column(Boolean(), server_default="false")
    claim_id: Mapped[UUID | None]


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
