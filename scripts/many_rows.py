"""Many usage rows of one organisation, as they lie in the database, and how long answers take over them."""

import statistics
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import httpx
from sqlalchemy import text

from app import partitions
from app.billing import rollups
from app.config import Settings
from app.db import Database
from app.main import create_app
from app.tables import new_id

DAYS = 30
NUM_MODELS, NUM_KEYS = 5, 20
NUM_WARMING = 3
# The triggers are for rows that come late one by one; here nothing is summed yet.
QUIETLY = text("SET LOCAL session_replication_role = replica")
WRITE = text(
    """
INSERT INTO usage_events (id, started_at, org_id, key_id, model, model_digest, kind, input_tokens, cached_tokens,
    output_tokens, finish_reason, billed_at, engine_ms, price_version)
SELECT uuidv7(at - now()), at, :org_id, (CAST(:key_ids AS uuid[]))[1 + n * 7 % :num_keys],
    'model-' || n % :num_models, 'digest', (ARRAY['generation', 'classification', 'embedding'])[1 + n % 3],
    1 + n % 997, n % 2, n % 499, 'stop', at + interval '900 milliseconds', 41.5, 1
FROM (SELECT n, CAST(:start AS timestamptz) + n * CAST(:step AS interval) AS at
    FROM generate_series(1, CAST(:rows AS bigint)) AS n) AS numbered
"""
)


async def fill(database: Database, org_id: UUID, num_rows: int, key_ids: Sequence[UUID] = ()) -> float:
    """Writes the rows day by day; seconds. Without ``key_ids`` they are of keys that there are not."""
    started_s, key_ids = time.perf_counter(), key_ids or [new_id() for _ in range(NUM_KEYS)]
    per_day = num_rows // DAYS
    begin = datetime.now(UTC) - timedelta(days=DAYS)
    async with database.begin() as connection:
        await partitions.ensure_partitions(connection, begin.date())
    for day in range(DAYS):
        bind = {
            "org_id": org_id,
            "key_ids": key_ids,
            "num_keys": len(key_ids),
            "num_models": NUM_MODELS,
            "start": begin + timedelta(days=day),
            "step": timedelta(days=1) / per_day,
            "rows": per_day,
        }
        async with database.begin() as connection:
            await connection.execute(QUIETLY)
            await connection.execute(WRITE, bind)
    return time.perf_counter() - started_s


async def roll(database: Database) -> float:
    """Sums every hour that is over; seconds."""
    started_s, is_more = time.perf_counter(), True
    while is_more:
        async with database.begin() as connection:
            is_more = await rollups.roll_next(connection)
    return time.perf_counter() - started_s


async def vacuum(database: Database, tables: str) -> None:
    """As autovacuum does in its own time."""
    outside_transactions = database.engine.execution_options(isolation_level="AUTOCOMMIT")
    async with outside_transactions.connect() as connection:
        await connection.execute(text(f"VACUUM ANALYZE {tables}"))


@asynccontextmanager
async def asking(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the API and the portal in this process."""
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://usage", timeout=600) as client:
            yield client


async def measured(
    client: httpx.AsyncClient, num_requests: int, path: str, params: dict[str, Any] | None = None
) -> dict[str, float]:
    """Milliseconds and bytes of an answer of 200, asked for so many times."""
    spent_ms, size = [], 0
    for _ in range(num_requests + NUM_WARMING):
        started_s = time.perf_counter()
        answer = await client.get(path, params=params)
        spent_ms.append((time.perf_counter() - started_s) * 1000)
        assert answer.status_code == httpx.codes.OK, (path, answer.status_code)
        size = len(answer.content)
    kept_ms = sorted(spent_ms[NUM_WARMING:])  # the first warm the pool and the plans
    p95 = round(statistics.quantiles(kept_ms, n=20)[-1], 1)
    return {
        "p50_ms": round(statistics.median(kept_ms), 1),
        "p95_ms": p95,
        "max_ms": round(kept_ms[-1], 1),
        "bytes": size,
    }
