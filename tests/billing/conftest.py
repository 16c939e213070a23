"""A simulated Stripe for the tests of billing, behind a socket and the real client."""

from collections.abc import AsyncIterator, Iterator

import pytest

from app.billing.gateway import Gateway
from app.db import Database
from tests.billing.stripe_world import StripeWorld
from tests.simulators.stripe.simulator import API_KEY, Simulator, running


@pytest.fixture
def simulator() -> Iterator[Simulator]:
    """A Stripe of the test's own, in which nothing has happened."""
    with running() as simulator:
        yield simulator


@pytest.fixture
async def gateway(simulator: Simulator) -> AsyncIterator[Gateway]:
    """Our border to it."""
    gateway = Gateway(API_KEY, api_base=simulator.url)
    yield gateway
    await gateway.aclose()


@pytest.fixture
async def stripe_world(database: Database, gateway: Gateway, simulator: Simulator) -> StripeWorld:
    """The same, with the catalogue and a clock."""
    world = StripeWorld(database, gateway, simulator)
    await world.open()
    return world
