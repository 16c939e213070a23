"""Brings a database to the newest schema.

Two processes may call this at once: a session lock of PostgreSQL lets one work and
the other find nothing to do. A migration that cannot get a table lock quickly fails
rather than queueing up behind a long query with all traffic behind it.
"""

from collections.abc import Callable
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from app.config import Settings
from app.db import create_engine, open_connection
from app.errors import ConfigError

# Any constant that no other program uses on this database.
ADVISORY_LOCK = 0x746F6C6C
WAIT_FOR_OTHER = "120s"
WAIT_FOR_TABLE = "5s"
PARTITION_PREFIX = "usage_events_y"


async def upgrade(url: str, revision: str = "head") -> None:
    """Applies what is missing up to ``revision``; nothing to do is fine.

    Raises:
        DatabaseUnavailable: The server cannot be reached.
        SQLAlchemyError: A statement failed; the migration it belongs to is rolled back.
    """

    def run(connection: Connection) -> None:
        config = alembic_config()
        config.attributes["connection"] = connection
        command.upgrade(config, revision)

    await on_connection(url, run)


async def on_connection(url: str, run: Callable[[Connection], None]) -> None:
    """Calls ``run`` with a connection that holds the migration lock."""
    engine = create_engine(url, pool_size=1)
    try:
        connection = await open_connection(engine)
        try:
            await connection.execute(text(f"SET lock_timeout = '{WAIT_FOR_OTHER}'"))
            await connection.execute(text(f"SELECT pg_advisory_lock({ADVISORY_LOCK})"))
            await connection.execute(text(f"SET lock_timeout = '{WAIT_FOR_TABLE}'"))
            await connection.commit()
            await connection.run_sync(run)
            await connection.commit()
        finally:
            await connection.close()
    finally:
        # Ends the session and with it the lock.
        await engine.dispose()


def alembic_config() -> Config:
    """Alembic's settings, for a checkout as for an installed package."""
    config = Config()
    config.set_main_option("script_location", str(migrations_dir()).replace("%", "%%"))
    return config


def head() -> str:
    """The newest revision that this program knows."""
    revision = ScriptDirectory.from_config(alembic_config()).get_current_head()
    assert revision is not None
    return revision


def migrations_dir() -> Path:
    """The folder of the migrations: inside the installed package, beside it in a checkout."""
    package = Path(__file__).parent
    installed = package / "migrations"
    return installed if installed.is_dir() else package.parent / "migrations"


def is_ours(name: str | None, kind: str, _parents: object) -> bool:
    """Whether the models describe this object; the month partitions follow their parent."""
    return not (kind == "table" and name is not None and name.startswith(PARTITION_PREFIX))


def required_url(settings: Settings) -> str:
    """The address in the settings.

    Raises:
        ConfigError: None is set.
    """
    if settings.database_url is None:
        raise ConfigError("TOLLGATE_DATABASE_URL is not set")
    return settings.database_url
