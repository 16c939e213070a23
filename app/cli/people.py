"""``tollgate people``: help for who cannot get into their account, and an end to what is open in it.

For the operator, who has made sure by other means whom they are talking to.
"""

from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.context import with_database

if TYPE_CHECKING:
    from uuid import UUID

    from sqlalchemy.ext.asyncio import AsyncConnection

    from app.accounts.users import Login
    from app.config import Settings
    from app.db import Database

app = typer.Typer(no_args_is_help=True, help="People who sign in to the portal.")
Email = Annotated[str, typer.Argument(help="Of their login.", show_default=False)]


@app.command("second-factor-off", epilog="Example: tollgate people second-factor-off jane@acme.example")
def second_factor_off(email: Email) -> None:
    """Turn off the second factor of somebody who lost it; their sessions end and a mail tells them."""
    from datetime import UTC, datetime

    from app.accounts import mailings, second_factor, sessions

    async def run(database: "Database", _: "Settings") -> None:
        async with database.begin() as connection:
            person = await _found(connection, email)
            await second_factor.remove(connection, person.user_id)
            await sessions.end_sessions(connection, person.user_id)
            language = person.language or "en"
            await mailings.queue(connection, "second_factor_off", person.email, language, datetime.now(UTC))
            await _note(connection, person.user_id, "second_factor.off")

    with_database(run)


@app.command("sign-out", epilog="Example: tollgate people sign-out jane@acme.example")
def sign_out(email: Email) -> None:
    """End every session of somebody, and print how many there were."""
    from app.accounts import sessions

    async def run(database: "Database", _: "Settings") -> int:
        async with database.begin() as connection:
            person = await _found(connection, email)
            num_ended = await sessions.end_sessions(connection, person.user_id)
            await _note(connection, person.user_id, "session.end_all")
        return num_ended

    print(with_database(run))


async def _found(connection: "AsyncConnection", email: str) -> "Login":
    from app.accounts.users import find_login
    from app.errors import NotFound

    person = await find_login(connection, email)
    if person is None:
        raise NotFound(f"nobody signs in as {email}")
    return person


async def _note(connection: "AsyncConnection", user_id: "UUID", action: str) -> None:
    from app import audit
    from app.accounts.orgs import orgs_of

    for belonging in await orgs_of(connection, user_id):
        await audit.record(
            connection, org_id=belonging.org_id, actor=audit.OPERATOR, action=action, target=f"user:{user_id}"
        )
