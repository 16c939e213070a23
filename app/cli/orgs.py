"""``tollgate orgs``: the customers."""

from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import typer

from app.cli.context import with_database

if TYPE_CHECKING:
    from app.config import Settings
    from app.db import Database

app = typer.Typer(no_args_is_help=True, help="Organisations: who owns keys and usage.")


@app.command(epilog="Example: tollgate orgs create 'Acme Ltd'")
def create(name: Annotated[str, typer.Argument(help="Shown in the portal; 1 to 100 characters.")]) -> None:
    """Create an organisation and print its id."""
    from app import auth

    async def run(database: "Database", _: "Settings") -> str:
        async with database.begin() as connection:
            return str(await auth.create_org(connection, name))

    print(with_database(run))


@app.command("set", epilog="Example: tollgate orgs set ID --spend-cap 250 --monthly-token-limit 50000000")
def set_limits(
    org: Annotated[UUID, typer.Argument(help="Id of the organisation.", show_default=False)],
    monthly_token_limit: Annotated[int | None, typer.Option(help="Input and output tokens of a month.")] = None,
    spend_cap: Annotated[str | None, typer.Option(help="USD of a month.")] = None,
    credit: Annotated[str | None, typer.Option(help="USD to add to the prepaid balance.")] = None,
    max_concurrent: Annotated[int | None, typer.Option(help="Requests that run at once.")] = None,
) -> None:
    """Set hard limits, or add prepaid credit; what is not given stays."""
    from app.billing.budgets import set_budget

    amounts = {"spend_cap": _usd(spend_cap), "credit": _usd(credit)}

    async def run(database: "Database", _: "Settings") -> None:
        async with database.begin() as connection:
            await set_budget(
                connection, org, monthly_token_limit=monthly_token_limit, max_concurrent=max_concurrent, **amounts
            )

    with_database(run)
    print(f"The limits of {org} are set.")


@app.command("list", epilog="Example: tollgate orgs list")
def list_orgs() -> None:
    """List every organisation: id, status, name."""
    from app import auth

    async def run(database: "Database", _: "Settings") -> list[str]:
        async with database.begin() as connection:
            return [f"{org_id}  {status:9}  {name}" for org_id, name, status in await auth.list_orgs(connection)]

    for line in with_database(run):
        print(line)


def _usd(text: str | None) -> Decimal | None:
    try:
        return None if text is None else Decimal(text)
    except InvalidOperation:
        raise typer.BadParameter(f"{text!r} is not an amount") from None
