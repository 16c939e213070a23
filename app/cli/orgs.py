"""``tollgate orgs``: the customers."""

from typing import TYPE_CHECKING, Annotated

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


@app.command("list", epilog="Example: tollgate orgs list")
def list_orgs() -> None:
    """List every organisation: id, status, name."""
    from app import auth

    async def run(database: "Database", _: "Settings") -> list[str]:
        async with database.begin() as connection:
            return [f"{org_id}  {status:9}  {name}" for org_id, name, status in await auth.list_orgs(connection)]

    for line in with_database(run):
        print(line)
