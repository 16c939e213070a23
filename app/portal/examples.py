"""Requests to copy: the models that are served here and where."""

from collections.abc import Sequence
from pathlib import Path

from fastapi import Request

from app.modeling.registry import ModelCard, Registry


def published(models_dir: Path) -> list[ModelCard]:
    """The models that are served; reads the folder, so call it outside the event loop."""
    return [card for card in Registry(models_dir).list() if card.enabled]


def example_of(cards: Sequence[ModelCard]) -> ModelCard | None:
    """The model that an example names; None: none that generates text is served."""
    return next((card for card in cards if card.kind == "generation"), None)


def base_url(request: Request) -> str:
    """What clients of the API are pointed at."""
    return f"{str(request.base_url).rstrip('/')}/v1"
