"""``tollgate up``: everything on one machine, started in order and stopped in order.

PostgreSQL (unless an address is set), migrations, one engine, N API processes that
share one listening socket, one worker, and in development a simulated Stripe. The API
outlives its engine: a child that dies is started again with back-off. Nothing survives
this process, however it ends: it stops the children itself, or the kernel does.
"""

import asyncio
import importlib.util
import secrets
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from urllib.parse import urlsplit

from prometheus_client.multiprocess import mark_process_dead

from app import banner, keys, migrate, postgres, simulation
from app.accounts.orgs import create_org, list_orgs
from app.accounts.users import create_user
from app.banner import Account
from app.config import Settings, child_environment, local_url, make_data_dir, make_private_dir
from app.db import Database
from app.errors import ConfigError
from app.key_terms import Terms
from app.modeling.registry import Registry
from app.partitions import ensure_partitions
from app.supervise import Child, Role, describe_exit, stop_all
from app.telemetry import configure_logging, get_logger

log = get_logger(__name__)

# Loading and compiling the models on a slow machine takes most of it.
READY_TIMEOUT_S = 600.0
READY_POLL_S = 0.2
LOCK_WAIT_S = 10.0
# A child that ended this often before anything worked will not work.
MAX_STARTS = 3
BACKLOG = 2048
POSTGRES_POLL_S = 0.5
ANSWER_TIMEOUT_S = 5.0
OWNER = "owner@demo.local"


def run(settings: Settings, workers: int, *, verbose: bool = False, stub: bool = False, step_ms: float = 0.0) -> None:
    """Runs the whole installation until Ctrl-C or SIGTERM.

    Args:
        settings: ``host`` and ``port`` are where the API listens.
        workers: API processes.
        verbose: Shows the children's info lines, not only warnings.
        stub: Runs the hand-computable engine, which needs no TensorFlow.
        step_ms: With ``stub``, how long each of its steps takes.

    Raises:
        ConfigError: Something is missing, in use, or does not start.
    """
    if not stub and settings.engine_url is None:
        require_tensorflow()
    require_models(settings)
    quiet = not verbose and "log_level" not in settings.model_fields_set
    settings = settings.model_copy(update={"log_level": "warning"}) if quiet else settings
    configure_logging(settings)
    with single_instance(settings), listening_socket(settings) as listener:
        engine_options = ("--stub", "--step-ms", str(step_ms)) if stub else ()
        asyncio.run(Installation(settings, workers, listener, engine_options).run())


def require_tensorflow() -> None:
    """Refuses to go on without the extra that the engine needs.

    Raises:
        ConfigError: TensorFlow is not installed.
    """
    if importlib.util.find_spec("tensorflow") is None:
        raise ConfigError("the engine needs TensorFlow: pip install 'tollgate[engine-cpu]' (or engine-gpu)")


def require_models(settings: Settings) -> None:
    """Refuses to go on without anything to serve.

    Raises:
        ConfigError: No enabled model in ``models_dir``.
    """
    if settings.engine_url is None and not any(card.enabled for card in Registry(settings.models_dir).list()):
        raise ConfigError(
            f"no model in {settings.models_dir}: train one (tollgate train --help), import one"
            " (tollgate models import --help), or set TOLLGATE_MODELS_DIR"
        )


@contextmanager
def single_instance(settings: Settings) -> Iterator[None]:
    """Holds the data folder for this process.

    Raises:
        ConfigError: Another process holds it.
    """
    make_data_dir(settings.data_dir)
    with postgres.lock(settings.data_dir, LOCK_WAIT_S) as mine:
        if not mine:
            raise ConfigError(f"tollgate already runs on {settings.data_dir}; stop it, or set TOLLGATE_DATA_DIR")
        yield


@contextmanager
def listening_socket(settings: Settings) -> Iterator[socket.socket]:
    """A socket on ``host`` and ``port`` that the API processes inherit.

    Raises:
        ConfigError: The address is in use or not of this machine.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((settings.host, settings.port))
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {settings.host}:{settings.port}: {error.strerror}; choose another with --port"
            ) from None
        listener.listen(BACKLOG)
        yield listener
    finally:
        listener.close()


class Installation:
    """The processes of one running ``tollgate up``."""

    def __init__(
        self, settings: Settings, workers: int, listener: socket.socket, engine_options: tuple[str, ...] = ()
    ) -> None:
        self._address = address_of(settings, listener)
        # What was to be any port is one now, and part of addresses that are shown.
        self._settings = settings.model_copy(update={"port": listener.getsockname()[1]})
        self._workers = workers
        self._listener = listener
        self._engine_options = engine_options
        self._children: list[Child] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._server: postgres.Server | None = None
        self._stripe: asyncio.Task[str] | None = None
        self._stop = asyncio.Event()

    async def run(self) -> None:
        """Starts everything, waits for a signal, stops everything.

        Raises:
            ConfigError: A part does not start.
        """
        started_s = asyncio.get_running_loop().time()
        self._catch_signals()
        try:
            await self._start()
            await self._ready()
            if not self._stop.is_set():
                await self._announce(asyncio.get_running_loop().time() - started_s)
            await self._stop.wait()
            banner.note("Stopping: requests in flight may finish. Ctrl-C again ends them.")
        finally:
            await self._shut_down()

    async def _start(self) -> None:
        # The engine first: it loads and compiles while PostgreSQL starts. PostgreSQL
        # is forked from this, the main, thread: its parent-death signal is bound to it.
        empty_metrics_dir(self._settings)
        if self._settings.engine_url is None:
            await self._spawn(role("engine", self._settings, *self._engine_options))
        settings = self._settings.model_copy(update={"database_url": self._start_postgres()})
        await self._prepare_database(settings)
        self._settings = settings = await self._start_stripe(settings)
        for _ in range(self._workers):
            await self._spawn(api_role(settings, self._listener))
        await self._spawn(role("worker", settings))

    def _start_postgres(self) -> str:
        if self._settings.database_url is not None:
            return self._settings.database_url
        cluster = postgres.locate(self._settings.data_dir)
        if not (cluster.data / "PG_VERSION").exists():
            banner.note(f"Creating the database in {cluster.home} …")
        for home, owner in postgres.orphans():
            banner.note(f"{home} holds the database of {owner}, which is gone; remove it if you do not need it.")
        self._server = postgres.start(cluster)
        self._tasks.append(asyncio.create_task(self._keep_postgres(cluster)))
        return cluster.url

    async def _keep_postgres(self, cluster: postgres.Cluster) -> None:
        while not await happens_within(self._stop, POSTGRES_POLL_S):
            assert self._server is not None
            code = self._server.process.poll()
            if code is not None:
                log.error("postgres.restarting", exit=describe_exit(code))
                with suppress(ConfigError):
                    self._server = postgres.start(cluster)

    async def _prepare_database(self, settings: Settings) -> None:
        url = migrate.required_url(settings)
        await migrate.upgrade(url)
        database = Database.connect(url, pool_size=1)
        try:
            async with database.begin() as connection:
                await ensure_partitions(connection, datetime.now(UTC).date())
        finally:
            await database.aclose()

    async def _start_stripe(self, settings: Settings) -> Settings:
        if not simulation.is_wanted(settings) or not simulation.is_there():
            return settings
        settings = simulation.connected(settings)
        child = await self._spawn(
            simulation.role(settings, f"{self._address}/webhooks/stripe"), simulation.without_address(banner.child_line)
        )
        # Beside the API: what there is to buy may come a moment later.
        self._stripe = asyncio.create_task(simulation.prepare(settings, child, self._stop))
        return settings

    async def _stripe_line(self) -> str | None:
        if self._stripe is not None:
            return await self._stripe
        return simulation.MISSING if simulation.is_wanted(self._settings) else None

    def _forget_metrics(self, pid: int) -> None:
        mark_process_dead(pid, str(metrics_dir(self._settings)))  # type: ignore[no-untyped-call]

    async def _spawn(self, role: Role, on_line: Callable[[str, str], None] = banner.child_line) -> Child:
        child = Child(role, on_line=on_line, on_exit=self._forget_metrics)
        self._children.append(child)
        self._tasks.append(asyncio.create_task(child.run()))
        await child.spawned.wait()
        return child

    async def _ready(self) -> None:
        banner.note("Loading the models …")
        deadline_s = asyncio.get_running_loop().time() + READY_TIMEOUT_S
        while (answer := await get(self._address, "/readyz")).status != HTTPStatus.OK:
            if answer.says("no_model_ready"):
                raise ConfigError("no model could be loaded: the engine's lines above say why")
            for child in self._children:
                # Without what stands for Stripe the rest works.
                if child.starts > MAX_STARTS and child.role.name != simulation.ROLE:
                    raise ConfigError(f"the {child.role.name} does not start: {child.last_line}")
            if asyncio.get_running_loop().time() > deadline_s:
                raise ConfigError(f"not ready after {READY_TIMEOUT_S:.0f} s; look at {self._address}/readyz")
            if await happens_within(self._stop, READY_POLL_S):
                return

    async def _announce(self, seconds: float) -> None:
        database = Database.connect(migrate.required_url(self._settings), pool_size=1)
        try:
            account = await demo_account(database, self._settings)
        finally:
            await database.aclose()
        models = [card for card in Registry(self._settings.models_dir).list() if card.enabled]
        banner.welcome(self._address, models, account, seconds, await self._stripe_line())

    async def _shut_down(self) -> None:
        self._stop.set()
        engines = [child for child in self._children if child.role.name == "engine"]
        others = [child for child in self._children if child.role.name != "engine"]
        # The API drains against a running engine and a running database.
        await stop_all(others, self._settings.drain_timeout_s + 5)
        await stop_all(engines, self._settings.drain_timeout_s)
        await asyncio.gather(*self._tasks, *([self._stripe] if self._stripe else ()))
        if self._server is not None:
            self._server.stop()

    def _catch_signals(self) -> None:
        def stop() -> None:
            if self._stop.is_set():
                for child in self._children:
                    child.kill()
            self._stop.set()

        on_signals(stop)


async def demo_account(database: Database, settings: Settings) -> Account:
    """The organisation to show: a new ``demo`` with a login and a key, or the oldest there is.

    The secrets of a new one exist only in the answer.
    """
    async with database.begin() as connection:
        orgs = await list_orgs(connection)
        if orgs:
            return Account(org_id=orgs[0][0])
        org_id = await create_org(connection, "demo", plan="internal")
        password = secrets.token_urlsafe(12)
        await create_user(connection, org_id, OWNER, password)
        new = await keys.mint_key(connection, settings, org_id, Terms("first key"))
    return Account(org_id=org_id, email=OWNER, password=password, key=new.key)


def api_role(settings: Settings, listener: socket.socket) -> Role:
    """An API process that accepts on ``listener``."""
    return role("api", settings, "--fd", str(listener.fileno()), pass_fds=(listener.fileno(),))


def role(name: str, settings: Settings, *arguments: str, pass_fds: tuple[int, ...] = ()) -> Role:
    """``tollgate NAME`` as a child that sees exactly ``settings``."""
    environment = child_environment(
        settings,
        PROMETHEUS_MULTIPROC_DIR=str(metrics_dir(settings)),
        PYTHONUNBUFFERED="1",
    )
    # -P: a folder `app` where the user happens to stand is not ours.
    return Role(name, [sys.executable, "-P", "-m", "app.cli", name, *arguments], environment, pass_fds)


def metrics_dir(settings: Settings) -> Path:
    """Where the processes of this installation share their metrics."""
    return settings.socket_dir / "metrics"


def empty_metrics_dir(settings: Settings) -> None:
    """Forgets the metrics of processes that no longer exist."""
    make_private_dir(settings.socket_dir)
    shutil.rmtree(metrics_dir(settings), ignore_errors=True)
    make_private_dir(metrics_dir(settings))


def address_of(settings: Settings, listener: socket.socket) -> str:
    """The URL under which this machine reaches the API."""
    return local_url(settings.host, listener.getsockname()[1])


def on_signals(action: Callable[[], None]) -> None:
    """Calls ``action`` in the running loop at each signal that asks to stop."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(signum, action)


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: ``raw`` is all of it, empty where nobody answered."""

    raw: bytes = b""

    @property
    def status(self) -> int:
        """Of HTTP; 0 without an answer."""
        words = self.raw.split(b" ", 2)
        return int(words[1]) if len(words) == 3 else 0

    def says(self, word: str) -> bool:
        """Whether a string of the JSON body is ``word``."""
        return f'"{word}"'.encode() in self.raw


async def get(url: str, path: str) -> Answer:
    """``GET path``; an empty answer if there is none within a few seconds."""
    parts = urlsplit(url)
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
            try:
                writer.write(f"GET {path} HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n\r\n".encode())
                return Answer(await reader.read())
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return Answer()


async def answers(url: str, path: str) -> bool:
    """Whether ``GET path`` is answered with 200 within a few seconds."""
    return (await get(url, path)).status == HTTPStatus.OK


async def happens_within(event: asyncio.Event, seconds: float) -> bool:
    """Waits for ``event``, at most ``seconds``; whether it is set."""
    with suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)
    return event.is_set()
