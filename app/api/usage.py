"""GET /v1/usage: what the caller's organisation used and what it costs, page by page, or by request."""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Path, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from app.api.answers import json_response
from app.api.call import RequiredCall
from app.api.openapi import read_responses
from app.api.usage_schemas import Money, RequestReceipt, UsageLine, UsageList
from app.billing import statement
from app.billing.amounts import money
from app.billing.statement import Bucket, Cursor, Group, Line, Receipt, read_lines, read_receipt
from app.errors import BadRequest, NotFound

DEFAULT_RANGE = timedelta(days=30)
MAX_RANGE = timedelta(days=366)
_GROUPS: tuple[Group, ...] = ("model", "key", "kind")

_COLUMNS_OF_GROUPS: dict[Group, str] = {"model": "model", "key": "key_id", "kind": "kind"}
_COUNTS = ("requests", "input_tokens", "cached_tokens", "output_tokens", "total_tokens")

_EXAMPLE = {
    "object": "list",
    "data": [
        {
            "start": "2026-11-01T00:00:00Z",
            "end": "2026-11-02T00:00:00Z",
            "model": "shakespeare",
            "requests": 12,
            "input_tokens": 340,
            "cached_tokens": 0,
            "output_tokens": 768,
            "total_tokens": 1108,
            "cost": {"value": "0.000512", "currency": "usd"},
        }
    ],
    "has_more": False,
    "next": None,
}

_RECEIPT_EXAMPLE = {
    "id": "019ab4b2-7c00-7d1f-8a65-3f0c8a0d2b11",
    "object": "usage.request",
    "started_at": "2026-11-24T09:30:00Z",
    "billed_at": "2026-11-24T09:30:01Z",
    "key_id": "019ab4b0-0000-7000-8000-000000000001",
    "model": "shakespeare",
    "model_digest": "5d3c…",
    "kind": "generation",
    "parameters": {
        "temperature": 0.7,
        "max_tokens": 32,
        "response_format": {"type": "json_schema", "sha256": "9f86…"},
        "seed": 4503599627370496,
    },
    "input_tokens": 14,
    "cached_tokens": 0,
    "output_tokens": 32,
    "total_tokens": 46,
    "finish_reason": "stop",
    "engine_ms": 41.5,
    "cost": {"value": "0.000021", "currency": "usd"},
}
# An answer's own id is its kind before the request's id.
_ID_PREFIXES = ("chatcmpl-", "cmpl-", "clas-")

router = APIRouter(tags=["usage"])


class UsageParameters(BaseModel):
    """The query string."""

    model_config = ConfigDict(extra="forbid")

    start: Annotated[
        datetime | None, Field(description="ISO 8601 or Unix seconds; inclusive. Default: 30 days before `end`.")
    ] = None
    end: Annotated[datetime | None, Field(description="Exclusive; at most 366 days after `start`. Default: now.")] = (
        None
    )
    bucket: Annotated[Bucket, Field(description="Length of a line, in UTC.")] = "day"
    group_by: Annotated[str, Field(max_length=32, description="`model`, `key`, `kind` or several: `model,key`.")] = ""
    limit: Annotated[int, Field(ge=1, le=1000, description="Lines on a page.")] = 100
    after: Annotated[str | None, Field(max_length=1000, description="`next` of the page before.")] = None
    format: Annotated[
        Literal["json", "csv"],
        Field(description="`csv`: a header and one line each; the header `x-next-page` has what `next` has in JSON."),
    ] = "json"


@router.get("/v1/usage", **read_responses(UsageList, _EXAMPLE))
async def get_usage(call: RequiredCall, parameters: Annotated[UsageParameters, Query()]) -> Response:
    """Requests, tokens and cost by hour, day or month: exactly the rows that are billed.

    As JSON, or with `format=csv` as a table.
    """
    call.key.require("usage")
    query = _query(call, parameters, datetime.now(UTC))
    await call.admit()
    async with call.services.database.begin() as connection:
        lines, has_more = await read_lines(connection, query)
    next_page = lines[-1].cursor.token if has_more else None
    data = [_rendered(line) for line in lines]
    if parameters.format == "csv":
        return _csv(data, query.group_by, next_page)
    return json_response(UsageList(object="list", data=data, has_more=has_more, next=next_page))


@router.get("/v1/usage/requests/{request_id}", **read_responses(RequestReceipt, _RECEIPT_EXAMPLE))
async def get_request(
    call: RequiredCall,
    request_id: Annotated[
        str, Path(max_length=128, description="The answer's `x-request-id`, or the `id` of a completion.")
    ],
) -> Response:
    """One request as it is billed, with what replays it.

    The same `model_digest`, prompt and `parameters` give the same answer: the `seed` is there also where none was
    sent, other parameters where they differ from their defaults. Of `choice`, `regex` and a JSON schema only the
    kind and the sha256 are kept (of the regex; of the schema or the list as JSON without spaces, in its own order):
    send the same ones again. `stop` strings are kept as they are; prompts, `user` and `metadata` are not. A request
    that failed and cost nothing has no row.
    """
    call.key.require("usage")
    await call.admit()
    async with call.services.database.begin() as connection:
        receipt = await read_receipt(connection, call.key.org_id, _request_id(request_id))
    if receipt is None:
        raise _no_such_request()
    return json_response(_receipt(receipt))


def _request_id(value: str) -> UUID:
    for prefix in _ID_PREFIXES:
        value = value.removeprefix(prefix)
    try:
        return UUID(value)
    except ValueError:
        raise _no_such_request() from None


def _no_such_request() -> NotFound:
    return NotFound("No request of this id was billed.", param="request_id", code="request_not_found")


def _query(call: RequiredCall, parameters: UsageParameters, now: datetime) -> statement.Query:
    end = _aware(parameters.end or now)
    start = _aware(parameters.start) if parameters.start else _earlier(end)
    if start >= end:
        raise BadRequest("'start' must be before 'end'.", param="start")
    if end - start > MAX_RANGE:
        raise BadRequest(f"'end' may be at most {MAX_RANGE.days} days after 'start'.", param="end")
    return statement.Query(
        org_id=call.key.org_id,
        start=start,
        end=end,
        bucket=parameters.bucket,
        group_by=_groups(parameters.group_by),
        limit=parameters.limit,
        after=None if parameters.after is None else Cursor.parse(parameters.after),
    )


def _groups(value: str) -> tuple[Group, ...]:
    asked = [part.strip() for part in value.split(",")] if value else []
    for part in asked:
        if part not in _GROUPS:
            raise BadRequest("'group_by' is 'model', 'key', 'kind' or several of them: 'model,key'.", param="group_by")
    return tuple(group for group in _GROUPS if group in asked)


def _aware(value: datetime) -> datetime:
    """UTC where no zone is named."""
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value


def _earlier(end: datetime) -> datetime:
    try:
        return end - DEFAULT_RANGE
    except OverflowError:
        raise BadRequest("'end' is too long ago.", param="end") from None


def _rendered(line: Line) -> UsageLine:
    fields: dict[str, Any] = {"start": _utc(line.start), "end": _utc(line.end)}
    if line.model is not None:
        fields["model"] = line.model
    if line.key_id is not None:
        fields["key_id"] = str(line.key_id)
    if line.kind is not None:
        fields["kind"] = line.kind
    return UsageLine(
        **fields,
        requests=line.requests,
        input_tokens=line.input_tokens,
        cached_tokens=line.cached_tokens,
        output_tokens=line.output_tokens,
        total_tokens=line.input_tokens + line.output_tokens,
        cost=Money.model_validate(money(line.cost)),
    )


def _csv(lines: Sequence[UsageLine], group_by: Sequence[Group], next_page: str | None) -> Response:
    columns = ["start", "end", *(_COLUMNS_OF_GROUPS[group] for group in group_by), *_COUNTS]
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow([*columns, "cost", "currency"])
    for line in lines:
        writer.writerow([*(getattr(line, column) for column in columns), line.cost.value, line.cost.currency])
    headers = {"content-disposition": 'attachment; filename="usage.csv"'}
    if next_page is not None:
        headers["x-next-page"] = next_page
    return Response(table.getvalue(), headers=headers, media_type="text/csv")


def _receipt(receipt: Receipt) -> RequestReceipt:
    return RequestReceipt.model_validate(
        {
            **asdict(receipt),
            "object": "usage.request",
            "id": str(receipt.id),
            "key_id": str(receipt.key_id),
            "started_at": _utc(receipt.started_at),
            "billed_at": _utc(receipt.billed_at),
            "total_tokens": receipt.input_tokens + receipt.output_tokens,
            "cost": money(receipt.cost),
        }
    )


def _utc(value: datetime) -> str:
    return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
