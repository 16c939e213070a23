#!/usr/bin/env python3
"""How long GET /v1/usage and the portal's pages take over many rows, in a database that is gone afterwards.

    python scripts/measure-usage.py --rows 20000000 --requests 200

Starts the embedded PostgreSQL in a temporary folder, writes the rows of one organisation
over the last 30 days with generate_series, sums them by the hour as the worker does, and
asks the API in this process (key, admission and JSON included) for the month in every
bucket and grouping, and for the pages of a member who is signed in. Requests are admitted
and settled, 64 at a time, before the rows are there and after. Prints JSON: seconds for
writing and summing, bytes, the milliseconds of each query and page, and the requests a
second. Needs about 0.3 GB of disk a million rows.
"""

import argparse
import asyncio
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
from pydantic import SecretStr
from sqlalchemy import text

from app import auth, keys, metering, migrate, partitions, postgres
from app.accounts import sessions
from app.accounts.orgs import create_org
from app.accounts.users import create_user
from app.admission import Admission, Limits, Work
from app.billing import rollups
from app.billing.prices import PRICE_VERSION, PRICES
from app.billing.statement import Query, read_lines
from app.config import Settings
from app.db import Database
from app.journal import Journal
from app.main import create_app
from app.tables import new_id
from app.telemetry import configure_logging

DAYS = 30
NUM_MODELS, NUM_KEYS = 5, 20
SETTLE_REQUESTS, SETTLE_AT_ONCE, SETTLE_ROUNDS = 6_400, 64, 5
QUERIES: dict[str, dict[str, Any]] = {
    "day": {"bucket": "day"},
    "month by model": {"bucket": "month", "group_by": "model"},
    "day by model and kind": {"bucket": "day", "group_by": "model,kind", "limit": 1000},
    "day by model and key": {"bucket": "day", "group_by": "model,key", "limit": 1000},
    "hour": {"bucket": "hour", "limit": 1000},
    "hour by model, first page": {"bucket": "hour", "group_by": "model", "limit": 100},
    "day as csv": {"bucket": "day", "group_by": "key", "limit": 1000, "format": "csv"},
}
PAGES = (
    *("/", "/overview", "/keys", "/limits", "/usage", "/usage?group=key", "/usage?span=today&bucket=hour"),
    *("/usage?span=custom&start=2000-01-01", "/usage/rows", "/usage/rows?model=model-1", "/billing"),
)
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


async def read_rows(database: Database, org_id: UUID) -> float:
    """Milliseconds for the month by day while nothing is summed yet."""
    end, started_s = datetime.now(UTC), time.perf_counter()
    async with database.begin() as connection:
        await read_lines(connection, Query(org_id, end - timedelta(days=DAYS), end, "day"))
    return round((time.perf_counter() - started_s) * 1000, 1)


async def ask(settings: Settings, key: str, num_requests: int) -> dict[str, Any]:
    """Milliseconds of each query."""
    found = {}
    async with _client(settings) as client:
        client.headers["authorization"] = f"Bearer {key}"
        for name, parameters in QUERIES.items():
            end = datetime.now(UTC)
            span = {"start": (end - timedelta(days=DAYS)).isoformat(), "end": end.isoformat()}
            found[name] = await _time(client, num_requests, "/v1/usage", {**span, **parameters})
    return found


async def visit(settings: Settings, session: str, num_requests: int) -> dict[str, Any]:
    """Milliseconds of each page."""
    async with _client(settings) as client:
        client.cookies.set(sessions.SESSION_COOKIE, session)
        return {path: await _time(client, num_requests, path) for path in PAGES}


@asynccontextmanager
async def _client(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://usage", timeout=600) as client:
            yield client


async def _time(
    client: httpx.AsyncClient, num_requests: int, path: str, params: dict[str, Any] | None = None
) -> dict[str, float]:
    spent_ms, size = [], 0
    for _ in range(num_requests + 3):
        started_s = time.perf_counter()
        answer = await client.get(path, params=params)
        spent_ms.append((time.perf_counter() - started_s) * 1000)
        assert answer.status_code == httpx.codes.OK, (path, answer.status_code)
        size = len(answer.content)
    measured = sorted(spent_ms[3:])  # the first warm the pool and the plans
    p95 = round(statistics.quantiles(measured, n=20)[-1], 1)
    return {
        "p50_ms": round(statistics.median(measured), 1),
        "p95_ms": p95,
        "max_ms": round(measured[-1], 1),
        "bytes": size,
    }


async def settle(database: Database, settings: Settings, key: str) -> float:
    """Requests a second that are admitted and settled; the best of some rounds."""
    async with database.begin() as connection:
        caller = await auth.find_key(connection, key, settings.key_pepper.get_secret_value())
        await partitions.ensure_partitions(connection, datetime.now(UTC).date())
    ledger = metering.Ledger(database, Journal(settings.journal_dir))
    admission = Admission(database, ledger)
    limits = Limits(2**31 - 1, 2**31 - 1)
    work = Work(100, 100, 1, PRICES[PRICE_VERSION, "generation"], 60.0)

    async def serve(count: int) -> None:
        for _ in range(count):
            request_id = new_id()
            await admission.reserve(request_id, caller, limits, 200, work)
            meter = metering.Meter(
                ledger,
                request_id,
                caller,
                kind="generation",
                model="model-1",
                model_digest="digest",
                input_tokens=100,
                price=work.price,
                price_version=PRICE_VERSION,
                started_at=datetime.now(UTC),
            )
            meter.deliver(100)
            await meter.settle("stop")

    rates = []
    for _ in range(SETTLE_ROUNDS):
        started_s = time.perf_counter()
        await asyncio.gather(*(serve(SETTLE_REQUESTS // SETTLE_AT_ONCE) for _ in range(SETTLE_AT_ONCE)))
        rates.append(SETTLE_REQUESTS / (time.perf_counter() - started_s))
    await admission.aclose()
    await ledger.aclose()
    return round(max(rates), 1)


async def measure(url: str, folder: Path, num_rows: int, num_requests: int) -> dict[str, Any]:
    """Fills, sums and asks; see the module's docstring."""
    await migrate.upgrade(url)
    settings = Settings(
        database_url=url, models_dir=folder, data_dir=folder, key_pepper=SecretStr("measuring"), log_level="error"
    )
    configure_logging(settings)
    database = Database.connect(url, pool_size=1)
    try:
        async with database.begin() as connection:
            org_id = await create_org(connection, "Measured")
            key = (await keys.mint_key(connection, settings, org_id, keys.Terms("measuring"))).key
            # Of an hour that is not summed yet: not among the rows that are measured.
            busy_id = await create_org(connection, "Busy")
            busy_key = (await keys.mint_key(connection, settings, busy_id, keys.Terms("settling"))).key
            user_id = await create_user(connection, org_id, "owner@measured.example", "a long password")
            session = await sessions.open_session(connection, user_id, datetime.now(UTC))
        settled_before = await settle(database, settings, busy_key)
        written_s = await fill(database, org_id, num_rows)
        await vacuum(database, "usage_events")
        unsummed_ms = await read_rows(database, org_id)
        rolled_s = await roll(database)
        await vacuum(database, "usage_rollup_hour, rolled_hours")
        async with database.begin() as connection:
            size = (await connection.execute(text("SELECT pg_database_size(current_database())"))).scalar_one()
            rows = (await connection.execute(text("SELECT count(*) FROM usage_events"))).scalar_one()
            sums = (await connection.execute(text("SELECT count(*) FROM usage_rollup_hour"))).scalar_one()
        settled_after = await settle(database, settings, busy_key)
    finally:
        await database.aclose()
    return {
        "rows": rows,
        "sums": sums,
        "database_bytes": size,
        "settled_a_second_before": settled_before,
        "settled_a_second_after": settled_after,
        "written_s": round(written_s, 1),
        "rolled_s": round(rolled_s, 1),
        "queries": await ask(settings, key, num_requests),
        "pages": await visit(settings, session, num_requests),
        "month_by_day_without_sums_ms": unsummed_ms,
    }


def main() -> None:
    """Runs it and cleans up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--requests", type=int, default=100)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="tollgate-usage-"))
    folder.chmod(0o711)
    cluster = postgres.locate(folder / "data", durable=False)
    server = postgres.start(cluster)
    try:
        found = asyncio.run(measure(cluster.url, folder, options.rows, options.requests))
    finally:
        server.stop()
        shutil.rmtree(folder)
    sys.stdout.write(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
