"""What an organisation or one request used and what it costs, read from the very rows that are billed.

One query groups usage by bucket of time and, where asked for, by model, key and kind of
work; prices join in as a table of values, so amounts are summed exactly in the
database and rounded once per line by whoever shows them. Hours whose sums hold are
read from the sums (``app.billing.rollups``): an amount is linear in tokens, so it is the
same to the last digit. Pages follow the order of the lines, not an offset: rows that
arrive meanwhile move nothing.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Literal, Self
from uuid import UUID

from pydantic_core import from_json, to_json
from sqlalchemy import TextClause, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncConnection

from app.billing.prices import PRICES
from app.billing.rollups import HOURS_OF
from app.errors import BadRequest

Bucket = Literal["hour", "day", "month"]
Group = Literal["model", "key", "kind"]
_NO_KEY = UUID(int=0)
# A request's id and its start are read off the clock one after the other.
_ID_TOLERANCE = timedelta(hours=1)
# Only constants enter the text of a statement; values are bound.
_PRICE_TABLE = ", ".join(
    f"({version}, '{kind}', {price.input}, {price.cached}, {price.output})" for (version, kind), price in PRICES.items()
)
PRICED = (
    f"JOIN (VALUES {_PRICE_TABLE}) AS p (version, kind, input, cached, output)"
    " ON p.version = u.price_version AND p.kind = u.kind"
)
"""Joins to usage rows ``u`` their prices ``p``."""
COST = (
    "(u.input_tokens - u.cached_tokens)::numeric * p.input + u.cached_tokens::numeric * p.cached"
    " + u.output_tokens::numeric * p.output"
)
"""Of one such row, or of many with the same price, in 10^-12 USD."""
_RECEIPT = text(
    "SELECT u.id, u.started_at, u.billed_at, u.key_id, u.model, u.model_digest, u.kind, u.parameters, u.input_tokens,"  # noqa: S608
    f" u.cached_tokens, u.output_tokens, u.finish_reason, u.engine_ms, {COST} AS cost FROM usage_events u {PRICED}"
    " WHERE u.id = :id AND u.org_id = :org_id AND u.started_at BETWEEN :after AND :before"
).columns(parameters=JSONB())


@dataclass(frozen=True, slots=True)
class Cursor:
    """The last line of a page."""

    start: datetime
    model: str
    key_id: UUID
    kind: str

    @property
    def token(self) -> str:
        """As a caller sees it: opaque."""
        fields = [self.start.isoformat(), self.model, str(self.key_id), self.kind]
        return base64.urlsafe_b64encode(to_json(fields)).decode().rstrip("=")

    @classmethod
    def parse(cls, token: str) -> Self:
        """The cursor behind a token.

        Raises:
            BadRequest: It was not made by ``token``.
        """
        try:
            raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
            written, model, key_id, kind = from_json(raw)
            start = datetime.fromisoformat(written)
            if start.tzinfo is None or "\0" in str(model) + str(kind):
                raise ValueError("a time without a zone, or a text that the database cannot hold")
            # The first and last hours of all time are not in every zone.
            return cls(start.astimezone(UTC), str(model), UUID(key_id), str(kind))
        except (ValueError, TypeError, AttributeError, OverflowError):
            raise BadRequest("Invalid value for 'after': it is not the 'next' of a page.", param="after") from None


@dataclass(frozen=True, slots=True)
class Query:
    """Which rows, grouped how, and which page of the lines.

    Attributes:
        start: Inclusive, aware; compared with the time of billing.
        end: Exclusive, aware.
        bucket: Length of a line in time, in UTC.
        group_by: Empty: one line per bucket.
        limit: Lines on a page.
        after: The last line of the page before.
        models: Only these; None: all.
        key_ids: Likewise.
    """

    org_id: UUID
    start: datetime
    end: datetime
    bucket: Bucket
    group_by: Sequence[Group] = ()
    limit: int = 100
    after: Cursor | None = None
    models: Sequence[str] | None = None
    key_ids: Sequence[UUID] | None = None

    @property
    def filters(self) -> dict[str, list[Any]]:
        """Column and values of what it is limited to."""
        wanted = {"model": self.models, "key_id": self.key_ids}
        return {column: list(values) for column, values in wanted.items() if values is not None}


@dataclass(frozen=True, slots=True)
class Line:
    """Everything billed in one bucket; ``cost`` is exact, in 10^-12 USD."""

    start: datetime
    end: datetime
    model: str | None
    key_id: UUID | None
    kind: str | None
    requests: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    cost: Decimal

    @property
    def cursor(self) -> Cursor:
        """Where the next page goes on."""
        return Cursor(self.start, self.model or "", self.key_id or _NO_KEY, self.kind or "")


@dataclass(frozen=True, slots=True)
class Receipt:
    """One request's usage row; ``cost`` is exact, in 10^-12 USD.

    Attributes:
        parameters: What it was asked with; None of rows from before they were kept.
    """

    id: UUID
    started_at: datetime
    billed_at: datetime
    key_id: UUID
    model: str
    model_digest: str
    kind: str
    parameters: dict[str, Any] | None
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    finish_reason: str | None
    engine_ms: float
    cost: Decimal


async def read_receipt(connection: AsyncConnection, org_id: UUID, request_id: UUID) -> Receipt | None:
    """What a request of the organisation was billed for; None: it made no such request, or it cost nothing."""
    try:
        started_at = datetime.fromtimestamp((request_id.int >> 80) / 1000, UTC)
        # Names the partition: the id alone would have every month searched.
        bind = {"after": started_at - _ID_TOLERANCE, "before": started_at + _ID_TOLERANCE}
    except (ValueError, OverflowError):  # not an id of ours: its time is beyond the calendar
        return None
    row = (await connection.execute(_RECEIPT, {"org_id": org_id, "id": request_id, **bind})).one_or_none()
    return None if row is None else Receipt(**row._mapping)


async def read_lines(connection: AsyncConnection, query: Query) -> tuple[list[Line], bool]:
    """One page of lines by time, model, key and kind; and whether there are more."""
    after = query.after
    bind = {
        "org_id": query.org_id,
        # The bucket of the cursor is needed in full, those before it are not.
        "start": query.start if after is None else max(query.start, after.start),
        "end": query.end,
        "bucket": query.bucket,
        "limit": query.limit + 1,
    }
    if after is not None:
        bind |= {
            "after_start": after.start,
            "after_model": after.model,
            "after_key": after.key_id,
            "after_kind": after.kind,
        }
    rows = (await connection.execute(_statement(query), bind | query.filters)).all()
    lines = [
        Line(
            start=row.start,
            end=_end(row.start, query.bucket),
            model=row.model if "model" in query.group_by else None,
            key_id=row.key_id if "key" in query.group_by else None,
            kind=row.kind if "kind" in query.group_by else None,
            requests=row.requests,
            input_tokens=int(row.input_tokens),
            cached_tokens=int(row.cached_tokens),
            output_tokens=int(row.output_tokens),
            cost=row.cost,
        )
        for row in rows
    ]
    return lines[: query.limit], len(lines) > query.limit


def _statement(query: Query) -> TextClause:
    model = "model" if "model" in query.group_by else "''"
    key_id = "key_id" if "key" in query.group_by else f"CAST('{_NO_KEY}' AS uuid)"
    kind = "u.kind" if "kind" in query.group_by else "''"
    after = "(:after_start, :after_model, :after_key, :after_kind)"
    page = "" if query.after is None else f" WHERE (start, model, key_id, kind) > {after}"
    kept = "".join(f" AND {column} = ANY(:{column})" for column in query.filters)
    # Behind a fence: let through to the rows, a filter has the planner read all of them for the one hour it needs.
    hours = "(SELECT * FROM hours_of OFFSET 0) AS kept" if kept else "hours_of"
    # Many rows are added up as whole numbers, few are priced.
    return text(
        f'WITH {HOURS_OF}, summed AS (SELECT start, {model} COLLATE "C" AS model, {key_id} AS key_id, kind,'  # noqa: S608
        " price_version, SUM(requests) AS requests, SUM(input_tokens) AS input_tokens,"
        " SUM(cached_tokens) AS cached_tokens, SUM(output_tokens) AS output_tokens"
        f" FROM {hours} WHERE true{kept} GROUP BY 1, 2, 3, 4, 5)"
        f' SELECT * FROM (SELECT u.start, u.model, u.key_id, {kind} COLLATE "C" AS kind,'
        " SUM(u.requests)::bigint AS requests, SUM(u.input_tokens) AS input_tokens,"
        " SUM(u.cached_tokens) AS cached_tokens, SUM(u.output_tokens) AS output_tokens,"
        f" SUM({COST}) AS cost FROM summed u {PRICED}"
        f" GROUP BY 1, 2, 3, 4) AS lines{page} ORDER BY start, model, key_id, kind LIMIT :limit"
    )


def _end(start: datetime, bucket: Bucket) -> datetime:
    if bucket == "hour":
        return start + timedelta(hours=1)
    if bucket == "day":
        return start + timedelta(days=1)
    return datetime(start.year + start.month // 12, start.month % 12 + 1, 1, tzinfo=UTC)
