"""The shared world of the tests: one real PostgreSQL a run, one database a worker.

The server starts once, in the process that was called (with xdist: the controller),
without durability and in a temporary folder. A template is migrated once; each xdist
worker clones it, and each test that asks for ``database`` finds every table empty.
"""

import asyncio
import logging
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import certifi
import grpc.aio
import pytest
import structlog
from argon2 import PasswordHasher
from pydantic import SecretStr

from app import migrate, postgres
from app.accounts import users
from app.config import Settings
from app.db import Database

TEMPLATE = postgres.DATABASE
SERVER = pytest.StashKey["TestServer"]()
PEPPER = "pepper-of-the-tests"
REPEAT_TIMEOUT_S = 15
# TRUNCATE makes every table's and index's files anew, ten times what a test's few rows take to
# delete; only what has grown is cut back, so that no test reads through another's dead rows.
# As a replica the session fires no trigger: those that refuse, that tell other processes, and those
# of foreign keys. The locks wait for whoever still writes, as TRUNCATE does.
EMPTY_TABLES = """
DO $$
DECLARE
    leaf regclass;
    grown text[] := '{}';
BEGIN
    SET LOCAL session_replication_role = replica;
    FOR leaf IN
        SELECT oid FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace
        AND relname <> 'alembic_version' AND pg_relation_size(oid) > 0 ORDER BY oid
    LOOP
        IF pg_relation_size(leaf) > 262144 THEN
            grown := grown || leaf::text;
        ELSE
            EXECUTE format('LOCK TABLE %s IN SHARE ROW EXCLUSIVE MODE', leaf);
            EXECUTE format('DELETE FROM %s', leaf);
        END IF;
    END LOOP;
    IF grown <> '{}' THEN
        EXECUTE format('TRUNCATE %s CASCADE', array_to_string(grown, ', '));
    END IF;
END
$$
"""


class TestServer:
    """The run's PostgreSQL server in a folder of its own."""

    __test__ = False

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="tollgate-tests-"))
        # As root, the server runs as another user that has to pass through.
        self.folder.chmod(0o711)
        self.cluster = postgres.locate(self.folder / "data", durable=False)
        self.server = postgres.start(self.cluster)
        asyncio.run(migrate.upgrade(self.cluster.url))

    def stop(self) -> None:
        self.server.stop()
        shutil.rmtree(self.folder)


@pytest.hookimpl(wrapper=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> Generator[None, bool, bool]:
    """A test's time-out comes again until the test has ended.

    The first may arrive in a task of a server that a test runs, which logs it and goes on, and
    what cleans up after the test may wait for the same thing.
    """
    result = yield
    if settings.method == "signal":
        signal.setitimer(signal.ITIMER_REAL, settings.timeout, REPEAT_TIMEOUT_S)
    return result


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Hands the server's address to an xdist worker; the first one starts it."""
    node.workerinput["postgres_url"] = _server(node.config).cluster.url


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stops the server of this process, if it started one."""
    if SERVER in config.stash:
        config.stash[SERVER].stop()


def _server(config: pytest.Config) -> TestServer:
    if SERVER not in config.stash:
        config.stash[SERVER] = TestServer()
    return config.stash[SERVER]


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    """Whatever a test does to the logs, the next one finds them as they were."""
    root = logging.getLogger()
    handlers, level, events = root.handlers[:], root.level, structlog.get_config()
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.configure(**events)


@pytest.fixture(scope="session", autouse=True)
def uncached_loggers() -> Iterator[None]:
    """Each module's logger follows every test's settings; in production it keeps those of its first event."""
    configure = structlog.configure
    with pytest.MonkeyPatch.context() as patch:
        uncached = {"cache_logger_on_first_use": False}
        patch.setattr(structlog, "configure", lambda **settings: configure(**settings | uncached))
        yield


@pytest.fixture(scope="session", autouse=True)
def one_grpc() -> None:
    """Keep gRPC up between tests, as in a process that serves.

    It ends its polling thread with the last channel and server, out of whatever is collecting
    garbage just then, and waits for it without end (grpc/grpc#40989).
    """
    grpc.aio.init_grpc_aio()


@pytest.fixture(scope="session", autouse=True)
def production_hasher() -> Iterator[PasswordHasher]:
    """What hashes passwords in production; in the tests another one does that takes no time.

    The parameters are part of a hash, so whoever checks one takes as little.
    """
    with pytest.MonkeyPatch.context() as patch:
        production = users._PASSWORDS
        patch.setattr(users, "_PASSWORDS", PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))
        yield production


@pytest.fixture(scope="session", autouse=True)
def one_authority(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """HTTP clients trust one authority instead of all: each takes 20 ms to read those, and talks to this machine."""
    end = "-----END CERTIFICATE-----"
    file = tmp_path_factory.mktemp("authority") / "one.pem"
    file.write_text(Path(certifi.where()).read_text(encoding="utf-8").partition(end)[0] + end, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(file))
        yield


@pytest.fixture(scope="session")
def server_url(request: pytest.FixtureRequest) -> str:
    """The address of the migrated template database."""
    worker = getattr(request.config, "workerinput", None)
    return str(worker["postgres_url"]) if worker else _server(request.config).cluster.url


@pytest.fixture(scope="session")
def database_url(server_url: str, worker_id: str) -> str:
    """The address of this worker's own database, migrated."""
    name = f"test_{worker_id}"
    asyncio.run(create_database(server_url, name, TEMPLATE))
    return replace_name(server_url, name)


@pytest.fixture
def empty_database_url(server_url: str, worker_id: str) -> Iterator[str]:
    """The address of a database without any table, for the tests of migrations."""
    name = f"empty_{worker_id}"
    asyncio.run(create_database(server_url, name, "template0"))
    yield replace_name(server_url, name)
    asyncio.run(drop_database(server_url, name))


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """This worker's database with every table empty."""
    database = Database.connect(database_url)
    async with database.begin() as connection:
        await connection.exec_driver_sql(EMPTY_TABLES)
    yield database
    await database.aclose()


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    """Settings of this worker's database and of folders that belong to the test."""
    return Settings(
        database_url=database_url,
        data_dir=tmp_path / "data",
        models_dir=tmp_path / "models",
        key_pepper=SecretStr(PEPPER),
        secret_key=SecretStr("secret-of-the-tests"),
        log_level="warning",
    )


def replace_name(url: str, name: str) -> str:
    """The same server's database ``name``."""
    head, _, query = url.partition("?")
    return f"{head.rpartition('/')[0]}/{name}?{query}"


async def create_database(server_url: str, name: str, template: str) -> None:
    """Creates ``name`` as a copy of ``template``, to which nobody may be connected."""
    connection = await asyncpg.connect(replace_name(server_url, "postgres"))
    try:
        await connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        await connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    finally:
        await connection.close()


async def drop_database(server_url: str, name: str) -> None:
    """Drops ``name``, with everybody who is still connected."""
    connection = await asyncpg.connect(replace_name(server_url, "postgres"))
    try:
        await connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
    finally:
        await connection.close()
