"""The served world of the interface's tests."""

from collections.abc import AsyncIterator

import pytest

from app.config import Settings
from app.db import Database
from tests.api.world import LABELS, THRESHOLDS, World, serving, write_model
from tests.factories import make_key


@pytest.fixture
async def world(settings: Settings, database: Database) -> AsyncIterator[World]:
    """A generation model, two classifiers (the second multi-label), an embedding model, and a key with every scope."""
    write_model(settings.models_dir)
    write_model(settings.models_dir, "labels", labels=LABELS)
    write_model(settings.models_dir, "topics", labels=LABELS, thresholds=THRESHOLDS)
    write_model(settings.models_dir, "vectors", embedding_size=3)
    async with serving(settings, database) as running:
        running.key = await make_key(database, settings)
        yield running


@pytest.fixture
async def world_with_short_silence(settings: Settings, database: Database) -> AsyncIterator[World]:
    """The same, but a stream counts as silent at once."""
    write_model(settings.models_dir)
    async with serving(settings, database, stream_keepalive_s=0.01) as running:
        running.key = await make_key(database, settings)
        yield running
