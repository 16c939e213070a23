"""``tollgate billing``: the books."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, TypeVar
from uuid import UUID

import typer

from app.cli import events, meter_events
from app.cli.context import with_database

if TYPE_CHECKING:
    from app.billing.check import Finding
    from app.billing.gateway import Gateway
    from app.config import Settings
    from app.db import Database

T = TypeVar("T")

app = typer.Typer(no_args_is_help=True, help="Money: the ledger and what is made of it.")
app.add_typer(events.app, name="events")
app.add_typer(meter_events.app, name="meter-events")


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


@app.command(epilog="Example: tollgate billing reconcile --days 7")
def reconcile(
    days: Annotated[int, typer.Option(min=1, max=30, help="How far back.")] = 3,
    org: Annotated[UUID | None, typer.Option(help="One organisation's usage only.")] = None,
    reissue: Annotated[bool, typer.Option("--reissue", help="Send again what Stripe has not counted.")] = False,
    retry: Annotated[bool, typer.Option("--retry", help="Send once more what Stripe refused.")] = False,
) -> None:
    """Compare what Stripe has counted, hour by hour, with what it took; fails where they differ."""
    from datetime import UTC, datetime, timedelta

    from app.billing import outbox
    from app.billing import reconcile as books
    from app.billing.turns import Turns

    turns = Turns("meter.compare_failed")

    async def run(database: "Database", _: "Settings", gateway: "Gateway") -> "list[books.Difference]":
        now = datetime.now(UTC)
        if retry:
            print(f"{await outbox.retry_rejected(database)} events that were refused are sent once more.")
        found = await books.compare(database, gateway, now - timedelta(days=days), now, now, turns, org_id=org)
        if reissue:
            print(f"{await books.doubt(database, found, now)} hours are settled by what Stripe has counted.")
            await books.settle_doubts(database, gateway, now)
        await outbox.drain(database, gateway, now=now)
        return found

    differences = _with_gateway(run)
    for one in differences:
        hour = one.hour
        print(f"{hour.start:%Y-%m-%d %H:%M}  {hour.customer}  taken {one.taken}, counted {one.counted} (10^-9 USD)")
    print(f"{len(differences)} hours differ.")
    turns.end()
    if differences:
        raise typer.Exit(1)


@app.command(epilog="Example: tollgate billing plans")
def plans() -> None:
    """List what is sold: prices, what is included, what is above it."""
    from app.billing.catalog import CREDIT_CENTS, LISTED, NANO_USD_PER_USD

    for plan in LISTED:
        print(f"{plan.name:10} version {plan.version}  {plan.title}")
        if plan.intervals:
            print(f"           {_usd(plan.month_cents)} a month, {_usd(plan.year_cents)} a year")
            print(f"           {plan.included_tokens:,} standard tokens a month included")
        for tier in plan.overage:
            above = "then" if tier.up_to is None else f"up to ${tier.up_to // NANO_USD_PER_USD:,} of usage"
            print(f"           {above}: {tier.percent} % of list price")
        if plan.monthly_token_limit:
            print(f"           {plan.monthly_token_limit:,} tokens a month, no more")
        if plan.trial_days:
            print(f"           {plan.trial_days} days of trial")
    print("credit     " + ", ".join(map(_usd, CREDIT_CENTS)))


@app.command("subscribe-link", epilog="Example: tollgate billing subscribe-link ORG growth --interval year")
def subscribe_link(
    org: Annotated[UUID, typer.Argument(help="Id of the organisation.", show_default=False)],
    plan: Annotated[str, typer.Argument(help="Of the catalogue.", show_default=False)],
    interval: Annotated[str, typer.Option(help="month or year.")] = "month",
    email: Annotated[str | None, typer.Option(help="For Stripe's receipts.")] = None,
    coupon: Annotated[str | None, typer.Option(help="Id of a coupon of the catalogue.")] = None,
) -> None:
    """Print an address at which an organisation pays for a plan; it is good for a day."""
    from datetime import UTC, datetime

    from app.billing import checkout

    async def run(database: "Database", settings: "Settings", gateway: "Gateway") -> str:
        buyer = checkout.Buyer(org, email, settings.portal_url)
        now = datetime.now(UTC)
        return await checkout.subscribe(database, gateway, settings, buyer, plan, interval, now, coupon=coupon)

    print(_with_gateway(run))


@app.command("live-smoke", epilog="Example: TOLLGATE_STRIPE_API_KEY=sk_test_... tollgate billing live-smoke")
def live_smoke() -> None:
    """Rehearse a month of a customer at Stripe's test mode; needs a key of it, and does nothing without."""
    import asyncio
    from contextlib import aclosing
    from datetime import UTC, datetime

    from app.billing import smoke
    from app.billing.gateway import Gateway
    from app.cli.context import settings_for_command

    settings = settings_for_command(log_level="warning")
    if settings.stripe_api_key is None:
        print("Skipped: TOLLGATE_STRIPE_API_KEY is not set.")
        return
    smoke.check_key(settings.stripe_api_key.get_secret_value())

    async def run() -> None:
        gateway = Gateway.of(settings)
        try:
            # However it ends, what was made is cleared away.
            async with aclosing(smoke.rehearse(gateway, datetime.now(UTC))) as steps:
                async for seen in steps:
                    print(f"ok    {seen}")
        finally:
            await gateway.aclose()

    asyncio.run(run())
    print("Stripe does what we think it does.")


def _with_gateway(action: "Callable[[Database, Settings, Gateway], Awaitable[T]]") -> "T":
    from app.billing.gateway import Gateway

    async def run(database: "Database", settings: "Settings") -> "T":
        gateway = Gateway.of(settings)
        try:
            return await action(database, settings, gateway)
        finally:
            await gateway.aclose()

    return with_database(run)


def _usd(cents: int) -> str:
    return f"${cents // 100:,}.{cents % 100:02}"


def _show(finding: "Finding") -> None:
    from app.billing.check import MAX_FINDINGS

    print(f"{'ok    ' if finding.is_kept else 'BROKEN'}  {finding.check.name}: {finding.check.promise}")
    for problem in finding.problems[:MAX_FINDINGS]:
        print(f"        {problem}")
    if len(finding.problems) > MAX_FINDINGS:
        print("        … and more")
