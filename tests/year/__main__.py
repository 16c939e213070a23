"""`python -m tests.year`: twelve customers, twelve months, every invoice against the rows; `make year`."""

import asyncio
import json
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from app.billing.check import Finding, examine
from app.billing.doctor import CHECKS
from app.config import Settings
from app.telemetry import configure_logging
from tests.conftest import TestServer
from tests.year import oracle, story, usage
from tests.year.cast import customers
from tests.year.oracle import Comparison
from tests.year.story import START, Year
from tests.year.town import Town, running

_NANO_USD_PER_MICRO_USD = 1_000


def main(
    seed: Annotated[int, typer.Option(help="Of what is used.")] = 7,
    days: Annotated[int, typer.Option(min=1, max=365, help="How much of the year.")] = 365,
    only: Annotated[list[str] | None, typer.Option(help="Only this customer; may be given several times.")] = None,
) -> None:
    """Lead twelve customers through a year and compare what Stripe invoices with what the rows say."""
    configure_logging(Settings(log_level="error"))
    began = time.monotonic()
    server = TestServer()
    try:
        with tempfile.TemporaryDirectory(prefix="tollgate-year-") as folder:
            problems, result = asyncio.run(_run(server.cluster.url, Path(folder), seed, days, only))
    finally:
        server.stop()
    for problem in problems:
        sys.stderr.write(f"{problem}\n")
    result["seconds"] = round(time.monotonic() - began, 1)
    sys.stdout.write(json.dumps(result) + "\n")
    raise typer.Exit(1 if problems else 0)


async def _run(
    database_url: str, folder: Path, seed: int, days: int, only: list[str] | None
) -> tuple[list[str], dict[str, Any]]:
    async with running(database_url, folder) as town:
        cast = [one for one in customers() if not only or one.name in only]
        year = Year(town, cast, seed)
        await year.live(START + timedelta(days=days))
        invoices = await _invoices(town, year)
        comparison = await _compare(town, year, invoices)
        problems = comparison.problems + await _other_books(town, invoices)
        micro_usd, rest = divmod(comparison.drift_nano_usd, _NANO_USD_PER_MICRO_USD)
        return problems, {
            "customers": len(cast),
            "invoices": sum(one["status"] not in ("draft", "void") for one in invoices),
            "drift_micro_usd": micro_usd + bool(rest),
        }


async def _invoices(town: Town, year: Year) -> list[dict[str, Any]]:
    found = []
    for customer in year.customers:
        for invoice in await town.all("/v1/invoices", customer=customer.stripe_id):
            if invoice["lines"]["has_more"]:
                invoice["lines"]["data"] = await town.all(f"/v1/invoices/{invoice['id']}/lines")
            found.append(invoice)
    return found


async def _compare(town: Town, year: Year, invoices: list[dict[str, Any]]) -> Comparison:
    prices = await town.all("/v1/prices")
    plan_of_price = {
        price["id"]: price["lookup_key"].split("_")[1]
        for price in prices
        if price["lookup_key"] and "_usage_" in price["lookup_key"]
    }
    final = year.now - story.DRAFT
    lives = [life for customer in year.customers for life in customer.lives]
    expected = [segment for life in lives for segment in oracle.segments(life, final)]
    rows = await usage.read(town.database, year.late)
    return oracle.compare(expected, rows, oracle.billed(invoices, plan_of_price))


async def _other_books(town: Town, invoices: list[dict[str, Any]]) -> list[str]:
    """What else has to hold: what we have written down of invoices, their own audit, and every check of the doctor."""
    async with town.database.begin() as connection:
        rows = await connection.exec_driver_sql("SELECT id, status, total, metered_value, ledger_value FROM invoices")
        known = {row.id: row for row in rows}
    problems = []
    for invoice in invoices:
        row = known.pop(invoice["id"], None)
        if row is None or (row.status, row.total) != (invoice["status"], invoice["total"]):
            problems.append(f"invoice {invoice['id']}: known as {row}")
        elif row.ledger_value is not None and row.metered_value != row.ledger_value:
            problems.append(f"invoice {row.id}: audited as {row.metered_value}, claimed {row.ledger_value}")
    # One check asks how late it is, by the real clock.
    checks = [check for check in CHECKS if check.name != "due usage is claimed"]
    findings: list[Finding] = await examine(town.database, checks)
    problems += [f"doctor: {finding.check.name}: {problem}" for finding in findings for problem in finding.problems]
    return problems + [f"invoice {id}: not at Stripe" for id in known]


typer.run(main)
