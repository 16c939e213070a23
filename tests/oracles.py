"""Where outside truth lies, if it is there: a folder beside the project, or TOLLGATE_ORACLES."""

import os
from pathlib import Path

import pytest

ORACLES = Path(os.environ.get("TOLLGATE_ORACLES", Path(__file__).parents[2] / "shared" / "oracles"))  # noqa: TID251


def oracle(name: str) -> Path:
    """The folder of an oracle; skips the test, saying so, where it is absent."""
    path = ORACLES / name
    if not path.is_dir():
        pytest.skip(f"oracle {name} is not at hand (set TOLLGATE_ORACLES); its self-made twin runs")
    return path
