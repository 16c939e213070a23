"""``tollgate orgs``: the customers."""

from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import typer

from app.cli.context import usd_option, with_database

if TYPE_CHECKING:
    from app.config import Settings
    from app.db import Database

app = typer.Typer(no_args_is_help=True, help="Organisations: who owns keys and usage.")


@app.command(epilog="Example: tollgate orgs create 'Acme Ltd'")
def create(
    name: Annotated[str, typer.Argument(help="Shown in the portal; 1 to 100 characters.")],
    plan: Annotated[
        str, typer.Option(help="free: a customer, who may buy more; internal: your own, without limits.")
    ] = "free",
) -> None:
    """Create an organisation and print its id."""
    from app import audit
    from app.accounts import orgs
    from app.billing.budgets import checked_plan

    async def run(database: "Database", _: "Settings") -> str:
        async with database.begin() as connection:
            org_id = await orgs.create_org(connection, name, checked_plan(plan))
            after = {"name": name, "plan": plan}
            await audit.record(
                connection,
                org_id=org_id,
                actor=audit.OPERATOR,
                action="org.create",
                target=f"org:{org_id}",
                after=after,
            )
        return str(org_id)

    print(with_database(run))


@app.command("set", epilog="Example: tollgate orgs set ID --spend-cap 250 --lift monthly-token-limit")
def set_limits(
    org: Annotated[UUID, typer.Argument(help="Id of the organisation.", show_default=False)],
    monthly_token_limit: Annotated[int | None, typer.Option(help="Input and output tokens of a month.")] = None,
    spend_cap: Annotated[
        str | None, typer.Option(help="USD of a month; the customer may set itself a lower one.")
    ] = None,
    credit: Annotated[str | None, typer.Option(help="USD to give to the prepaid balance; below 0: to take.")] = None,
    max_concurrent: Annotated[int | None, typer.Option(help="Requests that run at once.")] = None,
    plan: Annotated[str | None, typer.Option(help="free or internal; other plans come with what is paid.")] = None,
    lift: Annotated[
        list[str] | None,
        typer.Option(help="Take a limit away: monthly-token-limit, spend-cap or max-concurrent.", show_default=False),
    ] = None,
) -> None:
    """Set or lift hard limits, or give prepaid credit; what is not given stays."""
    from datetime import UTC, datetime, timedelta

    from app.billing import budgets, entitlement

    lifted = tuple(word.replace("-", "_") for word in lift or ())
    cap = usd_option(spend_cap, "--spend-cap")
    given = usd_option(credit, "--credit", is_signed=True)
    change = budgets.Change(monthly_token_limit, cap, max_concurrent, given, plan, lifted)

    async def run(database: "Database", settings: "Settings") -> None:
        async with database.begin() as connection:
            await budgets.set_budget(connection, org, change)
            grace = timedelta(days=settings.billing_grace_days)
            await entitlement.apply(connection, org, datetime.now(UTC), grace)

    with_database(run)
    print(f"The limits of {org} are set.")


@app.command("list", epilog="Example: tollgate orgs list")
def list_orgs() -> None:
    """List every organisation: id, status, name."""
    from app.accounts import orgs

    async def run(database: "Database", _: "Settings") -> list[str]:
        async with database.begin() as connection:
            return [f"{org_id}  {status:9}  {name}" for org_id, name, status in await orgs.list_orgs(connection)]

    for line in with_database(run):
        print(line)
