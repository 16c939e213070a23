import asyncio
from typing import Any

import asyncpg
import pytest
from sqlalchemy import func, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError

from app.db import Database, create_engine
from app.errors import ConfigError, DatabaseUnavailable
from app.tables import Org

COUNT_ORGS = select(func.count()).select_from(Org)


async def count_orgs(database: Database) -> int:
    async with database.begin() as connection:
        return (await connection.execute(COUNT_ORGS)).scalar_one()


async def test_session_commits_when_the_block_ends(database: Database) -> None:
    async with database.session() as session:
        session.add(Org(name="Acme"))
    assert await count_orgs(database) == 1


async def test_session_rolls_back_when_the_block_raises(database: Database) -> None:
    with pytest.raises(LookupError):
        async with database.session() as session:
            session.add(Org(name="Acme"))
            await session.flush()
            raise LookupError
    assert await count_orgs(database) == 0


async def test_begin_rolls_back_when_the_block_raises(database: Database) -> None:
    with pytest.raises(LookupError):
        async with database.begin() as connection:
            await connection.execute(text("INSERT INTO orgs (id, name) VALUES (gen_random_uuid(), 'Acme')"))
            raise LookupError
    assert await count_orgs(database) == 0


async def test_a_broken_constraint_keeps_its_own_error(database: Database) -> None:
    with pytest.raises(IntegrityError):
        async with database.begin() as connection:
            await connection.execute(text("INSERT INTO orgs (id, name) VALUES (gen_random_uuid(), '')"))


async def test_a_database_without_our_tables_says_how_to_get_them(empty_database_url: str) -> None:
    database = Database.connect(empty_database_url)
    with pytest.raises(DatabaseUnavailable, match="tollgate db migrate"):
        await count_orgs(database)
    await database.aclose()


async def test_a_server_that_is_away_is_unavailable() -> None:
    database = Database.connect("postgresql://nobody@/none?host=/nonexistent", timeout_s=1)
    with pytest.raises(DatabaseUnavailable):
        async with database.begin():
            pass
    await database.aclose()


async def test_an_exhausted_pool_is_unavailable(database_url: str) -> None:
    database = Database.connect(database_url, pool_size=1, timeout_s=0.05)
    async with database.begin():
        with pytest.raises(DatabaseUnavailable):
            async with database.begin():
                pass
    await database.aclose()


async def test_a_connection_cut_inside_a_block_is_unavailable(database: Database, database_url: str) -> None:
    with pytest.raises(DatabaseUnavailable):
        async with database.begin() as connection:
            await cut(database_url, await backend_of(connection))
            await connection.execute(text("SELECT 1"))


async def test_the_block_after_a_cut_connection_gets_a_fresh_one(database: Database, database_url: str) -> None:
    closed = asyncio.Event()
    async with database.begin() as connection:
        backend = await backend_of(connection)
        driver = (await connection.get_raw_connection()).driver_connection
        assert driver is not None
        driver.add_termination_listener(lambda _: closed.set())
    await cut(database_url, backend)
    await closed.wait()
    assert await count_orgs(database) == 0


@pytest.mark.parametrize("url", ["mysql://host/name", "not an address"])
def test_another_database_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="DATABASE_URL"):
        create_engine(url)


async def backend_of(connection: Any) -> int:
    return int((await connection.execute(text("SELECT pg_backend_pid()"))).scalar_one())


async def cut(url: str, backend: int) -> None:
    other = await asyncpg.connect(url)
    await other.fetchval("SELECT pg_terminate_backend($1, 5000)", backend)
    await other.close()


async def test_an_error_does_not_show_what_was_bound_to_its_statement(database: Database) -> None:
    with pytest.raises(DBAPIError) as caught:
        async with database.begin() as connection:
            await connection.execute(text("SELECT CAST(:digits AS text)::int / 0"), {"digits": "4711"})
    assert "4711" not in str(caught.value)
