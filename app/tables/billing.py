"""What Tollgate knows of Stripe and tells it, and prepaid credit.

Amounts of our own are 10^-12 USD; those of Stripe's objects are cents, as Stripe has
them; what is metered is counted in 10^-9 USD (see ``app.billing.catalog``).
"""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Boolean, CheckConstraint, ForeignKey, Index, Integer, SmallInteger, func, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from app.tables.base import Base, new_id, one_of

INTERVALS = ("month", "year")
SUBSCRIPTION_STATUSES = (
    "incomplete",
    "incomplete_expired",
    "trialing",
    "active",
    "past_due",
    "unpaid",
    "paused",
    "canceled",
)
OUTBOX_STATES = ("pending", "sending", "acked", "rejected", "reconcile", "replaced", "written_off")
CREDIT_KINDS = ("grant", "purchase", "burn", "expire", "refund", "adjust")
PAYMENT_PURPOSES = ("invoice", "credit")


class CatalogPrice(Base):
    """Where a price of the catalogue lies at Stripe, as the last ``sync-catalog`` found it.

    Attributes:
        lookup_key: Names plan, version and part; see ``app.billing.catalog``.
        fingerprint: SHA-256 of what was agreed upon, to see a change of the code.
        drift: What Stripe's price has that ours has not, in words; None: nothing.
    """

    __tablename__ = "catalog_prices"

    lookup_key: Mapped[str] = mapped_column(primary_key=True)
    stripe_price_id: Mapped[str] = mapped_column(unique=True)
    stripe_product_id: Mapped[str]
    fingerprint: Mapped[bytes]
    drift: Mapped[str | None]
    synced_at: Mapped[datetime]


class Subscription(Base):
    """A subscription as Stripe last told it; written by ``app.billing.subscriptions`` only.

    Attributes:
        plan: Of the catalogue, from the lookup keys of its prices; likewise the version and the interval.
        started_at: From then on, or from ``trial_end``, usage is metered.
        period_start: Of the flat price. Periods of the metered one are ``MeteringPeriod`` rows.
        pending_plan: What it becomes at the end of the period, by a schedule.
        past_due_since: When a payment first failed that is still due.
        is_current: The one that entitles the organisation; of several the newest that lives.
        snapshot: Stripe's object.
        synced_at: When the snapshot was read; an older one never replaces it.
    """

    __tablename__ = "subscriptions"
    __table_args__ = (
        one_of("status", SUBSCRIPTION_STATUSES),
        one_of("billing_interval", INTERVALS),
        # An organisation has one entitlement.
        Index("uq_subscriptions_current", "org_id", unique=True, postgresql_where=text("is_current")),
        # All of an organisation's, newest first.
        Index(None, "org_id", "started_at"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    org_id: Mapped[UUID] = mapped_column(ForeignKey("orgs.id", ondelete="CASCADE"))
    stripe_subscription_id: Mapped[str] = mapped_column(unique=True)
    stripe_schedule_id: Mapped[str | None]
    plan: Mapped[str]
    plan_version: Mapped[int] = mapped_column(SmallInteger())
    billing_interval: Mapped[str]
    status: Mapped[str]
    started_at: Mapped[datetime]
    trial_end: Mapped[datetime | None]
    period_start: Mapped[datetime]
    period_end: Mapped[datetime]
    cancel_at_period_end: Mapped[bool] = mapped_column(Boolean())
    cancel_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    pending_plan: Mapped[str | None]
    past_due_since: Mapped[datetime | None]
    is_current: Mapped[bool] = mapped_column(Boolean())
    snapshot: Mapped[dict[str, Any]] = mapped_column(JSONB())
    synced_at: Mapped[datetime]


class MeteringPeriod(Base):
    """A period of a subscription's metered price: usage in it belongs on the invoice that ends it.

    Attributes:
        period_start: Inclusive; whole seconds, as Stripe has them.
        period_end: Exclusive; moves when the subscription ends early.
        is_trial: Usage in it is not metered.
        claimed_until: Every row billed before it has been claimed or is not due; windows go on from here.
    """

    __tablename__ = "metering_periods"
    __table_args__ = (
        CheckConstraint("period_start < period_end", name="not_empty"),
        CheckConstraint("claimed_until >= period_start AND claimed_until <= period_end", name="claimed_within"),
        # The claims of the outbox: periods with something left to claim.
        Index(
            "ix_metering_periods_open",
            "claimed_until",
            postgresql_where=text("NOT is_trial AND claimed_until < period_end"),
        ),
    )

    subscription_id: Mapped[UUID] = mapped_column(ForeignKey("subscriptions.id", ondelete="CASCADE"), primary_key=True)
    period_start: Mapped[datetime] = mapped_column(primary_key=True)
    period_end: Mapped[datetime]
    is_trial: Mapped[bool] = mapped_column(Boolean())
    claimed_until: Mapped[datetime]


class StripeEvent(Base):
    """The inbox: what came in by webhook, byte for byte, before anything was made of it.

    Attributes:
        created: By Stripe's clock.
        attempts: How often it was tried; each attempt moves ``due_at``.
        is_dead: Given up on, for a person to look at; ``tollgate billing events retry``.
    """

    __tablename__ = "stripe_events"
    __table_args__ = (
        # What is to be worked off, oldest first, and the few that were given up.
        Index("ix_stripe_events_due", "due_at", postgresql_where=text("processed_at IS NULL")),
        # What is old enough to be deleted. Rows lie nearly in this order, so a page range says enough.
        Index(None, "received_at", postgresql_using="brin", postgresql_with={"autosummarize": "on"}),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    type: Mapped[str]
    created: Mapped[datetime]
    body: Mapped[bytes]
    received_at: Mapped[datetime] = mapped_column(server_default=func.now())
    due_at: Mapped[datetime] = mapped_column(server_default=func.now())
    processed_at: Mapped[datetime | None]
    attempts: Mapped[int] = mapped_column(Integer(), server_default="0")
    last_error: Mapped[str | None]
    is_dead: Mapped[bool] = mapped_column(Boolean(), server_default="false")


class StripeSweep(Base):
    """Up to when Stripe was asked for events that were never delivered: one row, none before the first time.

    Attributes:
        until: By Stripe's clock.
    """

    __tablename__ = "stripe_sweeps"
    __table_args__ = (CheckConstraint("id = 1", name="one_row"),)

    id: Mapped[int] = mapped_column(SmallInteger(), primary_key=True, server_default="1", autoincrement=False)
    until: Mapped[datetime]


class MeterOutbox(Base):
    """The sum of the usage rows that claim it, on its way to Stripe as one meter event.

    A trigger refuses any change of what was decided when it was made: organisation, meter,
    window, value, time and identifier.

    Attributes:
        window_start: Of the rows by time of billing; late ones may be from before.
        seq: Counts those of the window, from 0: what takes another's place, and where one cannot say it all.
        value: 10^-9 USD at list price, > 0.
        event_ts: The last whole second of the window; says to Stripe which period it is of.
        identifier: uuid5 of organisation, meter, window_start and seq; what makes sending twice count once.
        state: ``sending`` while it may be under way; ``reconcile``: nobody knows whether it counts;
            ``rejected``: Stripe does not take it, somebody has to look; ``replaced``: another row
            carries its value now; ``written_off``: a person charges nobody for it.
        first_sent_at: From 23 hours later on the identifier protects no longer.
        replaces: The row whose value this one carries.
    """

    __tablename__ = "stripe_meter_outbox"
    __table_args__ = (
        one_of("state", OUTBOX_STATES),
        CheckConstraint("value > 0 AND value < 1000000000000000", name="value_in_range"),
        Index("uq_stripe_meter_outbox_window", "org_id", "meter", "window_start", "seq", unique=True),
        # What is to be sent, a customer's in order; and all that is not settled, to be counted.
        Index(
            "ix_stripe_meter_outbox_open",
            "due_at",
            postgresql_where=text("state IN ('pending', 'sending', 'reconcile', 'rejected')"),
        ),
        # What was claimed of a period, of which an invoice tells.
        Index(None, "subscription_id", "event_ts"),
        # Everybody's of an hour, to compare it with Stripe's sums. Rows lie nearly in this order.
        Index(None, "event_ts", postgresql_using="brin", postgresql_with={"autosummarize": "on"}),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    org_id: Mapped[UUID]
    subscription_id: Mapped[UUID]
    stripe_customer_id: Mapped[str]
    meter: Mapped[str]
    window_start: Mapped[datetime]
    window_end: Mapped[datetime]
    seq: Mapped[int] = mapped_column(Integer(), server_default="0")
    value: Mapped[int]
    event_ts: Mapped[datetime]
    identifier: Mapped[UUID] = mapped_column(unique=True)
    state: Mapped[str] = mapped_column(server_default="pending")
    attempts: Mapped[int] = mapped_column(Integer(), server_default="0")
    due_at: Mapped[datetime] = mapped_column(server_default=func.now())
    first_sent_at: Mapped[datetime | None]
    acked_at: Mapped[datetime | None]
    last_error: Mapped[str | None]
    replaces: Mapped[UUID | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class CreditEntry(Base):
    """A movement of prepaid credit; rows cannot be changed or deleted. The balance is their sum.

    ``org_budgets.credit`` is that sum less what prepaid usage rows cost that no ``burn`` has claimed yet.

    Attributes:
        amount: 10^-12 USD, signed.
        ref_type: What caused it, with ``ref_id``: once each.
        expires_at: Of a grant or purchase; an ``expire`` entry takes then what is left of it.
    """

    __tablename__ = "credit_ledger"
    __table_args__ = (
        one_of("kind", CREDIT_KINDS),
        CheckConstraint("amount <> 0", name="amount_present"),
        Index("uq_credit_ledger_ref", "kind", "ref_type", "ref_id", unique=True),
        # The balance and the history of an organisation.
        Index(None, "org_id", "created_at"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    org_id: Mapped[UUID]
    kind: Mapped[str]
    amount: Mapped[int]
    ref_type: Mapped[str]
    ref_id: Mapped[str]
    expires_at: Mapped[datetime | None]
    note: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Invoice(Base):
    """An invoice as Stripe last told it; amounts in cents.

    Attributes:
        id: Stripe's.
        lines: Of its lines: id, description, amount, quantity, price, period; enough to show and to audit.
        metered_value: What its metered lines count, 10^-9 USD; None where it has none.
        ledger_value: What our claims say of the same periods; None until audited.
    """

    __tablename__ = "invoices"
    __table_args__ = (Index(None, "org_id", "created"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    org_id: Mapped[UUID] = mapped_column(ForeignKey("orgs.id", ondelete="CASCADE"))
    stripe_subscription_id: Mapped[str | None]
    number: Mapped[str | None]
    status: Mapped[str]
    subtotal: Mapped[int]
    total: Mapped[int]
    amount_due: Mapped[int]
    amount_paid: Mapped[int]
    period_start: Mapped[datetime]
    period_end: Mapped[datetime]
    created: Mapped[datetime]
    finalized_at: Mapped[datetime | None]
    hosted_invoice_url: Mapped[str | None]
    invoice_pdf: Mapped[str | None]
    lines: Mapped[list[Any]] = mapped_column(JSONB())
    metered_value: Mapped[int | None]
    ledger_value: Mapped[int | None]
    audited_at: Mapped[datetime | None]
    synced_at: Mapped[datetime]


class Payment(Base):
    """A charge at Stripe: what was paid, given back and disputed; amounts in cents.

    Attributes:
        id: Stripe's charge.
        purpose: ``invoice`` or ``credit``: prepaid, bought at checkout.
        dispute_status: Stripe's word; None: never disputed.
    """

    __tablename__ = "payments"
    __table_args__ = (
        one_of("purpose", PAYMENT_PURPOSES),
        # The payments of an organisation, newest first.
        Index(None, "org_id", "created"),
        # What an event is about.
        Index(None, "payment_intent_id"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    org_id: Mapped[UUID] = mapped_column(ForeignKey("orgs.id", ondelete="CASCADE"))
    purpose: Mapped[str]
    invoice_id: Mapped[str | None]
    payment_intent_id: Mapped[str | None]
    amount: Mapped[int]
    amount_refunded: Mapped[int] = mapped_column(server_default="0")
    dispute_status: Mapped[str | None]
    created: Mapped[datetime]
    synced_at: Mapped[datetime]
