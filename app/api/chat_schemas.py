"""Bodies of chat completions."""

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, StringConstraints, model_validator

from app.api.generation_schemas import GenerationBody, Usage
from app.api.schemas import MAX_INT, Answer, Body, contradiction

MAX_MESSAGES = 1024


class TextPart(Body):
    """One part of a message's content; text only."""

    type: Literal["text"]
    text: str


class Message(Body):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"] = Field(description="`developer` is read as `system`.")
    content: str | Annotated[list[TextPart], Field(min_length=1, fail_fast=True)] = Field(
        description="Text, or a list of text parts."
    )
    name: Annotated[str, StringConstraints(max_length=64)] | None = Field(
        None, description="Passed to the model's chat template."
    )
    # Clients write down an answer with all that it might have had, and send that back.
    refusal: None = Field(None, description="Only `null`, as in answers, so that one can be sent back; so the others.")
    annotations: None = None
    audio: None = None
    function_call: None = None
    tool_calls: None = None

    @property
    def text(self) -> str:
        """The content as one string."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatBody(GenerationBody):
    """POST /v1/chat/completions."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "shakespeare",
                    "messages": [{"role": "user", "content": "Speak, good sir."}],
                    "max_completion_tokens": 48,
                },
                {
                    "model": "shakespeare",
                    "messages": [{"role": "user", "content": "Name a play and its year, as JSON."}],
                    "max_completion_tokens": 64,
                    "response_format": {
                        "type": "json_schema",
                        "json_schema": {
                            "name": "play",
                            "schema": {
                                "type": "object",
                                "properties": {
                                    "title": {"type": "string", "maxLength": 24},
                                    "year": {"type": "integer", "minimum": 1589, "maximum": 1613},
                                },
                                "required": ["title", "year"],
                                "additionalProperties": False,
                            },
                        },
                    },
                },
                {
                    "model": "shakespeare",
                    "messages": [{"role": "user", "content": "When was it?"}],
                    "regex": r"in 1[56]\d\d",
                },
            ]
        }
    )

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)] = Field(
        description="The conversation, oldest turn first; at most 1,024 turns."
    )
    max_completion_tokens: int | None = Field(
        None, ge=1, le=MAX_INT, description="Longest output in tokens. Default: what fits the context."
    )
    max_tokens: int | None = Field(None, ge=1, le=MAX_INT, description="The older name of `max_completion_tokens`.")
    logprobs: bool | None = Field(None, description="Return the log-probability of each token.")
    top_logprobs: int | None = Field(None, ge=0, le=20, description="Alternatives per token; needs `logprobs`.")

    @model_validator(mode="after")
    def _check_pairs(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise contradiction("top_logprobs", "'top_logprobs' is only allowed together with 'logprobs': true.")
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise contradiction("max_tokens", "Send 'max_tokens' or 'max_completion_tokens', not both.")
        return self

    @property
    def max_output(self) -> int | None:
        """The asked length of the output, under either name."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens


class TopLogprob(Answer):
    """An alternative at one position."""

    token: str
    bytes: list[int]
    logprob: float


class TokenLogprob(TopLogprob):
    """A token, its log-probability and the likeliest alternatives."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(Answer):
    """Log-probabilities in the layout of chat completions."""

    content: list[TokenLogprob]
    refusal: None = None


class AssistantMessage(Answer):
    """The assistant's turn."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(Answer):
    """One answer."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"]


class ChatCompletion(Answer):
    """Answer of POST /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage


class ChatDelta(Answer):
    """What a chunk adds to the message."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    refusal: None = None


class ChatChunkChoice(Answer):
    """The next piece of one answer."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"] | None


class ChatChunk(Answer):
    """One event of a chat stream."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None
