"""Bodies of answers about usage: lines of a statement, and one request.

As `schemas.py`: written field by field.
"""

from typing import Any, Literal

from app.api.schemas import Answer


class Money(Answer):
    """An amount as a decimal string, exact to the micro-unit."""

    value: str
    currency: Literal["usd"]


class UsageLine(Answer):
    """Everything billed in one bucket of time, for one model, key or kind where grouped by it."""

    start: str
    end: str
    model: str | None = None
    key_id: str | None = None
    kind: Literal["generation", "classification", "embedding"] | None = None
    requests: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    total_tokens: int
    cost: Money


class UsageList(Answer):
    """Answer of GET /v1/usage; ``next`` is the ``after`` of the following page."""

    object: Literal["list"]
    data: list[UsageLine]
    has_more: bool
    next: str | None


class RequestReceipt(Answer):
    """Answer of GET /v1/usage/requests/{request_id}: the usage row of one request."""

    id: str
    object: Literal["usage.request"]
    started_at: str
    billed_at: str
    key_id: str
    model: str
    model_digest: str
    kind: Literal["generation", "classification", "embedding"]
    parameters: dict[str, Any] | None
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    total_tokens: int
    finish_reason: str | None
    engine_ms: float
    cost: Money
