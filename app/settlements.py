"""Settlements: what a request is billed for, and the one statement that writes it.

The statement inserts the usage row, moves its cost from held to used in the budgets and
deletes the reservation. The request id is the row's key and writing it again changes
nothing, so a settlement may be tried twice, by whoever has it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from operator import attrgetter
from typing import Any, Literal, Self
from uuid import UUID

from app.auth import Key
from app.db import Database
from app.lane import Lane

Kind = Literal["generation", "classification", "embedding"]
BROKEN_OFF = "error"
"""Finish reason of an answer that we did not bring to its end."""

# Locks first, always the organisation before the key: whatever follows waits for nobody.
# A subquery that counts a locked row is what makes a step come after the lock. Of two
# months that meet here, the row belongs to that of its transaction, as billed_at does.
_SETTLE = """
WITH org AS MATERIALIZED (
    SELECT org_id, credit FROM org_budgets WHERE org_id = $2::uuid FOR UPDATE
), key AS MATERIALIZED (
    SELECT b.key_id FROM rate_buckets b, (SELECT count(*) AS locks FROM org) AS first
    WHERE first.locks >= 0 AND b.key_id = (SELECT COALESCE(bucket_id, id) FROM api_keys WHERE id = $3::uuid)
    FOR UPDATE OF b
), released AS (
    DELETE FROM reservations r USING (SELECT count(*) AS locks FROM key) AS first
    WHERE r.request_id = $1::uuid AND first.locks >= 0 RETURNING r.cost, r.tokens
), billed AS (
    INSERT INTO usage_events (id, org_id, key_id, started_at, model, model_digest, kind, input_tokens, cached_tokens,
        output_tokens, finish_reason, engine_ms, price_version, state, parameters, is_prepaid)
    SELECT $1::uuid, $2::uuid, $3::uuid, $4::timestamptz, $5::text, $6::text, $7::text, $8::bigint, $9::bigint,
        $10::bigint, $11::text, $12::float8, $13::smallint, $14::text, $15::jsonb,
        (SELECT credit IS NOT NULL FROM org) IS TRUE
    FROM (SELECT count(*) AS locks FROM key) AS first
    WHERE first.locks >= 0 AND $17::boolean ON CONFLICT DO NOTHING RETURNING 1
), change AS MATERIALIZED (
    SELECT (SELECT count(*) FROM key) AS locks, (SELECT count(*) FROM billed) AS num_billed,
        COALESCE((SELECT cost FROM released), 0) AS cost_held,
        COALESCE((SELECT tokens FROM released), 0) AS tokens_held, (SELECT count(*) FROM released)::int AS num_released,
        (date_trunc('month', now() AT TIME ZONE 'UTC'))::date AS month
), org_changed AS (
    UPDATE org_budgets b SET
        month = GREATEST(b.month, c.month),
        cost_used = CASE WHEN b.month >= c.month THEN b.cost_used ELSE 0 END
            + CASE WHEN b.month <= c.month THEN c.num_billed * $16::bigint ELSE 0 END,
        tokens_used = CASE WHEN b.month >= c.month THEN b.tokens_used ELSE 0 END
            + CASE WHEN b.month <= c.month THEN c.num_billed * ($8::bigint + $10::bigint) ELSE 0 END,
        credit = b.credit - c.num_billed * $16::bigint,
        cost_held = b.cost_held - c.cost_held, tokens_held = b.tokens_held - c.tokens_held,
        num_running = b.num_running - c.num_released
    FROM change c WHERE b.org_id = $2::uuid AND c.locks >= 0 AND c.num_billed + c.num_released > 0
), key_changed AS (
    UPDATE rate_buckets b SET
        month = GREATEST(b.month, c.month),
        cost_used = CASE WHEN b.month >= c.month THEN b.cost_used ELSE 0 END
            + CASE WHEN b.month <= c.month THEN c.num_billed * $16::bigint ELSE 0 END,
        cost_held = b.cost_held - c.cost_held
    FROM change c WHERE b.key_id = (SELECT key_id FROM key) AND c.locks >= 0 AND c.num_billed + c.num_released > 0
)
SELECT num_billed FROM change
"""


@dataclass(frozen=True, slots=True)
class Price:
    """Micro-USD per million tokens of one kind of work.

    ``cached`` applies to the part of the input that was served from a cache, instead
    of ``input``.
    """

    input: int
    cached: int
    output: int

    def cost(self, input_tokens: int, cached_tokens: int, output_tokens: int) -> int:
        """What so many tokens cost, exactly, in 10^-12 USD; the cached ones are part of the input."""
        return (input_tokens - cached_tokens) * self.input + cached_tokens * self.cached + output_tokens * self.output


@dataclass(frozen=True, slots=True)
class Settlement:
    """The end of a request: its usage row, or none, and its reservation no more.

    Attributes:
        cost: Of the row, 10^-12 USD.
        bills: Whether there is a row; without one everything but the ids counts for nothing.
    """

    request_id: UUID
    org_id: UUID
    key_id: UUID
    started_at: datetime
    model: str = ""
    model_digest: str = ""
    kind: str = ""
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    finish_reason: str = ""
    engine_ms: float = 0.0
    price_version: int = 0
    state: str = "final"
    parameters: str | None = None
    cost: int = 0
    bills: bool = True

    @property
    def arguments(self) -> tuple[Any, ...]:
        """For the statement, in the order of the fields."""
        return _FIELDS(self)

    @property
    def record(self) -> dict[str, Any]:
        """As JSON."""
        return dict(zip(self.__slots__, self.arguments, strict=True))

    @classmethod
    def parse(cls, record: Mapping[str, Any]) -> Self:
        """The settlement behind a ``record``."""
        ids = {name: UUID(record[name]) for name in ("request_id", "org_id", "key_id")}
        return cls(**{**record, **ids, "started_at": datetime.fromisoformat(record["started_at"])})


_FIELDS: Callable[[Settlement], tuple[Any, ...]] = attrgetter(*Settlement.__slots__)


def unbilled(request_id: UUID, key: Key) -> Settlement:
    """The end of a request that costs nothing: it frees what was reserved."""
    return Settlement(request_id, key.org_id, key.id, datetime.now(UTC), bills=False)


def filled(
    row: Settlement, price: Price, output_tokens: int, cached_tokens: int, engine_ms: float, *, finish_reason: str
) -> Settlement:
    """``row`` with what was delivered, and what that costs.

    Args:
        row: As it was opened.
        price: In force for it.
        output_tokens: Delivered.
        cached_tokens: Of the input.
        engine_ms: Accelerator time.
        finish_reason: How it ended.
    """
    return replace(
        row,
        finish_reason=finish_reason,
        output_tokens=output_tokens,
        cached_tokens=cached_tokens,
        engine_ms=engine_ms,
        cost=price.cost(row.input_tokens, cached_tokens, output_tokens),
    )


def settlement_lane(database: Database, timeout_s: float = 5.0) -> Lane:
    """A lane for settlements; the caller closes it."""
    return Lane(database.url, _SETTLE, timeout_s=timeout_s, server_settings={"application_name": "tollgate ledger"})


async def write(lane: Lane, settlement: Settlement) -> None:
    """Writes it, committed when this returns; writing it again changes nothing.

    Raises:
        AppError: As ``Lane.ask``; likewise ``asyncpg.PostgresError``.
    """
    await lane.ask((settlement.org_id.bytes, settlement.key_id.bytes), settlement.arguments)
