"""Usage events: what each request is billed for, written exactly once.

``Meter`` counts what one request delivered; ``settle`` writes its row and commits
before the last byte of the answer leaves. The request id is the row's key and
inserting it again changes nothing, so a settlement may be tried twice. Rows lie in
month partitions that exist before anything is written to them.

Money is not known here: a row names the version of the price list, no amount.
"""

from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime
from typing import Literal
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from app.auth import Key
from app.db import Database
from app.tables import UsageEvent
from app.telemetry import TOKENS, USAGE_ROWS

Kind = Literal["generation", "classification", "embedding"]
MONTHS_AHEAD = 3


class Meter:
    """What one admitted request has delivered so far, and its single settlement.

    Args:
        request_id: Becomes the id of the usage row.
        key: Who pays.
        kind: Kind of work.
        model: Name of the model.
        model_digest: Its exact version.
        input_tokens: Tokens of the prompt or inputs; a prompt counts once however
            many answers it gets.
        price_version: Of the price list in force.
        started_at: When the request came in, aware.
        parameters: What, with the model's version and the same input, gives the same
            answer again; as JSON, without the customer's texts.
    """

    def __init__(
        self,
        request_id: UUID,
        key: Key,
        *,
        kind: Kind,
        model: str,
        model_digest: str,
        input_tokens: int,
        price_version: int,
        started_at: datetime,
        parameters: Mapping[str, object] | None = None,
    ) -> None:
        self.request_id = request_id
        self.key = key
        self.kind: Kind = kind
        self.model = model
        self.model_digest = model_digest
        self.input_tokens = input_tokens
        self.price_version = price_version
        self.started_at = started_at
        self.parameters = parameters
        self.cached_tokens = 0
        self.output_tokens = 0
        self.engine_ms = 0.0
        self._is_settled = False

    def deliver(self, num_tokens: int) -> None:
        """Counts tokens that have just been handed to the client's connection."""
        self.output_tokens += num_tokens

    def report(self, cached_tokens: int, engine_ms: float) -> None:
        """Takes what the engine has said so far of the whole request; a later report replaces it.

        Args:
            cached_tokens: Of the input, found in a cache.
            engine_ms: Accelerator time.
        """
        self.cached_tokens = min(self.input_tokens, cached_tokens)
        self.engine_ms = engine_ms

    async def settle(self, database: Database, finish_reason: str) -> None:
        """Writes the row and commits; after it succeeded, further calls do nothing.

        Args:
            database: Used for one short transaction.
            finish_reason: ``stop`` or ``length`` of a whole answer, ``aborted`` where
                the client left, ``error`` where the answer broke off.

        Raises:
            DatabaseUnavailable: Not written; may be called again.
        """
        if self._is_settled:
            return
        async with database.begin() as connection:
            await connection.execute(insert(UsageEvent).values(self._row(finish_reason)).on_conflict_do_nothing())
        self._is_settled = True
        USAGE_ROWS.labels(self.kind, "final").inc()
        TOKENS.labels(self.model, "input").inc(self.input_tokens)
        TOKENS.labels(self.model, "output").inc(self.output_tokens)

    def _row(self, finish_reason: str) -> dict[str, object]:
        return {
            "id": self.request_id,
            "started_at": self.started_at,
            "org_id": self.key.org_id,
            "key_id": self.key.id,
            "model": self.model,
            "model_digest": self.model_digest,
            "kind": self.kind,
            "input_tokens": self.input_tokens,
            "cached_tokens": self.cached_tokens,
            "output_tokens": self.output_tokens,
            "finish_reason": finish_reason,
            "engine_ms": self.engine_ms,
            "price_version": self.price_version,
            "parameters": self.parameters,
        }


async def ensure_partitions(connection: AsyncConnection, today: date, months_ahead: int = MONTHS_AHEAD) -> list[str]:
    """Makes the partitions of ``usage_events`` for this month and those ahead.

    May run at any time and in several processes at once; the lock lasts as long as
    the transaction.

    Returns:
        The names of the partitions, existing ones included.
    """
    await connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('usage_events_partitions'))"))
    names = []
    for start, end in _months(today, months_ahead):
        name = f"usage_events_y{start.year:04d}m{start.month:02d}"
        # Names and bounds are made of integers; DDL takes no bound parameters.
        await connection.execute(
            text(
                f"CREATE TABLE IF NOT EXISTS {name} PARTITION OF usage_events"
                f" FOR VALUES FROM ('{_midnight(start)}') TO ('{_midnight(end)}')"
            )
        )
        names.append(name)
    return names


def _months(today: date, months_ahead: int) -> Iterator[tuple[date, date]]:
    first = today.year * 12 + today.month - 1
    for month in range(first, first + months_ahead + 1):
        yield date(month // 12, month % 12 + 1, 1), date((month + 1) // 12, (month + 1) % 12 + 1, 1)


def _midnight(day: date) -> str:
    return datetime(day.year, day.month, day.day, tzinfo=UTC).isoformat()
