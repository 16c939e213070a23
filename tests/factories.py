"""Short ways to the rows that a test needs."""

from typing import Any
from uuid import UUID

from app import auth, keys
from app.config import Settings
from app.db import Database

PASSWORD = "a long enough password"


async def make_org(database: Database, name: str = "Acme") -> UUID:
    """An active organisation."""
    async with database.begin() as connection:
        return await auth.create_org(connection, name)


async def make_user(database: Database, org_id: UUID, email: str = "someone@acme.example", role: str = "owner") -> UUID:
    """A member of the organisation whose password is ``PASSWORD``."""
    async with database.begin() as connection:
        return await auth.create_user(connection, org_id, email, PASSWORD, role)


async def make_key(
    database: Database,
    settings: Settings,
    org_id: UUID | None = None,
    *,
    name: str = "test",
    scopes: tuple[str, ...] = auth.SCOPES,
    **terms: Any,
) -> str:
    """A key in full; of a new organisation unless one is given. ``terms`` as in ``keys.Terms``."""
    owner = org_id or await make_org(database)
    async with database.begin() as connection:
        return (await keys.mint_key(connection, settings, owner, keys.Terms(name, scopes, **terms))).key
