"""``tollgate keys``: who may call."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import typer

from app.cli.context import with_database

if TYPE_CHECKING:
    from app.auth import KeyListing
    from app.config import Settings
    from app.db import Database

app = typer.Typer(no_args_is_help=True, help="API keys of an organisation.")

Org = Annotated[UUID, typer.Option("--org", help="Id of the organisation.", show_default=False)]


@app.command(epilog="Example: tollgate keys create --org ID --name laptop --scope generation --expires 2027-01-31")
def create(
    org: Org,
    name: Annotated[str, typer.Option(help="What the key is for.", show_default=False)],
    scope: Annotated[
        list[str] | None,
        typer.Option(help="generation, classification or usage; may be repeated (default: all).", show_default=False),
    ] = None,
    expires: Annotated[
        datetime | None,
        typer.Option(help="When it ends, UTC (default: never).", formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]),
    ] = None,
    requests_per_minute: Annotated[int | None, typer.Option(help="Its own limit (default: the plan's).")] = None,
    tokens_per_minute: Annotated[int | None, typer.Option(help="Its own limit (default: the plan's).")] = None,
) -> None:
    """Create a key and print it, alone and for the only time."""
    from app import auth

    async def run(database: "Database", settings: "Settings") -> str:
        async with database.begin() as connection:
            return await auth.mint_key(
                connection,
                settings,
                org,
                name,
                scopes=scope or auth.SCOPES,
                expires_at=expires.replace(tzinfo=UTC) if expires else None,
                requests_per_minute=requests_per_minute,
                tokens_per_minute=tokens_per_minute,
            )

    print(with_database(run))


@app.command(epilog="Example: tollgate keys revoke 0198c0de-0000-7000-8000-000000000000")
def revoke(key_id: Annotated[UUID, typer.Argument(help="Id of the key, as `keys list` shows it.")]) -> None:
    """End a key at once, for every process."""
    from app import auth

    async def run(database: "Database", _: "Settings") -> None:
        async with database.begin() as connection:
            await auth.revoke_key(connection, key_id)

    with_database(run)
    print(f"The key {key_id} is revoked.")


@app.command("list", epilog="Example: tollgate keys list --org ID")
def list_keys(org: Org) -> None:
    """List an organisation's keys, newest first; never a key in full."""
    from app import auth

    async def run(database: "Database", _: "Settings") -> "list[KeyListing]":
        async with database.begin() as connection:
            return await auth.list_keys(connection, org)

    now = datetime.now(UTC)
    for key in with_database(run):
        state = "active" if key.is_active(now) else "revoked" if key.revoked_at else "expired"
        print(f"{key.id}  {key.prefix}…{key.last4}  {state:7}  {','.join(key.scopes)}  {key.name}")
