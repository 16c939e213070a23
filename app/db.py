"""PostgreSQL from Python: one engine a process, one transaction a unit of work.

``Database.begin()`` and ``Database.session()`` open a transaction that commits when
the block ends and rolls back when it raises; code inside never commits. A database
that cannot be reached is ``DatabaseUnavailable`` at this border, whatever the driver
called it. No transaction is held open while something else is awaited for long.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
from sqlalchemy import URL, MetaData, event, make_url
from sqlalchemy.exc import DBAPIError, DisconnectionError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, create_async_engine

from app.errors import ConfigError, DatabaseUnavailable
from app.telemetry import get_logger

log = get_logger(__name__)

NAMING_CONVENTION = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}
# PostgreSQL's undefined_table and undefined_column: the schema is older than the program.
WITHOUT_OUR_TABLES = frozenset({"42P01", "42703"})

metadata = MetaData(naming_convention=NAMING_CONVENTION)


class Database:
    """A pool of connections and the two ways to use one.

    Create it inside the event loop that uses it; ``aclose`` returns the connections.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine

    @classmethod
    def connect(cls, url: str, *, pool_size: int = 10, timeout_s: float = 5.0) -> "Database":
        """A database at ``url``; connections open at first use, not here."""
        return cls(create_engine(url, pool_size=pool_size, timeout_s=timeout_s))

    @property
    def url(self) -> str:
        """The address, with its password."""
        return self.engine.url.render_as_string(hide_password=False)

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[AsyncConnection]:
        """One transaction for statements; commits at the end of the block.

        Raises:
            DatabaseUnavailable: No connection, it broke inside the block, or the
                schema is older than this program.
        """
        connection = await open_connection(self.engine)
        try:
            async with connection.begin():
                yield connection
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) in WITHOUT_OUR_TABLES:
                raise not_migrated() from error
            if not error.connection_invalidated:
                raise
            raise unavailable(error) from error
        finally:
            # A cancelled request still gives its connection back to the pool.
            await asyncio.shield(connection.close())

    @asynccontextmanager
    async def session(self) -> AsyncIterator[AsyncSession]:
        """One transaction for mapped objects; flushes and commits at the end of the block.

        Raises:
            DatabaseUnavailable: No connection, or it broke inside the block.
        """
        async with (
            self.begin() as connection,
            AsyncSession(connection, expire_on_commit=False, join_transaction_mode="rollback_only") as session,
        ):
            yield session
            await session.flush()

    async def aclose(self) -> None:
        """Closes every connection."""
        await self.engine.dispose()


async def open_connection(engine: AsyncEngine) -> AsyncConnection:
    """A connection that the caller closes.

    Raises:
        DatabaseUnavailable: The server cannot be reached, refuses, or the pool is exhausted.
    """
    try:
        return await engine.connect().start()
    except (OSError, SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise unavailable(error) from error


def create_engine(url: str, *, pool_size: int = 10, timeout_s: float = 5.0) -> AsyncEngine:
    """An engine over asyncpg.

    Args:
        url: ``postgresql://…``; a driver named in it is replaced by asyncpg.
        pool_size: Connections kept and at most opened.
        timeout_s: Longest wait for a free or a new connection.

    Raises:
        ConfigError: The address is not one of PostgreSQL.
    """
    engine = create_async_engine(
        _with_driver(url),
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=timeout_s,
        connect_args={"timeout": timeout_s},
        # An error names its statement, not the addresses and hashes that were bound to it.
        hide_parameters=True,
    )
    event.listen(engine.sync_engine, "checkout", _refuse_closed)
    return engine


def unavailable(error: BaseException) -> DatabaseUnavailable:
    """What callers hear of a database that does not answer; logs why."""
    log.warning("database.unavailable", error=type(error).__name__)
    return DatabaseUnavailable("The database does not answer right now; please retry.")


def not_migrated() -> DatabaseUnavailable:
    """What callers hear of a database whose schema is older than this program."""
    return DatabaseUnavailable("The database does not have the tables of this version; run: tollgate db migrate")


def driver_url(url: str) -> str:
    """The address as asyncpg itself takes it.

    Raises:
        ConfigError: The address is not one of PostgreSQL.
    """
    return _parsed(url).set(drivername="postgresql").render_as_string(hide_password=False)


def _with_driver(url: str) -> str:
    return _parsed(url).set(drivername="postgresql+asyncpg").render_as_string(hide_password=False)


def _parsed(url: str) -> URL:
    try:
        parsed = make_url(url)
    except SQLAlchemyError:
        raise ConfigError("TOLLGATE_DATABASE_URL is not an address (postgresql://user:password@host/name)") from None
    if parsed.get_backend_name() not in {"postgresql", "postgres"}:
        raise ConfigError("TOLLGATE_DATABASE_URL must name a PostgreSQL database")
    return parsed


def _refuse_closed(connection: object, _record: object, _proxy: object) -> None:
    # After a restart of PostgreSQL the loop has already seen the socket close, so
    # this finds a dead connection without the round trip of a ping; the pool then
    # opens a fresh one.
    if connection._connection.is_closed():  # type: ignore[attr-defined]
        raise DisconnectionError("closed by the server")
