"""Short ways to what a test needs in the database."""

import asyncio
from typing import Any
from uuid import UUID

from sqlalchemy import text

from app import auth, key_terms, keys
from app.accounts.orgs import create_org
from app.accounts.users import create_user
from app.config import Settings
from app.db import Database

PASSWORD = "a long enough password"


async def make_org(database: Database, name: str = "Acme", plan: str = "internal") -> UUID:
    """An active organisation, without limits worth mentioning unless the plan has some."""
    async with database.begin() as connection:
        return await create_org(connection, name, plan)


async def make_user(database: Database, org_id: UUID, email: str = "someone@acme.example", role: str = "owner") -> UUID:
    """A member of the organisation whose password is ``PASSWORD``."""
    async with database.begin() as connection:
        return await create_user(connection, org_id, email, PASSWORD, role)


async def make_key(
    database: Database,
    settings: Settings,
    org_id: UUID | None = None,
    *,
    name: str = "test",
    scopes: tuple[str, ...] = auth.SCOPES,
    **terms: Any,
) -> str:
    """A key in full; of a new organisation unless one is given. ``terms`` as in ``key_terms.Terms``."""
    owner = org_id or await make_org(database)
    async with database.begin() as connection:
        return (await keys.mint_key(connection, settings, owner, key_terms.Terms(name, scopes, **terms))).key


async def cut_waiting(database: Database, name: str) -> None:
    """Ends the one connection of this name as soon as it waits for a lock.

    A transaction each time: within one, the server shows the same activity again.
    """
    statement = text(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = :name"
        " AND datname = current_database() AND wait_event_type = 'Lock'"
    )
    rows: list[Any] = []
    while not rows:
        async with database.begin() as connection:
            rows = list(await connection.execute(statement, {"name": name}))


async def someone_waits(database: Database, task: "asyncio.Future[Any]") -> None:
    """Returns once a connection waits for a lock, or ``task`` is done and none ever will.

    A transaction each time: within one, the server shows the same activity again.
    """
    statement = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    num_waiting = 0
    while not num_waiting and not task.done():
        async with database.begin() as connection:
            num_waiting = (await connection.execute(statement)).scalar_one()
