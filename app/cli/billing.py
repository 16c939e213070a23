"""``tollgate billing``: the books."""

from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.context import with_database

if TYPE_CHECKING:
    from app.billing.check import Finding
    from app.config import Settings
    from app.db import Database

app = typer.Typer(no_args_is_help=True, help="Money: the ledger and what is made of it.")


@app.command(epilog="Example: tollgate billing doctor")
def doctor() -> None:
    """Check every invariant of the ledger; fails where one is broken. Reads everything, changes nothing."""
    from app.billing.check import examine
    from app.billing.doctor import CHECKS

    async def run(database: "Database", _: "Settings") -> "list[Finding]":
        return await examine(database, CHECKS)

    findings = with_database(run)
    for finding in findings:
        _show(finding)
    broken = sum(not finding.is_kept for finding in findings)
    print(f"{len(findings) - broken} of {len(findings)} invariants hold.")
    if broken:
        raise typer.Exit(1)


@app.command("rebuild-rollups", epilog="Example: tollgate billing rebuild-rollups")
def rebuild_rollups() -> None:
    """Sum usage by the hour anew, from the rows. Statements stay right meanwhile."""
    from app.billing import rollups

    async def run(database: "Database", _: "Settings") -> None:
        start, is_more = None, True
        while is_more:
            async with database.begin() as connection:
                start = await rollups.rebuild_from(connection, start)
            is_more = start is not None
        is_more = True
        while is_more:
            async with database.begin() as connection:
                is_more = await rollups.roll_next(connection)

    with_database(run)
    print("The sums by the hour are made anew.")


@app.command("sync-catalog", epilog="Example: tollgate billing sync-catalog")
def sync_catalog(
    check: Annotated[bool, typer.Option("--check", help="Make nothing, only compare.")] = False,
) -> None:
    """Push plans, prices and coupons to Stripe; fails where Stripe has something else than the catalogue."""
    from datetime import UTC, datetime

    from app.billing import sync
    from app.billing.gateway import Gateway

    async def run(database: "Database", settings: "Settings") -> "sync.Report":
        gateway = Gateway.of(settings)
        try:
            if check:
                return sync.Report(drift=dict(await sync.check(database, gateway, datetime.now(UTC))))
            return await sync.push(database, gateway, datetime.now(UTC))
        finally:
            await gateway.aclose()

    report = with_database(run)
    for line in sync.lines(report):
        print(line)
    if report.drift:
        raise typer.Exit(1)


def _show(finding: "Finding") -> None:
    from app.billing.check import MAX_FINDINGS

    print(f"{'ok    ' if finding.is_kept else 'BROKEN'}  {finding.check.name}: {finding.check.promise}")
    for problem in finding.problems[:MAX_FINDINGS]:
        print(f"        {problem}")
    if len(finding.problems) > MAX_FINDINGS:
        print("        … and more")
