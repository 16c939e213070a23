"""`tollgate up` in a folder of its own, for as long as a block lasts."""

import asyncio
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

MEMORY_EVERY_S = 5.0
START_TIMEOUT_S = 180
KEY = re.compile(r"tg_live_[0-9A-Za-z]{36}")
ADDRESS = re.compile(r"http://127\.0\.0\.1:\d+")


class Installation:
    """Runs `tollgate up` on a free port; has its address and its first key."""

    def __enter__(self) -> Self:
        self._folder = Path(tempfile.mkdtemp(prefix="tollgate-load-"))
        self._folder.chmod(0o711)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "app.cli", "up", "--port", "0"],
            env={**_environment(), "TOLLGATE_DATA_DIR": str(self._folder / "data")},
            stdout=subprocess.PIPE,
            text=True,
        )
        self.base_url, self.api_key = self._read_banner()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=60)
        shutil.rmtree(self._folder, ignore_errors=True)

    def memory_mib(self) -> dict[str, int]:
        """Resident memory of each role, MiB."""
        sizes: dict[str, int] = {}
        for child in psutil.Process(self.process.pid).children(recursive=True):
            try:
                name, size = _role(child.cmdline()), child.memory_info().rss
            except psutil.NoSuchProcess:
                continue
            sizes[name] = sizes.get(name, 0) + size // 2**20
        return sizes

    def _read_banner(self) -> tuple[str, str]:
        """The address and the key, from what a first run prints."""
        assert self.process.stdout
        text = ""
        for line in self.process.stdout:
            text += line
            key, address = KEY.search(text), ADDRESS.search(text)
            if key and address:
                return address[0], key[0]
        raise RuntimeError(f"tollgate up ended before it was ready:\n{text}")


async def sample_memory(own: Installation, samples: list[dict[str, int]]) -> None:
    """Append a sample every few seconds until cancelled."""
    while True:
        await asyncio.sleep(MEMORY_EVERY_S)
        samples.append(await asyncio.to_thread(own.memory_mib))


def _role(command: list[str]) -> str:
    for role in ("engine", "api", "worker"):
        if role in command:
            return role
    return "postgres" if command and "postgres" in command[0] else "other"


def _environment() -> dict[str, str]:
    import os

    return {name: value for name, value in os.environ.items() if not name.startswith("TOLLGATE_")}  # noqa: TID251
