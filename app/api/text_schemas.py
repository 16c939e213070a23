"""Bodies of requests and answers that read texts: classifications and embeddings.

As `schemas.py`: unknown parameters are refused by name, every limit is stated.
"""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints

from app.api.schemas import Answer, Body, ModelName, TokenIds

MAX_INPUTS = 256

Probability = Annotated[float, Field(ge=0, le=1)]


class ClassificationBody(Body):
    """POST /v1/classifications."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"model": "banking-intents", "input": "My card has not arrived yet.", "top_k": 3},
                {"model": "banking-intents", "input": ["Where is my card?", "asdf"], "top_k": 1, "abstain_below": 0.5},
            ]
        }
    )

    model: ModelName = Field(description="Id of a classification model, as GET /v1/models lists it.")
    input: str | Annotated[list[str], Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True)] = Field(
        description="A text, or a list of at most 256 texts."
    )
    top_k: int | None = Field(None, ge=1, le=100_000, description="Only the k best labels in `scores`. Default: all.")
    threshold: Probability | None = Field(
        None,
        description="Only of a multi-label model: `labels` holds every label with at least this score."
        " Default: each label's own threshold, as GET /v1/models lists it.",
    )
    abstain_below: Probability | None = Field(
        None, description="Where the best score is below, `label` is null and `abstained` true. Default: never."
    )


class LabelScore(Answer):
    """A label and its probability."""

    label: str
    score: float


class Classification(Answer):
    """The best label of one input, and the labels by falling score.

    ``labels`` is there for a multi-label model: every label that holds, by falling
    score. ``abstained`` is there where the request said ``abstain_below``.
    """

    index: int
    label: str | None
    score: float
    labels: list[str] | None = None
    abstained: bool | None = None
    scores: list[LabelScore]


class TextUsage(Answer):
    """What the answer is billed for."""

    prompt_tokens: int
    total_tokens: int


class ClassificationList(Answer):
    """Answer of POST /v1/classifications."""

    id: str
    object: Literal["list"]
    model: str
    data: list[Classification]
    usage: TextUsage


class EmbeddingBody(Body):
    """POST /v1/embeddings."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"model": "my-embeddings", "input": ["first text", "second text"], "encoding_format": "float"}]
        }
    )

    model: ModelName = Field(description="Id of an embedding model, as GET /v1/models lists it.")
    input: (
        str
        | Annotated[list[str], Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True)]
        | TokenIds
        | Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True)]
    ) = Field(description="Text, token ids, or a list of at most 256 of either.")
    encoding_format: Literal["float", "base64"] | None = Field(
        None, description="Numbers, or their little-endian 32-bit floats in base64. Default `float`."
    )
    dimensions: int | None = Field(
        None, ge=1, description="Cut to so many numbers; only of a model that was trained for it."
    )
    user: Annotated[str, StringConstraints(max_length=256)] | None = Field(
        None, description="Yours to choose; not stored."
    )

    @property
    def is_list(self) -> bool:
        """Whether several inputs could have been meant."""
        return not isinstance(self.input, str) and not isinstance(self.input[0], int)

    @property
    def inputs(self) -> list[str | list[int]]:
        """Each input by itself."""
        return [*self.input] if self.is_list else [self.input]  # type: ignore[list-item]  # of one kind only


class Embedding(Answer):
    """The vector of one input."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingList(Answer):
    """Answer of POST /v1/embeddings."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: TextUsage
