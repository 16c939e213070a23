"""`tollgate up` on the stub engine, and its processes, one by one, to kill."""

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

import psutil
from pydantic import SecretStr

from app import postgres
from app.config import Settings, child_environment, development_secret
from app.supervise import follow_parent
from tests.installation import MODELS

NUM_API = 2
STEP_MS = 10.0
STOP_TIMEOUT_S = 60
REQUEST_TIMEOUT_S = 20.0
# Short, so that a stopped PostgreSQL is given up before it goes on.
DATABASE_TIMEOUT_S = 2.0
COMMANDS = {"api": "app.cli api", "engine": "app.cli engine", "worker": "app.cli worker", "postgres": "bin/postgres -D"}


class Installation:
    """Whoever enters it starts it; what is killed is started again by its own supervisor, that one by us.

    Args:
        folder: For everything it writes; when root, another user has to pass through.

    Attributes:
        settings: For reading its database beside it.
        url: Without /v1.
    """

    def __init__(self, folder: Path) -> None:
        data_dir = folder / "data"
        self._log = folder / "log"
        self.settings = Settings(
            data_dir=data_dir,
            models_dir=MODELS,
            port=_free_port(),
            database_url=None,
            engine_url=None,
            key_pepper=SecretStr(development_secret(data_dir, "key_pepper")),
            secret_key=SecretStr(development_secret(data_dir, "secret_key")),
            database_timeout_s=DATABASE_TIMEOUT_S,
            request_timeout_s=REQUEST_TIMEOUT_S,
            simulate_stripe=False,
        )
        self.url = f"http://127.0.0.1:{self.settings.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def database_url(self) -> str:
        """Of its own PostgreSQL."""
        return postgres.locate(self.settings.data_dir).url

    def start(self) -> None:
        """Returns before it is ready."""
        options = ("--workers", str(NUM_API), "--stub", "--step-ms", str(STEP_MS))
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "app.cli", "up", *options],
                env=child_environment(self.settings),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=follow_parent(signal.SIGTERM),
            )

    def stop(self) -> None:
        """As its owner does it.

        Raises:
            subprocess.TimeoutExpired: It does not end.
        """
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_TIMEOUT_S)
        finally:
            self._process.kill()
            self._process.wait()

    def hit(self, victim: str, pick: float) -> None:
        """Kills it.

        Args:
            victim: As a schedule names it.
            pick: Which of several equal processes, in [0, 1).
        """
        if victim == "everything":
            self._kill_everything()
            return
        for process in self._victims(victim, pick):
            with suppress(psutil.NoSuchProcess):
                process.kill()

    @contextmanager
    def stopped(self, victim: str, pick: float) -> Iterator[None]:
        """Stops it for the length of the block; as ``hit``."""
        victims = self._victims(victim, pick)
        for process in victims:
            with suppress(psutil.NoSuchProcess):
                process.suspend()
        try:
            yield
        finally:
            for process in victims:
                with suppress(psutil.NoSuchProcess):
                    process.resume()

    def processes(self, role: str) -> list[psutil.Process]:
        """Those of a role that live now, by age."""
        return [process for process in self._children() if COMMANDS[role] in _command_line(process)]

    @property
    def is_whole(self) -> bool:
        """Whether every process lives."""
        wanted = {role: NUM_API if role == "api" else 1 for role in COMMANDS}
        return {role: len(self.processes(role)) for role in COMMANDS} == wanted

    def last_lines(self, num: int = 30) -> str:
        """What its processes wrote last."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-num:])

    def _victims(self, victim: str, pick: float) -> list[psutil.Process]:
        if victim == "every api":
            return self.processes("api")
        found = self.processes(victim.split()[0])
        if victim == "postgres stopped":
            return [process for server in found for process in (server, *server.children())]
        return found[int(pick * len(found)) :][:1]

    def _kill_everything(self) -> None:
        assert self._process is not None
        # PostgreSQL may still be stopping when the next one starts; the port has to be free.
        others = [process for role in COMMANDS if role != "postgres" for process in self.processes(role)]
        self._process.kill()
        self._process.wait()
        psutil.wait_procs(others, STOP_TIMEOUT_S)
        self.start()

    def _children(self) -> list[psutil.Process]:
        assert self._process is not None
        with suppress(psutil.NoSuchProcess):
            return list(psutil.Process(self._process.pid).children())
        return []


def _command_line(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port
