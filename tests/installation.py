"""One whole installation, as its owner starts it: `tollgate up` with the published models and a simulated Stripe."""

import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from openai import OpenAI

ROOT = Path(__file__).parents[1]
MODELS = ROOT / "models"
STOP_TIMEOUT_S = 60
URL = re.compile(r"http://127\.0\.0\.1:\d+/v1")
KEY = re.compile(r"tg_live_[0-9A-Za-z]{36}")
STRIPE = re.compile(r"(http://127\.0\.0\.1:\d+)/ \(simulated")


class Installation:
    """Runs on a free port, in a folder that is gone afterwards, database included.

    Args:
        options: more of `tollgate up`.

    Attributes:
        url: of the API, as the official client wants it.
        key: the first key.
        stripe_url: of the simulated Stripe, without a slash at the end.
        data_dir: what it keeps.
    """

    def __init__(self, *options: str) -> None:
        self._options = options

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="tollgate-")
        folder = Path(self._folder.name)
        # As root the database runs as another user, who has to pass through; otherwise
        # its files would go elsewhere and stay there.
        folder.chmod(0o711)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TOLLGATE_")}  # noqa: TID251
        self.data_dir = folder / "data"
        environment |= {"TOLLGATE_DATA_DIR": str(self.data_dir), "TOLLGATE_MODELS_DIR": str(MODELS)}
        with (folder / "errors").open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "app.cli", "up", "--port", "0", *self._options],
                env=environment,
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        try:
            self.url, self.stripe_url, self.key = self._read_screen(folder / "errors")
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()
        assert self._process.returncode == 0

    def client(self, **options: int) -> OpenAI:
        """The official client with the first key."""
        return OpenAI(api_key=self.key, base_url=self.url, max_retries=options.get("max_retries", 0), timeout=120)

    def _read_screen(self, errors: Path) -> tuple[str, str, str]:
        """The address, Stripe's and the key, from what a first run prints."""
        assert self._process.stdout is not None
        screen = ""
        for line in self._process.stdout:
            screen += line
            url, stripe, key = URL.search(screen), STRIPE.search(screen), KEY.search(screen)
            if url and stripe and key:
                return url[0], stripe[1], key[0]
        raise AssertionError(screen + errors.read_text())

    def _stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.communicate(timeout=STOP_TIMEOUT_S)
        self._folder.cleanup()
