"""The rows that are billed, one by one, newest first: what every sum of them can be checked against.

Pages follow the order of the rows, not an offset: rows that arrive meanwhile move nothing.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Self
from uuid import UUID

from pydantic_core import from_json, to_json
from sqlalchemy import text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncConnection

from app.billing.statement import COST, PRICED, Receipt
from app.errors import BadRequest

MAX_LATE = timedelta(days=62)
"""How long before a period rows may have been billed that were claimed for it: its worker was away for months."""

_COLUMNS = (
    "u.id, u.started_at, u.billed_at, u.key_id, u.model, u.model_digest, u.kind, u.parameters, u.input_tokens,"
    " u.cached_tokens, u.output_tokens, u.finish_reason, u.engine_ms"
)

_CLAIMED = (
    "u.claim_id = ANY(ARRAY(SELECT o.id FROM stripe_meter_outbox o WHERE o.org_id = :org_id AND o.event_ts >= :claimed"
    " AND o.event_ts < :end AND o.replaces IS NULL AND o.state <> 'written_off'))"
)


@dataclass(frozen=True, slots=True)
class ReceiptCursor:
    """The last row of a page."""

    billed_at: datetime
    id: UUID

    @property
    def token(self) -> str:
        """As a caller sees it: opaque."""
        return base64.urlsafe_b64encode(to_json([self.billed_at.isoformat(), str(self.id)])).decode().rstrip("=")

    @classmethod
    def parse(cls, token: str) -> Self:
        """The cursor behind a token.

        Raises:
            BadRequest: It was not made by ``token``.
        """
        try:
            written, id = from_json(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
            billed_at = datetime.fromisoformat(written)
            if billed_at.tzinfo is None:
                raise ValueError("a time without a zone")
            # The first and last hours of all time are not in every zone.
            return cls(billed_at.astimezone(UTC), UUID(id))
        except (ValueError, TypeError, AttributeError, OverflowError):
            raise BadRequest("Invalid value for 'after': it is not the 'next' of a page.", param="after") from None


@dataclass(frozen=True, slots=True)
class ReceiptQuery:
    """Which rows, and which page of them.

    Attributes:
        start: Inclusive, aware; compared with the time of billing.
        end: Exclusive, aware.
        is_claimed: Only what was claimed for this time, which is a period of metering: without what
            was prepaid or is on no invoice, and with what came late.
        limit: Rows on a page.
        after: The last row of the page before.
        models: Only these; None: all.
        key_ids: Likewise.
    """

    org_id: UUID
    start: datetime
    end: datetime
    limit: int = 50
    after: ReceiptCursor | None = None
    models: Sequence[str] | None = None
    key_ids: Sequence[UUID] | None = None
    is_claimed: bool = False


async def read_receipts(connection: AsyncConnection, query: ReceiptQuery) -> tuple[list[Receipt], bool]:
    """One page of an organisation's rows, newest first; and whether there are more."""
    bind: dict[str, object] = {"org_id": query.org_id, "start": query.start, "end": query.end, "limit": query.limit + 1}
    conditions = ["u.org_id = :org_id", "u.billed_at >= :start", "u.billed_at < :end"]
    if query.is_claimed:
        conditions.append(_CLAIMED)
        bind |= {"claimed": query.start, "start": query.start - MAX_LATE}
    if query.after is not None:
        conditions.append("(u.billed_at, u.id) < (:after_at, :after_id)")
        bind |= {"after_at": query.after.billed_at, "after_id": query.after.id}
    for column, values in (("model", query.models), ("key_id", query.key_ids)):
        if values is not None:
            conditions.append(f"u.{column} = ANY(:{column})")
            bind[column] = list(values)
    statement = text(
        f"SELECT {_COLUMNS}, {COST} AS cost FROM usage_events u {PRICED} WHERE {' AND '.join(conditions)}"  # noqa: S608 - constants
        " ORDER BY u.billed_at DESC, u.id DESC LIMIT :limit"
    ).columns(parameters=JSONB())
    rows = [Receipt(**row._mapping) for row in await connection.execute(statement, bind)]
    return rows[: query.limit], len(rows) > query.limit


def cursor_of(receipt: Receipt) -> ReceiptCursor:
    """Where the page after this row goes on."""
    return ReceiptCursor(receipt.billed_at, receipt.id)
