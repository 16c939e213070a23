#!/usr/bin/env python3
"""How long the portal's pages take over many usage rows, and how heavy they are, in a database of its own.

    python scripts/measure-portal.py --rows 1000000 --requests 100

Fills the embedded PostgreSQL with one organisation's rows of the last 30 days, summed by the
hour. Beside them it has keys, a subscription whose period they lie in, and an invoice that
bills half of them. Every page that a signed-in owner can open is asked for, warm, in this
process. Prints JSON: milliseconds, and bytes of each page with all of its own files,
uncompressed; what misses the bar of 100 ms or 150 kB is named in ``missed``, and then it fails.
"""

import argparse
import asyncio
import json
import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
from fastapi.routing import APIRoute
from many_rows import NUM_KEYS, asking, fill, measured, roll, vacuum
from pydantic import SecretStr
from scratch import scratch
from sqlalchemy import insert, text, update

from app import keys, migrate
from app.accounts import sessions
from app.accounts.orgs import create_org
from app.accounts.users import create_user
from app.billing import claims
from app.billing.catalog import METER
from app.billing.prices import PICO_USD_PER_NANO_USD
from app.config import Settings
from app.db import Database
from app.key_terms import Terms
from app.portal import pages
from app.tables import Invoice, MeteringPeriod, MeterOutbox, Org, OrgBudget, Subscription, new_id
from app.telemetry import configure_logging

MAX_MS = 100.0
MAX_BYTES = 150_000
NOT_PAGES = ("/usage/lines.csv", "/usage/rows.csv", "/live", "/data/export", "/static", "/language")
MORE = (
    "/usage?group=key",
    "/usage?span=today&bucket=hour",
    "/usage?span=custom&start=2000-01-01",
    "/usage/rows?model=model-1",
)
INVOICE = "in_measured"
OWN_FILE = re.compile(r'(?:src|href)="(/static/[^"]+)"')
IMPORTED = re.compile(r'from "\./([^"]+)"')


async def claim_all(database: Database, org_id: UUID, subscription_id: UUID, start: datetime, end: datetime) -> int:
    """Claims the rows from ``start`` until before ``end`` window by window, as the worker does; nano-USD."""
    total, at = 0, start
    while at < end:
        until = claims.window_end(at, end)
        async with database.begin() as connection:
            claim_id = new_id()
            cost = await claims.mark(connection, claim_id, org_id, at, until, is_prepaid=False)
            row = {
                "id": claim_id,
                "org_id": org_id,
                "subscription_id": subscription_id,
                "stripe_customer_id": "cus_measured",
                "meter": METER,
                "window_start": at,
                "window_end": until,
                "value": cost // PICO_USD_PER_NANO_USD,
                "event_ts": until - timedelta(seconds=1),
                "identifier": claims.identifier(org_id, METER, at, 0),
                "state": "acked",
                "acked_at": until,
            }
            if cost:
                await connection.execute(insert(MeterOutbox).values(row))
        total, at = total + cost // PICO_USD_PER_NANO_USD, until
    return total


async def subscribe(database: Database, org_id: UUID, now: datetime) -> UUID:
    """A month of growth that ended fifteen days ago, invoiced, and one that runs."""
    turn = (now - timedelta(days=15)).replace(microsecond=0)
    start, end = turn - timedelta(days=30), turn + timedelta(days=31)
    subscription_id = new_id()
    values = {
        "id": subscription_id,
        "org_id": org_id,
        "stripe_subscription_id": "sub_measured",
        "plan": "growth",
        "plan_version": 1,
        "billing_interval": "month",
        "status": "active",
        "started_at": start,
        "period_start": turn,
        "period_end": end,
        "cancel_at_period_end": False,
        "is_current": True,
        "snapshot": {},
        "synced_at": now,
    }
    async with database.begin() as connection:
        await connection.execute(update(Org).where(Org.id == org_id).values(stripe_customer_id="cus_measured"))
        await connection.execute(update(OrgBudget).where(OrgBudget.org_id == org_id).values(plan="growth"))
        await connection.execute(insert(Subscription).values(values))
        for since, until in ((start, turn), (turn, end)):
            period = {
                "period_start": since,
                "period_end": until,
                "claimed_until": min(until, now.replace(microsecond=0)),
            }
            await connection.execute(
                insert(MeteringPeriod).values(subscription_id=subscription_id, is_trial=False, **period)
            )
    value = await claim_all(database, org_id, subscription_id, start, turn)
    await claim_all(database, org_id, subscription_id, turn, now.replace(microsecond=0))
    line = {
        "id": "il_1",
        "description": "Usage",
        "amount": 0,
        "quantity": value,
        "price": "tollgate_growth_v1_usage_month",
        "is_metered": True,
        "period": {"start": int(start.timestamp()), "end": int(turn.timestamp())},
    }
    invoice = {
        "id": INVOICE,
        "org_id": org_id,
        "stripe_subscription_id": "sub_measured",
        "number": "M-0001",
        "status": "paid",
        **dict.fromkeys(("subtotal", "total", "amount_due", "amount_paid"), 9900),
        "period_start": start,
        "period_end": turn,
        "created": turn,
        "finalized_at": turn + timedelta(hours=1),
        "lines": [line],
        "synced_at": now,
    }
    async with database.begin() as connection:
        await connection.execute(insert(Invoice).values(invoice))
    return subscription_id


def paths(key_id: UUID) -> Iterator[str]:
    """Of every page that needs nothing that we do not have."""
    for route in (route for page in pages._PAGES for route in page.router.routes):
        if not isinstance(route, APIRoute) or "GET" not in (route.methods or ()) or route.path.startswith(NOT_PAGES):
            continue
        path = route.path.replace("{key_id}", str(key_id)).replace("{invoice_id}", INVOICE)
        if "{" not in path:
            yield path
    yield from MORE


async def weigh(client: httpx.AsyncClient, page: str, kept: dict[str, int]) -> int:
    """Bytes of all files of our own that a page loads; ``kept`` has those that were weighed."""
    waiting, seen = OWN_FILE.findall(page), set()
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        answer = (await client.get(path)).raise_for_status()
        kept[path] = len(answer.content)
        if path.partition("?")[0].endswith(".js"):
            waiting += [f"{path.rpartition('/')[0]}/{name}" for name in IMPORTED.findall(answer.text)]
    return sum(kept[path] for path in seen)


async def visit(settings: Settings, session: str, key_id: UUID, num_requests: int) -> dict[str, Any]:
    """Milliseconds and bytes of each page; those that do not answer 200 are named with their status."""
    found: dict[str, Any] = {}
    kept: dict[str, int] = {}
    async with asking(settings) as client:
        client.cookies.set(sessions.SESSION_COOKIE, session)
        for path in paths(key_id):
            answer = await client.get(path)
            if answer.status_code != httpx.codes.OK:
                found[path] = {"status": answer.status_code}
                continue
            found[path] = await measured(client, num_requests, path)
            found[path]["bytes"] += await weigh(client, answer.text, kept)
    return found


async def measure(url: str, folder: Path, num_rows: int, num_requests: int) -> dict[str, Any]:
    """Fills, sums and asks; see the module's docstring."""
    now = datetime.now(UTC)
    await migrate.upgrade(url)
    settings = Settings(
        database_url=url,
        models_dir=Path("models"),
        data_dir=folder,
        key_pepper=SecretStr("measuring"),
        log_level="error",
    )
    configure_logging(settings)
    database = Database.connect(url, pool_size=1, timeout_s=600)
    try:
        async with database.begin() as connection:
            org_id = await create_org(connection, "Measured")
            made = [await keys.mint_key(connection, settings, org_id, Terms(f"key {n}")) for n in range(NUM_KEYS)]
            user_id = await create_user(connection, org_id, "owner@measured.example", "a long password")
            session = await sessions.open_session(connection, user_id, now)
        key_ids = [one.id for one in made]
        await fill(database, org_id, num_rows, key_ids)
        await subscribe(database, org_id, now)
        await roll(database)
        await vacuum(database, "usage_events, usage_rollup_hour, rolled_hours, stripe_meter_outbox")
        async with database.begin() as connection:
            rows = (await connection.execute(text("SELECT count(*) FROM usage_events"))).scalar_one()
    finally:
        await database.aclose()
    found = await visit(settings, session, key_ids[0], num_requests)
    missed = [path for path, one in found.items() if one.get("p95_ms", 0) >= MAX_MS or one.get("bytes", 0) >= MAX_BYTES]
    return {"rows": rows, "pages": found, "missed": missed}


def main() -> None:
    """Runs it and cleans up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--requests", type=int, default=100)
    options = parser.parse_args()
    with scratch("portal") as (url, folder):
        found = asyncio.run(measure(url, folder, options.rows, options.requests))
    sys.stdout.write(json.dumps(found, indent=2) + "\n")
    sys.exit(1 if found["missed"] else 0)


if __name__ == "__main__":
    main()
