"""One installation for all end-to-end tests, and the models it serves."""

from collections.abc import Iterator

import pytest

from app.modeling.registry import ModelCard, Registry
from tests.installation import MODELS, Installation


@pytest.fixture(scope="session")
def installation() -> Iterator[Installation]:
    """Everything, started as its owner would."""
    with Installation() as running:
        yield running


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
