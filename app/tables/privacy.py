"""What customers let us keep of their requests."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import ForeignKey, Index, LargeBinary
from sqlalchemy.orm import Mapped, mapped_column

from app.tables.base import Base


class StoredRequest(Base):
    """A request and its answer as they were sent, of an organisation that asked for it.

    Attributes:
        request_id: Also that of its usage row.
        route: Path that was asked.
        request: Body, JSON.
        answer: Body: JSON, or the events of a stream.
        expires_at: Deleted from then on.
    """

    __tablename__ = "stored_requests"
    __table_args__ = (
        # The latest of an organisation.
        Index(None, "org_id", "started_at"),
        # The worker deletes those that have expired.
        Index(None, "expires_at"),
    )

    request_id: Mapped[UUID] = mapped_column(primary_key=True)
    org_id: Mapped[UUID] = mapped_column(ForeignKey("orgs.id", ondelete="CASCADE"))
    started_at: Mapped[datetime]
    route: Mapped[str]
    request: Mapped[bytes] = mapped_column(LargeBinary())
    answer: Mapped[bytes] = mapped_column(LargeBinary())
    expires_at: Mapped[datetime]
