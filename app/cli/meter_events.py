"""``tollgate billing meter-events``: usage on its way to Stripe that does not get there."""

from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from app.cli.context import with_database

if TYPE_CHECKING:
    from collections.abc import Sequence

    from app.config import Settings
    from app.db import Database

app = typer.Typer(no_args_is_help=True, help="Usage on its way to Stripe: what was refused, waits or is in doubt.")

_MAX_ERROR = 120
_NANO_USD_PER_USD = 10**9


@app.command("list", epilog="Example: tollgate billing meter-events list --waiting")
def list_events(
    waiting: Annotated[bool, typer.Option("--waiting", help="Those that wait or are in doubt, too.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="At most so many, oldest first.")] = 100,
) -> None:
    """List what Stripe refused: state, id, organisation, time, value, attempts and the last error."""
    from app.billing import write_offs

    async def run(database: "Database", _: "Settings") -> "Sequence[Any]":
        async with database.begin() as connection:
            return await write_offs.list_open(connection, with_waiting=waiting, limit=limit)

    rows = with_database(run)
    for row in rows:
        # As it came from elsewhere it may hold line ends.
        error = " ".join((row.last_error or "").split())[:_MAX_ERROR]
        print(
            f"{row.state:9}  {row.id}  {row.org_id}  {row.event_ts:%Y-%m-%d %H:%M:%S}  {_usd(row.value)} USD"
            f"  {row.attempts:2}  {error}".rstrip()
        )
    if not rows:
        print("Nothing waits." if waiting else "Nothing was refused.")


@app.command("write-off", epilog='Example: tollgate billing meter-events write-off ID --note "customer was deleted"')
def write_off(
    id: Annotated[
        UUID, typer.Argument(metavar="ID", help="Of an event that was refused or is in doubt.", show_default=False)
    ],
    note: Annotated[str, typer.Option(help="Why; the audit log keeps it.", show_default=False)],
) -> None:
    """Charge nobody for an event that Stripe refused or may not have counted; cannot be taken back."""
    from app.billing import write_offs

    async def run(database: "Database", _: "Settings") -> int:
        async with database.begin() as connection:
            return await write_offs.write_off(connection, id, note)

    print(f"{_usd(with_database(run))} USD at list price are not charged.")


@app.command("write-off-usage", epilog='Example: tollgate billing meter-events write-off-usage ORG --note "two cents"')
def write_off_usage(
    org: Annotated[UUID, typer.Argument(metavar="ORG", help="Whose usage is on no invoice.", show_default=False)],
    note: Annotated[str, typer.Option(help="Why; the audit log keeps it.", show_default=False)],
) -> None:
    """Charge nobody for usage that came too late for its last invoice, as the doctor names it; cannot be taken back."""
    from app.billing import write_offs

    async def run(database: "Database", _: "Settings") -> int:
        async with database.begin() as connection:
            return await write_offs.write_off_usage(connection, org, note)

    print(f"{_usd(with_database(run))} USD at list price are not charged.")


def _usd(nano_usd: int) -> str:
    whole, rest = divmod(nano_usd, _NANO_USD_PER_USD)
    return f"{whole}.{rest:09}"
