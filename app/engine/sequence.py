"""One request inside the engine: what was asked, and how far it has come.

Plain Python, like `slots` and `scheduler`: policy can be read and tested without
a device. It holds token ids and numbers only.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

MAX_LOGPROBS = 20
MAX_LOGIT_BIAS = 300
MAX_STOP_TOKENS = 64


class State(Enum):
    """Where a sequence is in its life; it only ever moves downwards in this list."""

    WAITING = "waiting"
    PREFILLING = "prefilling"
    DECODING = "decoding"
    FINISHED = "finished"


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is drawn.

    Attributes:
        temperature: 0 takes the most probable token.
        top_p: share of probability that is kept, in (0, 1]; 1 is off.
        top_k: number of tokens kept; 0 is off.
        min_p: tokens below this share of the most probable one are dropped; 0 is off.
        presence_penalty: taken off the logit of every generated token.
        frequency_penalty: the same, once for each time it was generated.
        logit_bias: added to the logits, by token id.
        seed: 64 bits; with the position it decides the draw.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int = 0

    @property
    def has_penalties(self) -> bool:
        """Whether generated tokens change what comes."""
        return self.presence_penalty != 0 or self.frequency_penalty != 0


@dataclass(frozen=True, slots=True)
class Grammar:
    """What an answer must look like; `app.engine.grammar` compiles it.

    Attributes:
        texts: of a choice, the answers; else one: the JSON Schema as JSON, or the regex.
    """

    kind: Literal["json_schema", "regex", "choice"]
    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Request:
    """What a caller asks of a generation model.

    Attributes:
        max_tokens: output budget; 0 only scores the prompt.
        end_token_ids: sampling one of these ends the sequence; it is not delivered.
        min_tokens: no end token is sampled before this many.
        logprobs: None, or with how many alternatives log-probabilities are given.
        prompt_logprobs: with `logprobs`, the prompt's too.
        start_index: tokens below this index are not delivered again.
        grammar: only a whole sentence of it ends with "stop"; None: anything goes.
        cache_salt: beginnings of prompts are shared among equal salts; "": not at all.
        is_whole: nobody reads the answer before its end, so it may come in few pieces.
    """

    request_id: str
    prompt: tuple[int, ...]
    max_tokens: int
    sampling: Sampling = Sampling()
    end_token_ids: frozenset[int] = frozenset()
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: bool = False
    start_index: int = 0
    grammar: Grammar | None = None
    cache_salt: str = ""
    is_whole: bool = False

    @property
    def may_use_cache(self) -> bool:
        """Whether a known beginning may be passed over; what it scores has to be read."""
        return bool(self.cache_salt) and not self.prompt_logprobs

    @property
    def needs_host(self) -> bool:
        """Whether each token decides, on the host, what may or will follow it."""
        return self.sampling.has_penalties or self.min_tokens > 0 or self.grammar is not None


@dataclass(frozen=True, slots=True)
class Token:
    """A sampled (or prompt) token with what was asked to be known of it.

    Attributes:
        logprob: natural logarithm of its probability under the model itself,
            before temperature, penalties and bias; None when not asked for.
        alternatives: the most probable tokens with theirs, best first.
        finish_reason: "stop" or "length" where a grammar says that the answer ends with it.
    """

    id: int
    logprob: float | None = None
    alternatives: tuple[tuple[int, float], ...] = ()
    finish_reason: str | None = None


@dataclass(slots=True, eq=False)
class Sequence:
    """A request under way.

    Attributes:
        prefilled: prompt tokens whose keys and values are in the slot.
        is_looked_up: the prefix cache was asked for its prompt.
        cached_tokens: how many of those came out of the prefix cache.
        output: tokens sampled so far, without the end token.
        finish_reason: "stop" or "length" once it ended by itself.
        passed_over: prompt chunks of others that went first while this one waited.
        accelerator_s: its share of device time.
    """

    request: Request
    state: State = State.WAITING
    slot: int | None = None
    prefilled: int = 0
    is_looked_up: bool = False
    cached_tokens: int = 0
    output: list[Token] = field(default_factory=list)
    prompt_tokens: list[Token] = field(default_factory=list)
    finish_reason: str | None = None
    passed_over: int = 0
    accelerator_s: float = 0.0

    @property
    def is_live(self) -> bool:
        """Whether it may still get tokens."""
        return self.state is not State.FINISHED

    @property
    def remaining_prompt(self) -> int:
        """Prompt tokens that are not in the slot yet."""
        return len(self.request.prompt) - self.prefilled

    @property
    def remaining_output(self) -> int:
        """Tokens that its budget still allows."""
        return self.request.max_tokens - len(self.output)

    @property
    def next_position(self) -> int:
        """Where the newest token's key and value go: it is the first that the slot lacks."""
        return len(self.request.prompt) + len(self.output) - 1

    def accept(self, token: Token) -> None:
        """Take a sampled token and end where it, the grammar, or the budget says so."""
        if token.id in self.request.end_token_ids:
            self.finish_reason = token.finish_reason or "stop"
            return
        self.output.append(token)
        self.finish_reason = token.finish_reason
        if self.finish_reason is None and len(self.output) >= self.request.max_tokens:
            self.finish_reason = "length"
