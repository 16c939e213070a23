"""Bodies that name models."""

from typing import Literal

from app.api.schemas import Answer


class Model(Answer):
    """A model that may be named in requests."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    kind: Literal["generation", "classification", "embedding"]
    context_length: int
    labels: list[str] | None = None
    thresholds: dict[str, float] | None = None
    embedding_size: int | None = None
    description: str
    license: str | None


class ModelList(Answer):
    """Answer of GET /v1/models."""

    object: Literal["list"]
    data: list[Model]
