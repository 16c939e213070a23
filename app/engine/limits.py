"""Refuses what a model cannot do, before it costs anything.

The API checks the same bounds with the names that its callers know; this is the
engine's own guard.
"""

import math

from app.engine.sequence import MAX_LOGIT_BIAS, MAX_LOGPROBS, MAX_STOP_TOKENS, Request, Sampling
from app.errors import BadRequest, ContextLengthExceeded

MAX_INPUTS = 256


def check_request(request: Request, context_length: int, vocab_size: int) -> None:
    """Refuse a generation request that this model cannot run.

    Raises:
        ContextLengthExceeded: prompt and budget do not fit in the context.
        BadRequest: anything else; the message names the field.
    """
    check_tokens(request.prompt, vocab_size)
    if len(request.prompt) + request.max_tokens > context_length or len(request.prompt) >= context_length:
        raise ContextLengthExceeded(
            f"The prompt has {len(request.prompt)} tokens and max_tokens is {request.max_tokens}; "
            f"this model's context holds {context_length}."
        )
    _require(request.max_tokens > 0 or request.prompt_logprobs, "max_tokens must be at least 1")
    _require(request.min_tokens <= request.max_tokens, "min_tokens must not exceed max_tokens")
    _require(request.logprobs is None or request.logprobs <= MAX_LOGPROBS, f"logprobs must be at most {MAX_LOGPROBS}")
    _require(not request.prompt_logprobs or request.logprobs is not None, "prompt_logprobs needs logprobs")
    _require(len(request.end_token_ids) <= MAX_STOP_TOKENS, f"there may be at most {MAX_STOP_TOKENS} stop_token_ids")
    _require(max(request.end_token_ids, default=0) < vocab_size, "stop_token_ids must be token ids of the model")
    _check_sampling(request.sampling, vocab_size)


def check_texts(texts: list[tuple[int, ...]], max_length: int, vocab_size: int) -> None:
    """Refuse texts that this encoder cannot read.

    Raises:
        ContextLengthExceeded: a text is longer than the model reads.
        BadRequest: none or too many of them, or a token that does not exist.
    """
    _require(0 < len(texts) <= MAX_INPUTS, f"inputs must be 1 to {MAX_INPUTS} texts")
    for text in texts:
        check_tokens(text, vocab_size)
        if len(text) > max_length:
            raise ContextLengthExceeded(f"A text has {len(text)} tokens; this model reads {max_length}.")


def check_tokens(tokens: tuple[int, ...], vocab_size: int) -> None:
    """Raise BadRequest unless there are tokens, all of the model's vocabulary."""
    _require(len(tokens) > 0, "there must be at least one token")
    _require(max(tokens) < vocab_size, f"token ids must be below {vocab_size}")


def _check_sampling(sampling: Sampling, vocab_size: int) -> None:
    _require(_within(sampling.temperature, 0, math.inf), "temperature must not be negative")
    _require(0 < sampling.top_p <= 1, "top_p must be above 0 and at most 1")
    _require(_within(sampling.min_p, 0, 1), "min_p must be within 0 and 1")
    _require(0 <= sampling.top_k <= 2**31 - 1, "top_k is too large")
    _require(_within(sampling.presence_penalty, -2, 2), "presence_penalty must be within -2 and 2")
    _require(_within(sampling.frequency_penalty, -2, 2), "frequency_penalty must be within -2 and 2")
    _require(len(sampling.logit_bias) <= MAX_LOGIT_BIAS, f"logit_bias may have at most {MAX_LOGIT_BIAS} entries")
    _require(max(sampling.logit_bias, default=0) < vocab_size, "logit_bias must name token ids of the model")
    _require(
        all(_within(value, -100, 100) for value in sampling.logit_bias.values()), "logit_bias goes from -100 to 100"
    )


def _within(value: float, low: float, high: float) -> bool:
    """False for NaN, too, and for what is not finite."""
    return math.isfinite(value) and low <= value <= high


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise BadRequest(message)
