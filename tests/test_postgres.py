import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import psutil
import pytest

from app import postgres
from app.config import Settings
from app.errors import ConfigError

# Starts the server of a data folder, says so, and waits to be killed.
HOLDER = """
import signal, sys
from pathlib import Path
from app import postgres
data_dir = Path(sys.argv[1])
with postgres.lock(data_dir):
    server = postgres.start(postgres.locate(data_dir, durable=False))
    print(server.process.pid, flush=True)
    signal.pause()
"""

# Asks at the prompt of its caller, as a command does.
COMMAND = """
import asyncio, sys, asyncpg
from pathlib import Path
from app import postgres
from app.config import Settings
async def ask(url):
    connection = await asyncpg.connect(url)
    print(await connection.fetchval("SELECT 'answer'"), flush=True)
    await connection.close()
with postgres.available(Settings(data_dir=Path(sys.argv[1]))) as url:
    for line in sys.stdin:
        asyncio.run(ask(url))
"""


@pytest.fixture
def data_dir() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="tollgate-") as folder:
        # As root the server runs as another user, who has to pass through.
        Path(folder).chmod(0o711)
        yield Path(folder) / "data"


@pytest.fixture
def cluster(data_dir: Path) -> postgres.Cluster:
    return postgres.locate(data_dir, durable=False)


@pytest.fixture
def holder(data_dir: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(data_dir)], stdout=subprocess.PIPE, text=True)
    yield process
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def ask(url: str, query: str) -> object:
    async def run() -> object:
        connection = await asyncpg.connect(url)
        try:
            return await connection.fetchval(query)
        finally:
            await connection.close()

    return asyncio.run(run())


def started_again(cluster: postgres.Cluster) -> postgres.Server:
    """As a supervisor does it: processes of a killed server may hold its memory for another moment."""
    while True:
        try:
            return postgres.start(cluster)
        except ConfigError as error:
            if "shared memory block" not in str(error):
                raise


def settings_of(data_dir: Path) -> Settings:
    return Settings(data_dir=data_dir)


def test_what_was_committed_is_there_after_a_restart(cluster: postgres.Cluster) -> None:
    server = postgres.start(cluster)
    ask(cluster.url, "CREATE TABLE kept AS SELECT 1 AS one")
    server.stop()
    server = postgres.start(cluster)
    assert ask(cluster.url, "SELECT one FROM kept") == 1
    server.stop()
    assert server.process.returncode == 0


def test_after_a_kill_it_has_started_only_when_it_answers_with_all_that_was_committed(data_dir: Path) -> None:
    cluster = postgres.locate(data_dir)
    server = postgres.start(cluster)
    ask(cluster.url, "CREATE TABLE kept AS SELECT 1 AS one")
    server.process.kill()
    server.process.wait()
    server = started_again(cluster)
    assert ask(cluster.url, "SELECT one FROM kept") == 1
    server.stop()


def test_encoding_and_order_do_not_depend_on_the_machine(server_url: str) -> None:
    query = (
        "SELECT pg_encoding_to_char(encoding) || ' ' || datlocprovider::text || ' ' || datlocale"
        " FROM pg_database WHERE datname = current_database()"
    )
    assert ask(server_url, query) == "UTF8 b C.UTF-8"


def test_a_durable_server_syncs_each_commit(data_dir: Path) -> None:
    cluster = postgres.locate(data_dir)
    server = postgres.start(cluster)
    found = ask(cluster.url, "SELECT current_setting('fsync') || current_setting('synchronous_commit')")
    server.stop()
    assert found == "onon"


def test_a_wrong_password_is_refused(server_url: str) -> None:
    with pytest.raises(asyncpg.InvalidPasswordError):
        ask(server_url.replace("tollgate:", "tollgate:not", 1), "SELECT 1")


def test_the_server_runs_as_nobody_special(cluster: postgres.Cluster) -> None:
    server = postgres.start(cluster)
    uids = psutil.Process(server.process.pid).uids()
    server.stop()
    assert uids.effective != 0


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel signals children on Linux only")
def test_the_server_ends_with_a_killed_parent(holder: subprocess.Popen[str]) -> None:
    assert holder.stdout is not None
    server = psutil.Process(int(holder.stdout.readline()))
    backends = server.children(recursive=True)
    holder.kill()
    assert psutil.wait_procs([server, *backends], timeout=60)[1] == []


def test_a_server_left_behind_is_stopped_and_replaced(cluster: postgres.Cluster) -> None:
    left_behind = postgres.start(cluster)
    server = postgres.start(cluster)
    assert left_behind.process.wait(30) == 0
    assert ask(cluster.url, "SELECT 1") == 1
    server.stop()


def test_a_pid_file_that_names_a_stranger_hurts_nobody(cluster: postgres.Cluster) -> None:
    postgres.start(cluster).stop()
    stranger = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    pid_file = cluster.data / "postmaster.pid"
    pid_file.write_text(f"{stranger.pid}\n{cluster.data}\n")
    postgres.stop_stale(cluster)
    assert stranger.poll() is None
    stranger.kill()
    stranger.wait()


def test_a_kill_in_mid_creation_leaves_nothing_in_the_way(cluster: postgres.Cluster) -> None:
    half = cluster.home / "data.new"
    half.mkdir()
    (half / "PG_VERSION").write_text("18")
    server = postgres.start(cluster)
    server.stop()
    assert not half.exists()


def test_a_broken_cluster_says_what_the_server_said(cluster: postgres.Cluster) -> None:
    postgres.start(cluster).stop()
    (cluster.data / "PG_VERSION").write_text("9.6\n")
    with pytest.raises(ConfigError, match=r"did not start: .*(version|9\.6)"):
        postgres.start(cluster)


def test_the_password_file_is_gone_after_creation(cluster: postgres.Cluster) -> None:
    postgres.start(cluster).stop()
    assert not (cluster.home / "password").exists()


def test_a_command_starts_the_server_for_its_own_length(data_dir: Path) -> None:
    with postgres.available(settings_of(data_dir)) as url:
        assert ask(url, "SELECT 1") == 1
    with pytest.raises(OSError, match=r"PGSQL|No such file"):
        ask(url, "SELECT 1")


def command_on(data_dir: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, str(data_dir)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def answer_of(command: "subprocess.Popen[str]") -> str:
    assert command.stdin is not None
    assert command.stdout is not None
    command.stdin.write("ask\n")
    command.stdin.flush()
    return command.stdout.readline().strip()


def test_the_command_that_started_the_server_waits_for_those_that_use_it(data_dir: Path) -> None:
    with command_on(data_dir) as first:
        assert answer_of(first) == "answer"
        with command_on(data_dir) as second:
            assert answer_of(second) == "answer"
            assert first.stdin is not None
            first.stdin.close()  # the first has nothing more to do
            assert [answer_of(second) for _ in range(3)] == ["answer"] * 3
            assert first.poll() is None
        assert second.returncode == 0
    assert first.returncode == 0
    assert not postgres._is_serving(postgres.locate(data_dir))


def test_a_command_that_comes_while_the_server_stops_starts_its_own(
    data_dir: Path, holder: "subprocess.Popen[str]"
) -> None:
    assert holder.stdout is not None
    pid = int(holder.stdout.readline())
    # The holder still has the lock, but its server goes, as at the end of `tollgate up`.
    psutil.Process(pid).send_signal(signal.SIGINT)
    with command_on(data_dir) as command:
        holder.kill()
        assert answer_of(command) == "answer"
    assert command.returncode == 0


def test_a_command_uses_the_server_that_runs(data_dir: Path, holder: subprocess.Popen[str]) -> None:
    assert holder.stdout is not None
    pid = int(holder.stdout.readline())
    with postgres.available(settings_of(data_dir)) as url:
        assert ask(url, "SELECT 1") == 1
    assert psutil.pid_exists(pid)


def test_an_address_in_the_settings_is_used_as_it_is(settings: Settings) -> None:
    with postgres.available(settings) as url:
        assert url == settings.database_url


def test_the_lock_goes_to_one_holder(data_dir: Path) -> None:
    with postgres.lock(data_dir) as first, postgres.lock(data_dir) as second:
        assert (first, second) == (True, False)
    with postgres.lock(data_dir) as again:
        assert again


def test_without_the_wheel_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch, data_dir: Path) -> None:
    monkeypatch.setattr(postgres, "PACKAGE", "a_package_that_does_not_exist")
    with pytest.raises(ConfigError, match=r"tollgate\[embedded\]"):
        postgres.locate(data_dir)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root switches to another user")
class TestAsRoot:
    """What root does so that another user can run the server."""

    @pytest.fixture
    def hidden(self, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A data folder below one that only root may enter, as below /root."""
        elsewhere = data_dir.parent / "elsewhere"
        monkeypatch.setattr(postgres, "ROOT_HOME", elsewhere)
        closed = data_dir.parent / "closed"
        closed.mkdir(mode=0o700)
        return closed / "data"

    def test_a_hidden_data_folder_links_to_one_that_can_be_reached(self, hidden: Path) -> None:
        cluster = postgres.locate(hidden, durable=False)
        assert (hidden / "postgres").is_symlink()
        assert cluster.home.parent == postgres.ROOT_HOME
        assert hidden.parent.stat().st_mode & 0o777 == 0o700
        server = postgres.start(cluster)
        assert ask(cluster.url, "SELECT 1") == 1
        server.stop()
        assert postgres.locate(hidden, durable=False).home == cluster.home

    def test_a_database_whose_data_folder_is_gone_can_be_found(self, hidden: Path) -> None:
        cluster = postgres.locate(hidden)
        assert postgres.orphans() == []
        shutil.rmtree(hidden)
        assert postgres.orphans() == [(cluster.home, str(hidden.resolve()))]
        assert postgres.locate(hidden).home != cluster.home  # a new one is not the old one's
        assert postgres.orphans() == [(cluster.home, str(hidden.resolve()))]

    def test_hidden_binaries_are_copied(self, cluster: postgres.Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
        reach = postgres.can_reach
        monkeypatch.setattr(
            postgres, "can_reach", lambda path, account: "site-packages" not in str(path) and reach(path, account)
        )
        copied = postgres.locate(cluster.home.parent, durable=False)
        assert copied.binaries.is_relative_to(cluster.home)
        server = postgres.start(copied)
        assert ask(copied.url, "SELECT 1") == 1
        server.stop()

    def test_nowhere_to_reach_is_one_clear_line(self, hidden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(postgres, "ROOT_HOME", hidden.parent / "also-closed")
        with pytest.raises(ConfigError, match="TOLLGATE_DATABASE_URL"):
            postgres.locate(hidden)

    def test_no_unprivileged_user_is_one_clear_line(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(postgres, "SERVICE_USERS", ("no-such-user-here", "root"))
        with pytest.raises(ConfigError, match="unprivileged"):
            postgres.service_account()


def test_a_stale_server_that_cannot_be_stopped_is_reported(
    cluster: postgres.Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []
    monkeypatch.setattr(postgres, "STOP_TIMEOUT_S", 0.0)
    monkeypatch.setattr(postgres, "_postmaster_pid", lambda _: 1234567)
    monkeypatch.setattr(postgres, "_runs_cluster", lambda *_: True)
    monkeypatch.setattr(os, "kill", lambda _, signum: sent.append(signum))
    with pytest.raises(ConfigError, match="cannot be stopped"):
        postgres.stop_stale(cluster)
    assert sent == [signal.SIGINT, signal.SIGQUIT, signal.SIGKILL]
