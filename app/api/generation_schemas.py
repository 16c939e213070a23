"""What bodies of text and chat completions have in common: sampling, the form of the answer, the bill."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from app.api.schemas import MAX_INT, Answer, Body, ModelName, TokenId, contradiction

MAX_SEQUENCES = 128
MAX_CHOICES = 8
MAX_STOPS = 4
MAX_STOP_CHARACTERS = 256
MAX_LOGIT_BIASES = 300
# The engine takes 64 together with the model's own end tokens.
MAX_STOP_TOKEN_IDS = 32
MAX_REGEX_CHARACTERS = 4_096
MAX_ANSWERS_TO_CHOOSE = 256

# PostgreSQL keeps no NUL, and usage rows keep stop strings.
StopString = Annotated[str, StringConstraints(min_length=1, max_length=MAX_STOP_CHARACTERS, pattern=r"^[^\x00]+$")]
TokenKey = Annotated[str, StringConstraints(pattern=r"^\d{1,10}$")]
Bias = Annotated[float, Field(ge=-100, le=100)]
NonEmpty = Annotated[str, StringConstraints(min_length=1)]


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
            raise contradiction(
                "response_format.json_schema",
                "'response_format.json_schema' belongs to the type 'json_schema', and to no other.",
            )
        return self


class GenerationBody(Body):
    """What completions and chat completions have in common."""

    model: ModelName = Field(description="Id of a generation model, as GET /v1/models lists it.")
    temperature: float | None = Field(None, ge=0, le=2, description="0 = always the likeliest token. Default 1.")
    top_p: float | None = Field(None, ge=0, le=1, description="Nucleus: the smallest set of this mass. Default 1.")
    top_k: int | None = Field(None, ge=0, le=MAX_INT, description="Only the k likeliest tokens; 0 = off, the default.")
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
        None,
        description="At most 4 strings of at most 256 characters; the answer ends before the first that appears, whose"
        " own tokens are drawn and billed as well.",
    )
    stop_token_ids: Annotated[list[TokenId], Field(max_length=MAX_STOP_TOKEN_IDS)] | None = Field(
        None,
        description="At most 32 token ids that end the answer beside the model's own end tokens. The one that ends it"
        " is neither shown nor billed.",
    )
    min_tokens: int | None = Field(
        None,
        ge=0,
        le=MAX_INT,
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
            raise contradiction("stream_options", "'stream_options' is only allowed together with 'stream': true.")
        return self

    @model_validator(mode="after")
    def _check_grammars(self) -> Self:
        if len(self.grammar_params) > 1:
            first, second, *_ = self.grammar_params
            raise contradiction(second, f"Send '{first}' or '{second}', not both: an answer has one form.")
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


class PromptTokensDetails(Answer):
    """Part of the prompt that was served from a cache."""

    cached_tokens: int


class Usage(Answer):
    """What the answer is billed for."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
