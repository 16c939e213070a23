"""One whole installation for all end-to-end tests: ``tollgate up`` with the published models."""

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from openai import OpenAI

from app.modeling.registry import ModelCard, Registry

MODELS = Path(__file__).parents[2] / "models"


@dataclass(frozen=True)
class Installation:
    """A running ``tollgate up``, as its owner sees it."""

    url: str
    key: str

    def client(self, **options: int) -> OpenAI:
        """The official client with the first key."""
        return OpenAI(api_key=self.key, base_url=self.url, max_retries=options.get("max_retries", 0), timeout=120)


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    """A folder that is gone afterwards, database included."""
    with tempfile.TemporaryDirectory(prefix="tollgate-") as name:
        # As root the database runs as another user, who has to pass through; otherwise
        # its files would go elsewhere and stay there.
        Path(name).chmod(0o711)
        yield Path(name)


@pytest.fixture(scope="session")
def installation(folder: Path) -> Iterator[Installation]:
    """Starts everything, reads the address and the key off the screen, and stops it with SIGTERM."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TOLLGATE_")}  # noqa: TID251
    environment |= {"TOLLGATE_DATA_DIR": str(folder / "data"), "TOLLGATE_MODELS_DIR": str(MODELS)}
    with (folder / "errors").open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "app.cli", "up", "--port", "0"],
            env=environment,
            cwd=MODELS.parent,
            stdout=subprocess.PIPE,
            stderr=errors,
        )
    try:
        yield _read_screen(process, folder / "errors")
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate()
    assert process.returncode == 0
    assert not (folder / "data" / "postgres").is_symlink()


def _read_screen(process: "subprocess.Popen[bytes]", errors: Path) -> Installation:
    assert process.stdout is not None
    screen = ""
    for line in process.stdout:
        screen += line.decode()
        url = re.search(r"http://[\d.]+:\d+/v1", screen)
        key = re.search(r"tg_live_[0-9A-Za-z]{36}", screen)
        if url and key:
            return Installation(url[0], key[0])
    raise AssertionError(screen + errors.read_text())


def models_of(kind: str) -> list[ModelCard]:
    """The published models of one kind."""
    return [card for card in Registry(MODELS).list() if card.enabled and card.kind == kind]


@pytest.fixture(scope="session")
def generator() -> ModelCard:
    """A published generation model."""
    return models_of("generation")[0]


@pytest.fixture(scope="session")
def classifier() -> ModelCard:
    """A published classification model."""
    return models_of("classification")[0]
