"""Thresholds that were reached, and who is told of them."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey, Index, Integer, SmallInteger, func, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from app.tables.base import Base, new_id, one_of

MEASURES = ("spend_cap", "token_limit", "included", "credit")
CHANNELS = ("mail", "webhook")
NOTIFICATION_STATES = ("pending", "sent", "failed")


class Alert(Base):
    """A share of a limit that was used up, once a period.

    Attributes:
        measure: What is limited; the unit of ``used`` and ``limit`` goes with it, see ``app.alerts.levels``.
        period_start: Of the month, the metering period, or the time of the last credit.
    """

    __tablename__ = "alerts"
    __table_args__ = (one_of("measure", MEASURES), CheckConstraint("percent > 0", name="percent_positive"))

    org_id: Mapped[UUID] = mapped_column(ForeignKey("orgs.id", ondelete="CASCADE"), primary_key=True)
    measure: Mapped[str] = mapped_column(primary_key=True)
    period_start: Mapped[datetime] = mapped_column(primary_key=True)
    percent: Mapped[int] = mapped_column(SmallInteger(), primary_key=True)
    used: Mapped[int]
    limit: Mapped[int]
    reached_at: Mapped[datetime]


class WebhookEndpoint(Base):
    """An address of a customer that is told of alerts.

    Attributes:
        secret_version: The secret is made of the installation's key, the id and this; it is stored nowhere.
    """

    __tablename__ = "webhook_endpoints"
    __table_args__ = (
        CheckConstraint("url <> ''", name="url_present"),
        # Those of an organisation.
        Index(None, "org_id"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    org_id: Mapped[UUID] = mapped_column(ForeignKey("orgs.id", ondelete="CASCADE"))
    url: Mapped[str]
    secret_version: Mapped[int] = mapped_column(Integer(), server_default="1")
    created_by: Mapped[UUID | None] = mapped_column(ForeignKey("users.id", ondelete="SET NULL"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Notification(Base):
    """An event on its way to one recipient; sent at least once, under the same id.

    Attributes:
        target: An e-mail address, or the id of a webhook endpoint.
        event: What is told: ``type``, ``timestamp``, ``data``.
        due_at: From then on whoever works on it may try; each attempt moves it first.
    """

    __tablename__ = "notifications"
    __table_args__ = (
        one_of("channel", CHANNELS),
        one_of("state", NOTIFICATION_STATES),
        # What is to be sent.
        Index("ix_notifications_due", "due_at", postgresql_where=text("state = 'pending'")),
        # The latest of an organisation.
        Index(None, "org_id", "created_at"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    org_id: Mapped[UUID] = mapped_column(ForeignKey("orgs.id", ondelete="CASCADE"))
    channel: Mapped[str]
    target: Mapped[str]
    event: Mapped[dict[str, Any]] = mapped_column(JSONB())
    state: Mapped[str] = mapped_column(server_default="pending")
    attempts: Mapped[int] = mapped_column(Integer(), server_default="0")
    due_at: Mapped[datetime]
    last_error: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    sent_at: Mapped[datetime | None]
