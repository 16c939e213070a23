#!/usr/bin/env python3
"""How fast a storm of webhooks is taken in and worked off, in a database of its own that is gone afterwards.

    python scripts/measure-storm.py --deliveries 5000 --customers 90

Starts the embedded PostgreSQL in a temporary folder, the API in this process and a simulated
Stripe in another one, in which customers subscribe, change their minds and renew. Sends
their events to the API in no order and many of them several times, then works the inbox off
with one worker. The last line is JSON: deliveries, events, both rates, events that were lost,
and whether what is believed afterwards is what it was when each event came once and in order.
"""

import argparse
import asyncio
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from scratch import scratch

from app import migrate
from app.config import Settings
from app.telemetry import configure_logging
from tests.billing.storm import Storm, blow, brew, endpoint_of
from tests.year.town import running


async def measure(database_url: str, folder: Path, num_deliveries: int, num_customers: int, seed: int) -> Storm:
    """Brews a storm and lets it blow."""
    await migrate.upgrade(database_url)
    configure_logging(Settings(log_level="error"))
    async with running(database_url, folder) as town:
        url = await endpoint_of(town)
        bodies = await brew(town, num_customers)
        return await blow(town, url, bodies, max(num_deliveries, len(bodies)), seed)


def main() -> None:
    """Runs it and cleans up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--deliveries", type=int, default=5_000)
    parser.add_argument("--customers", type=int, default=90)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    with scratch("storm") as (url, folder):
        storm = asyncio.run(measure(url, folder, options.deliveries, options.customers, options.seed))
    sys.stdout.write(storm.line() + "\n")


if __name__ == "__main__":
    main()
