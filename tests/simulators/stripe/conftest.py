"""Fixtures of the simulator's tests."""

from collections.abc import Iterator

import pytest

from tests.simulators.stripe.simulator import Simulator, running


@pytest.fixture
def simulator() -> Iterator[Simulator]:
    """A simulator of its own for each test."""
    with running() as simulator:
        yield simulator
