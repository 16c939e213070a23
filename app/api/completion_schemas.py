"""Bodies of text completions."""

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from app.api.generation_schemas import GenerationBody, Usage
from app.api.schemas import MAX_INT, Answer, TokenIds, contradiction

MAX_PROMPTS = 64
MAX_CANDIDATES = 16


class CompletionBody(GenerationBody):
    """POST /v1/completions."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"model": "shakespeare", "prompt": "To be, or not", "max_tokens": 32, "temperature": 0.7, "seed": 7},
                {"model": "shakespeare", "prompt": "ROMEO:\nI am", "choice": [" happy", " undone"], "max_tokens": 8},
                {
                    "model": "shakespeare",
                    "prompt": "ROMEO:",
                    "max_tokens": 64,
                    "min_tokens": 16,
                    "ignore_eos": True,
                    "stop_token_ids": [0],
                },
            ]
        }
    )

    prompt: (
        str
        | Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True)]
        | TokenIds
        | Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True)]
    ) = Field(description="Text, token ids, or a list of at most 64 of either.")
    max_tokens: int | None = Field(
        None, ge=0, le=MAX_INT, description="Longest output in tokens; prompt and output fit the context. Default 16."
    )
    best_of: int | None = Field(
        None,
        ge=1,
        le=MAX_CANDIDATES,
        description="Candidates of which the `n` with the best mean log-probability are returned; at most 16, not with"
        " `stream`. Only what is returned is billed. Of answers in a form, whole ones come first.",
    )
    logprobs: int | None = Field(
        None,
        ge=0,
        le=20,
        description="Log-probabilities with this many alternatives, and the token itself where it is none of them.",
    )
    echo: bool | None = Field(None, description="Return the prompt in front of the output.")

    @model_validator(mode="after")
    def _check_candidates(self) -> Self:
        if self.best_of is not None and self.best_of < self.num_choices:
            raise contradiction("best_of", "'best_of' must be at least 'n'.")
        if self.best_of is not None and self.best_of > self.num_choices and self.stream:
            raise contradiction("best_of", "'best_of' above 'n' cannot be streamed.")
        return self

    @property
    def num_candidates(self) -> int:
        """Sequences to run per prompt."""
        return self.best_of or self.num_choices


class CompletionLogprobs(Answer):
    """Log-probabilities in the layout of text completions; the first prompt token has none."""

    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class CompletionChoice(Answer):
    """One continuation, or the next piece of it in a stream."""

    text: str
    index: int
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"] | None


class Completion(Answer):
    """Answer of POST /v1/completions, and each chunk of its stream."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage | None = None
