"""Bodies of requests and answers, in OpenAI's wire format, with every limit stated.

Requests refuse what they do not know: an unknown parameter is an error with its
name, never ignored. ``null`` means the default, as in OpenAI's specification.
Answers are written field by field and dumped with ``exclude_unset``, so that a
``null`` appears exactly where a client expects one.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

MAX_PROMPTS = 64
MAX_SEQUENCES = 128
MAX_CHOICES = 8
MAX_CANDIDATES = 16
MAX_STOPS = 4
MAX_STOP_CHARACTERS = 256
MAX_LOGIT_BIASES = 300
# The engine takes 64 together with the model's own end tokens.
MAX_STOP_TOKEN_IDS = 32
MAX_REGEX_CHARACTERS = 4_096
MAX_ANSWERS_TO_CHOOSE = 256
MAX_MESSAGES = 1024
_UINT31 = 2**31 - 1

ModelName = Annotated[str, StringConstraints(min_length=1, max_length=128)]
# PostgreSQL keeps no NUL, and usage rows keep stop strings.
StopString = Annotated[str, StringConstraints(min_length=1, max_length=MAX_STOP_CHARACTERS, pattern=r"^[^\x00]+$")]
TokenId = Annotated[int, Field(ge=0, le=_UINT31)]
TokenKey = Annotated[str, StringConstraints(pattern=r"^\d{1,10}$")]
Bias = Annotated[float, Field(ge=-100, le=100)]
NonEmpty = Annotated[str, StringConstraints(min_length=1)]


class Body(BaseModel):
    """A request body: unknown fields and lenient conversions are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class StreamOptions(Body):
    """How a stream ends."""

    include_usage: bool | None = Field(None, description="Send one more chunk with `usage` before `[DONE]`.")


class JsonSchema(Body):
    """The JSON Schema of a structured answer."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_-]{1,64}$")] = Field(
        description="Yours to choose; changes nothing."
    )
    description: Annotated[str, StringConstraints(max_length=4096)] | None = Field(
        None, description="Accepted for compatibility; not shown to the model."
    )
    definition: dict[str, Any] = Field(
        alias="schema",
        description="A JSON Schema of at most 65,536 characters. Properties are written in its order; one that it"
        " leaves open may be anything, so `additionalProperties: false` keeps small models to the point.",
    )
    strict: bool | None = Field(
        None, description="Accepted for compatibility: the answer follows the schema in any case."
    )


class ResponseFormat(Body):
    """What an answer must look like, as OpenAI has it."""

    type: Literal["text", "json_object", "json_schema"] = Field(
        description="`text`: anything, the default. `json_object`: any JSON object. `json_schema`: what fits one."
    )
    json_schema: JsonSchema | None = Field(None, description="With the type `json_schema`, and only then.")

    @model_validator(mode="after")
    def _check_schema(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise _contradiction(
                "response_format.json_schema",
                "'response_format.json_schema' belongs to the type 'json_schema', and to no other.",
            )
        return self


class GenerationBody(Body):
    """What completions and chat completions have in common."""

    model: ModelName = Field(description="Id of a generation model, as GET /v1/models lists it.")
    temperature: float | None = Field(None, ge=0, le=2, description="0 = always the likeliest token. Default 1.")
    top_p: float | None = Field(None, ge=0, le=1, description="Nucleus: the smallest set of this mass. Default 1.")
    top_k: int | None = Field(None, ge=0, le=_UINT31, description="Only the k likeliest tokens; 0 = off, the default.")
    min_p: float | None = Field(
        None, ge=0, le=1, description="Only tokens at least this likely, relative to the likeliest; 0 = off."
    )
    n: int | None = Field(
        None,
        ge=1,
        le=MAX_CHOICES,
        description="Choices for each prompt, at most 8; the prompt is billed once. Default 1.",
    )
    stop: StopString | Annotated[list[StopString], Field(max_length=MAX_STOPS)] | None = Field(
        None, description="At most 4 strings of at most 256 characters; the answer ends before the first that appears."
    )
    stop_token_ids: Annotated[list[TokenId], Field(max_length=MAX_STOP_TOKEN_IDS)] | None = Field(
        None,
        description="At most 32 token ids that end the answer beside the model's own end tokens. The one that ends it"
        " is neither shown nor billed.",
    )
    min_tokens: int | None = Field(
        None,
        ge=0,
        le=_UINT31,
        description="Nothing ends the answer before it has so many tokens: no end token and no `stop`. A grammar does,"
        " where nothing can follow. Default 0.",
    )
    ignore_eos: bool | None = Field(
        None, description="The model's own end tokens do not end the answer; they are tokens like any other."
    )
    response_format: ResponseFormat | None = Field(
        None,
        description="What the answer must look like: `{type: text | json_object | json_schema}`, the last with"
        " `json_schema: {name, schema}`. Tokens that would leave it are never drawn, whatever `logit_bias` says."
        " The finish reason `stop` means a whole answer; one that its budget or a `stop` string cut has `length`."
        " The model is not told of it: ask for it in the prompt, too. With `echo`, the prompt is not part of it.",
    )
    choice: Annotated[list[NonEmpty], Field(min_length=1, max_length=MAX_ANSWERS_TO_CHOOSE)] | None = Field(
        None,
        description="The answer is exactly one of these texts: at most 256, of 65,536 characters together."
        " Otherwise as `response_format`, of which it takes the place.",
        examples=[["positive", "negative"]],
    )
    regex: Annotated[str, StringConstraints(min_length=1, max_length=MAX_REGEX_CHARACTERS)] | None = Field(
        None,
        description="All of the answer matches this regular expression of at most 4,096 characters (Rust's syntax,"
        " without look-around). Otherwise as `response_format`, of which it takes the place.",
        examples=[r"\d{4}-\d{2}-\d{2}"],
    )
    seed: int | None = Field(
        None, ge=-(2**63), le=2**63 - 1, description="The same seed and request give the same answer of the same model."
    )
    presence_penalty: float | None = Field(None, ge=-2, le=2, description="Over generated tokens. Default 0.")
    frequency_penalty: float | None = Field(None, ge=-2, le=2, description="Over generated tokens. Default 0.")
    logit_bias: Annotated[dict[TokenKey, Bias], Field(max_length=MAX_LOGIT_BIASES)] | None = Field(
        None, description="Added to a token's logit, by token id; at most 300 entries from -100 to 100."
    )
    stream: bool | None = Field(None, description="Server-sent events instead of one JSON answer.")
    stream_options: StreamOptions | None = Field(None, description="Only together with `stream`.")
    user: Annotated[str, StringConstraints(max_length=256)] | None = Field(
        None, description="Yours to choose; not stored."
    )
    metadata: (
        Annotated[
            dict[
                Annotated[str, StringConstraints(max_length=64)],
                Annotated[str, StringConstraints(max_length=512)],
            ],
            Field(max_length=16),
        ]
        | None
    ) = Field(None, description="At most 16 pairs; accepted for compatibility, not stored.")

    @model_validator(mode="after")
    def _check_stream_options(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise _contradiction("stream_options", "'stream_options' is only allowed together with 'stream': true.")
        return self

    @model_validator(mode="after")
    def _check_grammars(self) -> Self:
        if len(self.grammar_params) > 1:
            first, second, *_ = self.grammar_params
            raise _contradiction(second, f"Send '{first}' or '{second}', not both: an answer has one form.")
        return self

    @property
    def grammar_params(self) -> list[str]:
        """Names of the parameters that say what the answer must look like; one at most once validated."""
        has_format = self.response_format is not None and self.response_format.type != "text"
        asked = {"response_format": has_format, "choice": self.choice is not None, "regex": self.regex is not None}
        return [name for name, is_asked in asked.items() if is_asked]

    @property
    def num_choices(self) -> int:
        """Choices per prompt."""
        return self.n or 1

    @property
    def stops(self) -> tuple[str, ...]:
        """Stop strings."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def wants_usage_chunk(self) -> bool:
        """Whether a stream ends with a chunk of usage."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)


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
        | Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS)]
        | Annotated[list[TokenId], Field(min_length=1)]
        | Annotated[
            list[Annotated[list[TokenId], Field(min_length=1)]],
            Field(min_length=1, max_length=MAX_PROMPTS),
        ]
    ) = Field(description="Text, token ids, or a list of at most 64 of either.")
    max_tokens: int | None = Field(
        None, ge=0, le=_UINT31, description="Longest output in tokens; prompt and output fit the context. Default 16."
    )
    best_of: int | None = Field(
        None,
        ge=1,
        le=MAX_CANDIDATES,
        description="Candidates of which the `n` with the best mean log-probability are returned; at most 16, not with"
        " `stream`. Only what is returned is billed. Of answers in a form, whole ones come first.",
    )
    logprobs: int | None = Field(None, ge=0, le=20, description="Log-probabilities with this many alternatives.")
    echo: bool | None = Field(None, description="Return the prompt in front of the output.")

    @model_validator(mode="after")
    def _check_candidates(self) -> Self:
        if self.best_of is not None and self.best_of < self.num_choices:
            raise _contradiction("best_of", "'best_of' must be at least 'n'.")
        if self.best_of is not None and self.best_of > self.num_choices and self.stream:
            raise _contradiction("best_of", "'best_of' above 'n' cannot be streamed.")
        return self

    @property
    def num_candidates(self) -> int:
        """Sequences to run per prompt."""
        return self.best_of or self.num_choices


class TextPart(Body):
    """One part of a message's content; text only."""

    type: Literal["text"]
    text: str


class Message(Body):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"] = Field(description="`developer` is read as `system`.")
    content: str | Annotated[list[TextPart], Field(min_length=1)] = Field(description="Text, or a list of text parts.")
    name: Annotated[str, StringConstraints(max_length=64)] | None = Field(
        None, description="Passed to the model's chat template."
    )
    refusal: None = Field(None, description="Present in answers, so that one can be sent back as it is.")

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
        None, ge=1, le=_UINT31, description="Longest output in tokens. Default: what fits the context."
    )
    max_tokens: int | None = Field(None, ge=1, le=_UINT31, description="The older name of `max_completion_tokens`.")
    logprobs: bool | None = Field(None, description="Return the log-probability of each token.")
    top_logprobs: int | None = Field(None, ge=0, le=20, description="Alternatives per token; needs `logprobs`.")

    @model_validator(mode="after")
    def _check_pairs(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise _contradiction("top_logprobs", "'top_logprobs' is only allowed together with 'logprobs': true.")
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise _contradiction("max_tokens", "Send 'max_tokens' or 'max_completion_tokens', not both.")
        return self

    @property
    def max_output(self) -> int | None:
        """The asked length of the output, under either name."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens


class Answer(BaseModel):
    """A response body."""

    model_config = ConfigDict(frozen=True)


class PromptTokensDetails(Answer):
    """Part of the prompt that was served from a cache."""

    cached_tokens: int


class Usage(Answer):
    """What the answer is billed for."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


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


class ErrorDetail(Answer):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(Answer):
    """Every answer with a status of 400 or more."""

    error: ErrorDetail


def _contradiction(param: str, message: str) -> PydanticCustomError:
    return PydanticCustomError("contradiction", message, {"param": param})
