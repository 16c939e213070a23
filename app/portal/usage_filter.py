"""Which usage a visitor looks at: read off the address, forgiving, so that any address shows something."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TypeVar
from urllib.parse import urlencode
from uuid import UUID

from starlette.datastructures import QueryParams

from app.billing.statement import Bucket, Group, Query

ChoiceT = TypeVar("ChoiceT")

SPANS = ("today", "week", "month", "days30", "last-month", "custom")
GROUPS: tuple[Group, ...] = ("model", "key", "kind")
MAX_HOURS = timedelta(days=3)
"""Longer spans are shown by the day."""
MAX_DAYS = timedelta(days=62)
"""Longer ones by the month."""
MAX_SPAN = timedelta(days=366)
_DEFAULT_SPAN = "days30"
_DAY = timedelta(days=1)
_STEPS = {"hour": timedelta(hours=1), "day": _DAY}
_MAX_TEXT = 200
_EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class UsageFilter:
    """A visitor's choice.

    Attributes:
        span: Of ``SPANS``.
        start: Inclusive, UTC.
        end: Exclusive, UTC.
        bucket: Length of a line.
        is_hour_asked: Hours were wanted; whether they are shown depends on the span.
        group: What is told apart.
        model: Only this one; None: all.
        key_id: Likewise.
        invoice: Only the rows on this one, whatever the span; its id.
    """

    span: str
    start: datetime
    end: datetime
    bucket: Bucket
    is_hour_asked: bool
    group: Group
    model: str | None = None
    key_id: UUID | None = None
    invoice: str | None = None

    @classmethod
    def parse(cls, parameters: QueryParams, now: datetime) -> "UsageFilter":
        """The choice in an address; what makes no sense is as if it were not there."""
        span = _one_of(parameters.get("span"), SPANS, _DEFAULT_SPAN)
        start, end = _span(span, parameters, now.astimezone(UTC))
        is_hour_asked = parameters.get("bucket") == "hour"
        model = parameters.get("model", "")[:_MAX_TEXT]
        return cls(
            span=span,
            start=start,
            end=end,
            bucket=_bucket(end - start, is_hour_asked),
            is_hour_asked=is_hour_asked,
            group=_one_of(parameters.get("group"), GROUPS, GROUPS[0]),
            model=model if model and model.isprintable() else None,
            key_id=_uuid(parameters.get("key", "")),
            invoice=parameters.get("invoice", "")[:_MAX_TEXT] or None,
        )

    @property
    def last_day(self) -> datetime:
        """The last day that is in it, for the form."""
        return self.end - timedelta(microseconds=1)

    @property
    def buckets(self) -> list[datetime]:
        """The starts of all lines, also of those without usage."""
        starts, at = [], self.start.replace(day=1) if self.bucket == "month" else self.start
        while at < self.end:
            starts.append(at)
            at = (at + 31 * _DAY).replace(day=1) if self.bucket == "month" else at + _STEPS[self.bucket]
        return starts

    def query(self, org_id: UUID, limit: int, *, bucket: Bucket | None = None, is_grouped: bool = True) -> Query:
        """The statement of it."""
        return Query(
            org_id,
            self.start,
            self.end,
            bucket or self.bucket,
            (self.group,) if is_grouped else (),
            limit,
            models=None if self.model is None else [self.model],
            key_ids=None if self.key_id is None else [self.key_id],
        )

    def address(self, path: str, **changes: object) -> str:
        """A link to ``path`` with the same choice, but for ``changes`` of its parameters; None takes one out."""
        parameters: dict[str, object] = {
            "span": self.span,
            "bucket": "hour" if self.is_hour_asked else "day",
            "group": self.group,
            "model": self.model,
            "key": self.key_id,
            "invoice": self.invoice,
        }
        if self.span == "custom":
            parameters |= {"start": f"{self.start:%Y-%m-%d}", "end": f"{self.last_day:%Y-%m-%d}"}
        parameters |= changes
        return f"{path}?{urlencode({name: value for name, value in parameters.items() if value is not None})}"


def _bucket(span: timedelta, is_hour_asked: bool) -> Bucket:
    if span > MAX_DAYS:
        return "month"
    return "hour" if is_hour_asked and span <= MAX_HOURS else "day"


def _span(span: str, parameters: QueryParams, now: datetime) -> tuple[datetime, datetime]:
    today = now.replace(hour=0, minute=0, second=0, microsecond=0)
    month = today.replace(day=1)
    if span == "custom":
        return _custom(parameters, today)
    if span == "last-month":
        return (month - _DAY).replace(day=1), month
    starts = {"today": today, "week": today - 6 * _DAY, "month": month, "days30": today - 29 * _DAY}
    return starts[span], today + _DAY


def _custom(parameters: QueryParams, today: datetime) -> tuple[datetime, datetime]:
    last = _date(parameters.get("end", "")) or today
    last = min(max(last, _EARLIEST), today)
    first = _date(parameters.get("start", "")) or last
    first = min(max(first, _EARLIEST, last - MAX_SPAN + _DAY), last)
    return first, last + _DAY


def _date(text: str) -> datetime | None:
    try:
        return datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError:
        return None


def _uuid(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None


def _one_of(value: object, values: tuple[ChoiceT, ...], otherwise: ChoiceT) -> ChoiceT:
    return next((one for one in values if one == value), otherwise)
