"""The kernels as XLA of this process knows them.

XLA takes one address for each name and ends a process that brings another, so all tests of a
process share what was started first.
"""

from functools import cache
from pathlib import Path

import pytest

from app.kernels.compiler import host
from app.kernels.ops import Started, start
from tests.kernels.calls import FOLDER

NUM_THREADS = 2


@cache
def started() -> Started:
    """Started once, not while a graph is made; skips where the processor has no kernels, and nowhere else."""
    if host() is None:
        pytest.skip("this processor has no vectors of fused multiply-adds")
    found = start(Path(FOLDER.name), NUM_THREADS)
    assert found is not None
    return found
