"""The world of the portal's tests."""

from collections.abc import AsyncIterator
from uuid import UUID

import pytest

from tests.api.conftest import world
from tests.api.world import World
from tests.factories import make_org
from tests.portal.people import Person, browsing
from tests.portal.visiting import Browser, visiting

__all__ = ["acme", "owner", "visitor", "world"]


@pytest.fixture
async def acme(world: World) -> UUID:
    """An organisation."""
    return await make_org(world.database)


@pytest.fixture
async def owner(world: World, acme: UUID) -> AsyncIterator[Browser]:
    """Its owner at a browser."""
    async with visiting(world, acme) as browser:
        yield browser


@pytest.fixture
async def visitor(world: World) -> AsyncIterator[Person]:
    """Somebody who is not signed in, at a browser without any cookie."""
    async with browsing(world) as browser:
        yield browser
