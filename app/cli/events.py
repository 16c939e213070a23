"""``tollgate billing events``: what Stripe told us and we could not deal with yet."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.context import with_database

if TYPE_CHECKING:
    from collections.abc import Sequence

    from app.config import Settings
    from app.db import Database

app = typer.Typer(no_args_is_help=True, help="Events of Stripe's that wait or were given up.")

_MAX_ERROR = 120


@app.command("list", epilog="Example: tollgate billing events list --waiting")
def list_events(
    waiting: Annotated[bool, typer.Option("--waiting", help="Those that are still tried, too.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="At most so many, oldest first.")] = 100,
) -> None:
    """List the events that were given up: state, id, type, when it came, attempts and the last error."""
    from app.billing import inbox

    async def run(database: "Database", _: "Settings") -> "Sequence[Any]":
        async with database.begin() as connection:
            return await inbox.list_waiting(connection, dead_only=not waiting, limit=limit)

    rows = with_database(run)
    for row in rows:
        state = "given up" if row.is_dead else "waiting"
        # As it came from elsewhere it may hold line ends.
        error = " ".join((row.last_error or "").split())[:_MAX_ERROR]
        print(
            f"{state:8}  {row.id}  {row.type}  {row.received_at:%Y-%m-%d %H:%M:%S}  {row.attempts:2}  {error}".rstrip()
        )
    if not rows:
        print("Nothing waits." if waiting else "Nothing was given up.")


@app.command(epilog="Example: tollgate billing events retry --all")
def retry(
    ids: Annotated[list[str] | None, typer.Argument(metavar="EVENT...", help="Ids, as Stripe has them.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Everything that was given up.")] = False,
) -> None:
    """Let the worker try events again at once, those that were given up too."""
    from app.billing import inbox

    if not ids and not every:
        raise typer.BadParameter("name events, or use --all")

    async def run(database: "Database", _: "Settings") -> int:
        async with database.begin() as connection:
            return await inbox.retry(connection, ids or [], all_dead=every)

    count = with_database(run)
    print(f"{count} event{'' if count == 1 else 's'} will be tried again.")
    if ids and count == 0:
        raise typer.Exit(1)
