"""Alembic's entry: runs the migrations on the connection that app.migrate opened."""

import asyncio

from alembic import context
from sqlalchemy import Connection

from app import migrate
from app.config import load_settings
from app.tables import Base


def run(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        include_name=migrate.is_ours,
        transaction_per_migration=True,
    )
    with context.begin_transaction():
        context.run_migrations()


given = context.config.attributes.get("connection")
if given is not None:
    run(given)
else:
    asyncio.run(migrate.on_connection(migrate.required_url(load_settings()), run))
