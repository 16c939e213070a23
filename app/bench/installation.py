"""One whole installation for a measurement: `tollgate up` on a free port, with a key that no rate limits.

Everything is in a temporary folder, database included, and gone afterwards. The way
through is the customer's: key, admission and metering are on.
"""

import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from app.bench.processes import Use, uses
from app.config import Settings, child_environment
from app.errors import ConfigError
from app.supervise import follow_parent

STOP_TIMEOUT_S = 60
LINES_SHOWN = 8
REQUESTS_PER_MINUTE = 10_000_000
TOKENS_PER_MINUTE = 1_000_000_000
URL = re.compile(r"http://127\.0\.0\.1:\d+/v1")


class Installation:
    """Runs while it is entered; use it from the main thread.

    Args:
        models_dir: What is served.
        num_slots: Sequences decoded together.
        options: Words behind ``tollgate up``.
        environment: Variables of the engine that are not fields of ``Settings``.

    Attributes:
        url: With /v1.
        key: Unlimited.
        engine_target: The engine's own address, for gRPC.
        pid: Of ``tollgate up``.
    """

    def __init__(
        self,
        models_dir: Path,
        *,
        num_slots: int = 16,
        options: tuple[str, ...] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._models_dir = models_dir
        self._num_slots = num_slots
        self._options = options
        self._extra = environment or {}

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="tollgate-bench-")
        folder = Path(self._folder.name)
        folder.chmod(0o711)  # as root, the database runs as another user, who has to pass through
        settings = Settings(
            data_dir=folder / "data",
            models_dir=self._models_dir.resolve(),
            database_url=None,
            engine_url=None,
            engine_slots=self._num_slots,
            simulate_stripe=False,
        )
        self.engine_target = settings.engine_target
        self._environment = child_environment(settings, **self._extra)
        self._errors = folder / "errors"
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                self._command("up", "--port", "0", *self._options),
                env=self._environment,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                preexec_fn=follow_parent(signal.SIGTERM),
            )
        self.pid = self._process.pid
        try:
            self.url = self._read_url()
            self.key = self.make_key(self._tollgate("orgs", "list").split()[0])
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def uses(self) -> dict[str, Use]:
        """Memory and processor time by role."""
        return uses(self.pid)

    def _read_url(self) -> str:
        assert self._process.stdout is not None
        url = None
        for line in self._process.stdout:
            url = url or URL.search(line)
            if "Ctrl-C" in line and url:
                return url[0]
        last = self._errors.read_text().strip().splitlines()[-LINES_SHOWN:]
        raise ConfigError("\n  ".join(("the installation did not start:", *last)))

    def make_org(self, name: str) -> str:
        """Another organisation; gives its id."""
        return self._tollgate("orgs", "create", name, "--plan", "internal").strip()

    def make_key(self, org: str) -> str:
        """A key of an organisation that no rate limits."""
        limits = ("--requests-per-minute", str(REQUESTS_PER_MINUTE), "--tokens-per-minute", str(TOKENS_PER_MINUTE))
        return self._tollgate("keys", "create", "--org", org, "--name", "bench", *limits).strip()

    def _tollgate(self, *words: str) -> str:
        result = subprocess.run(
            self._command(*words), env=self._environment, capture_output=True, text=True, check=False
        )
        if result.returncode:
            raise ConfigError(f"tollgate {' '.join(words)}: {result.stderr.strip()}")
        return result.stdout

    def _command(self, *words: str) -> list[str]:
        return [sys.executable, "-P", "-m", "app.cli", *words]

    def _stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.communicate(timeout=STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
        self._folder.cleanup()
