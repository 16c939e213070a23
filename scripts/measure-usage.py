#!/usr/bin/env python3
"""How long GET /v1/usage takes over many rows, in a database that is gone afterwards.

    python scripts/measure-usage.py --rows 20000000 --requests 200

Starts the embedded PostgreSQL in a temporary folder, writes the rows of one organisation
over the last 30 days with generate_series, sums them by the hour as the worker does, and
asks the API in this process (key, admission and JSON included) for the month in every
bucket and grouping. Requests are admitted and settled, 64 at a time, before the rows are
there and after. Prints JSON: seconds for writing and summing, bytes, the milliseconds of
each query, and the requests a second. Needs about 0.3 GB of disk a million rows.
scripts/measure-portal.py asks for the pages.
"""

import argparse
import asyncio
import json
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from many_rows import DAYS, asking, fill, measured, roll, vacuum
from pydantic import SecretStr
from scratch import scratch
from sqlalchemy import text

from app import auth, keys, metering, migrate, partitions
from app.accounts.orgs import create_org
from app.admission import Admission, Limits, Work
from app.billing.prices import PRICE_VERSION, PRICES
from app.billing.statement import Query, read_lines
from app.config import Settings
from app.db import Database
from app.journal import Journal
from app.key_terms import Terms
from app.tables import new_id
from app.telemetry import configure_logging

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


async def read_rows(database: Database, org_id: UUID) -> float:
    """Milliseconds for the month by day while nothing is summed yet."""
    end, started_s = datetime.now(UTC), time.perf_counter()
    async with database.begin() as connection:
        await read_lines(connection, Query(org_id, end - timedelta(days=DAYS), end, "day"))
    return round((time.perf_counter() - started_s) * 1000, 1)


async def ask(settings: Settings, key: str, num_requests: int) -> dict[str, Any]:
    """Milliseconds of each query."""
    found = {}
    async with asking(settings) as client:
        client.headers["authorization"] = f"Bearer {key}"
        for name, parameters in QUERIES.items():
            end = datetime.now(UTC)
            span = {"start": (end - timedelta(days=DAYS)).isoformat(), "end": end.isoformat()}
            found[name] = await measured(client, num_requests, "/v1/usage", {**span, **parameters})
    return found


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
            key = (await keys.mint_key(connection, settings, org_id, Terms("measuring"))).key
            # Of an hour that is not summed yet: not among the rows that are measured.
            busy_id = await create_org(connection, "Busy")
            busy_key = (await keys.mint_key(connection, settings, busy_id, Terms("settling"))).key
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
        "month_by_day_without_sums_ms": unsummed_ms,
    }


def main() -> None:
    """Runs it and cleans up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--requests", type=int, default=100)
    options = parser.parse_args()
    with scratch("usage") as (url, folder):
        found = asyncio.run(measure(url, folder, options.rows, options.requests))
    sys.stdout.write(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
