import asyncio
import json
import re
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from app import auth, up
from app.accounts import users
from app.banner import Account
from app.config import Settings
from app.db import Database
from app.errors import ConfigError
from tests.factories import make_org

MODEL = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 64,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
END_OF_WELCOME = "Ctrl-C stops everything."


def write_model(models_dir: Path) -> None:
    (models_dir / "tiny").mkdir(parents=True)
    (models_dir / "tiny" / "config.json").write_text(json.dumps(MODEL))


class Run:
    """One ``tollgate up``, on the stub engine unless told otherwise."""

    def __init__(self, folder: Path, *options: str) -> None:
        environment = {
            "PATH": "/usr/bin:/bin",
            "TOLLGATE_DATA_DIR": str(folder / "data"),
            "TOLLGATE_MODELS_DIR": str(folder / "models"),
        }
        command = [sys.executable, "-P", "-m", "app.cli", "up", "--port", "0", *(options or ("--stub",))]
        self.process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd="/"
        )
        self.output = ""

    def wait_for(self, text: str) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output += line
            if text in line:
                return line
        raise AssertionError(f"ended without {text!r}:\n{self.output}")

    def children(self) -> list[psutil.Process]:
        return list(psutil.Process(self.process.pid).children(recursive=True))

    def child(self, words: str) -> psutil.Process:
        return next(child for child in self.children() if words in " ".join(child.cmdline()))

    def get(self, path: str) -> int:
        address = re.search(r"http://127\.0\.0\.1:\d+", self.output)
        assert address is not None
        try:
            with urllib.request.urlopen(address[0] + path, timeout=30) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    def stop(self, signum: signal.Signals) -> list[psutil.Process]:
        """Sends ``signum``; the processes that outlived the parent."""
        children = self.children()
        self.process.send_signal(signum)
        self.process.wait(60)
        return list(psutil.wait_procs(children, timeout=60)[1])


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="tollgate-up-") as name:
        Path(name).chmod(0o711)
        write_model(Path(name) / "models")
        yield Path(name)


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[[], Run]]:
    runs: list[Run] = []

    def begin() -> Run:
        runs.append(Run(folder))
        return runs[-1]

    yield begin
    for run in runs:
        run.process.kill()
        run.process.wait()
        assert run.process.stdout is not None
        run.process.stdout.close()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel signals children on Linux only")
def test_nothing_outlives_it_and_the_next_start_works(start: Callable[[], Run], signum: signal.Signals) -> None:
    first = start()
    first.wait_for(END_OF_WELCOME)
    assert "tg_live_" in first.output
    assert first.get("/readyz") == 200
    assert first.stop(signum) == []
    second = start()
    second.wait_for(END_OF_WELCOME)
    assert "tg_live_" not in second.output
    assert "keys create --org" in second.output
    assert second.stop(signal.SIGTERM) == []


def test_the_api_stays_up_while_its_engine_is_started_again(start: Callable[[], Run]) -> None:
    run = start()
    run.wait_for(END_OF_WELCOME)
    run.child("engine --stub").kill()
    run.wait_for("process.restarting")
    assert run.get("/livez") == 200
    api = run.child("app.cli api").pid
    assert wait_until_ready(run)
    assert run.child("app.cli api").pid == api
    assert run.stop(signal.SIGTERM) == []


def test_a_simulated_stripe_comes_along_and_keeps_its_account(start: Callable[[], Run]) -> None:
    run = start()
    run.wait_for(END_OF_WELCOME)
    address = re.search(r"Stripe +(http://127\.0\.0\.1:\d+)/ \(simulated", run.output)
    assert address is not None
    before = prices_at(address[1])
    assert "tollgate_growth_v1_flat_year" in before
    run.child("simulators.stripe").kill()
    run.wait_for("process.restarting")
    assert prices_at(address[1]) == before
    assert run.stop(signal.SIGTERM) == []


def prices_at(address: str) -> set[str]:
    """Lookup keys of the account's prices, as soon as it answers."""
    request = urllib.request.Request(f"{address}/v1/prices?limit=100", headers={"Authorization": "Bearer sk_test_any"})
    while True:
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return {price["lookup_key"] for price in json.load(response)["data"]}
        except urllib.error.URLError:
            pass


def test_a_killed_database_is_started_again(start: Callable[[], Run]) -> None:
    run = start()
    run.wait_for(END_OF_WELCOME)
    run.child("bin/postgres -D").kill()
    run.wait_for("postgres.restarting")
    assert wait_until_ready(run)
    assert run.stop(signal.SIGTERM) == []


def test_models_that_are_all_broken_end_it_with_a_clear_line(folder: Path) -> None:
    run = Run(folder, "--workers", "1")  # a real engine, and no weights beside the configuration
    output, _ = run.process.communicate(timeout=100)
    assert run.process.returncode == 1
    assert "model.broken" in output
    assert "no model could be loaded" in output.splitlines()[-1]


def test_a_second_one_on_the_same_folder_is_refused(
    start: Callable[[], Run], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start().wait_for(END_OF_WELCOME)
    monkeypatch.setattr(up, "LOCK_WAIT_S", 0.0)
    with pytest.raises(ConfigError, match="already runs"), up.single_instance(Settings(data_dir=folder / "data")):
        pass


def wait_until_ready(run: Run) -> bool:
    address = re.search(r"http://127\.0\.0\.1:\d+", run.output)
    assert address is not None

    async def poll() -> bool:
        while not await up.answers(address[0], "/readyz"):
            await up.happens_within(asyncio.Event(), 0.1)
        return True

    return asyncio.run(asyncio.wait_for(poll(), 60))


def test_a_port_in_use_is_one_clear_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(ConfigError, match=rf"127\.0\.0\.1:{port}.*--port"),
            up.listening_socket(Settings(port=port)),
        ):
            pass


def test_no_model_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="tollgate train"):
        up.run(Settings(models_dir=tmp_path), 1, stub=True)


def test_no_tensorflow_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="engine-cpu"):
        up.require_tensorflow()


@pytest.mark.parametrize(
    ("host", "shown"), [("0.0.0.0", "127.0.0.1"), ("127.0.0.1", "127.0.0.1"), ("::1", "[::1]"), ("::", "[::1]")]
)
def test_the_address_is_one_to_click_on(host: str, shown: str) -> None:
    with up.listening_socket(Settings(host="127.0.0.1", port=0)) as listener:
        port = listener.getsockname()[1]
        assert up.address_of(Settings(host=host), listener) == f"http://{shown}:{port}"


async def test_the_demo_account_can_log_in_and_call(database: Database, settings: Settings) -> None:
    account = await up.demo_account(database, settings)
    assert account.key is not None
    assert account.password is not None
    assert account.email is not None
    async with database.begin() as connection:
        key = await auth.find_key(connection, account.key, settings.key_pepper.get_secret_value())
        login = await users.find_login(connection, account.email)
    assert key.org_id == account.org_id
    assert login is not None
    assert users.check_password(login.password_hash, account.password)


async def test_an_installation_with_an_organisation_gets_no_other(database: Database, settings: Settings) -> None:
    org_id = await make_org(database)
    assert await up.demo_account(database, settings) == Account(org_id)


async def test_nobody_there_is_no_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    assert not await up.answers(f"http://127.0.0.1:{port}", "/readyz")
