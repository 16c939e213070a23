"""What a usage row keeps of a request: whatever decides its answer, but not its content.

With the row's model digest and the same prompt, the parameters give the same answer
again; sent as they stand, they replay it. The caller's texts are left out: prompt,
messages, user and metadata altogether, a grammar but for its kind and sha256.
"""

from pydantic import BaseModel

from app.api.generation_schemas import GenerationBody
from app.api.grammars import grammar_record

KEPT = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "n",
    "best_of",
    "stop",
    "stop_token_ids",
    "min_tokens",
    "ignore_eos",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "max_tokens",
    "max_completion_tokens",
    "logprobs",
    "top_logprobs",
    "echo",
    "stream",
    # Of classifications and embeddings.
    "threshold",
    "abstain_below",
    "dimensions",
    "encoding_format",
)
"""Stored as they came, where they came and differ from their defaults."""

_DEFAULTS: dict[str, object] = {
    "temperature": 1,
    "top_p": 1,
    "top_k": 0,
    "min_p": 0,
    "n": 1,
    "stop": [],
    "stop_token_ids": [],
    "min_tokens": 0,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "logit_bias": {},
    "encoding_format": "float",
}


def kept(body: BaseModel) -> dict[str, object]:
    """The parameters of a request, without its content, as JSON."""
    sent = body.model_dump(mode="json", include={*KEPT}, exclude_none=True)
    # False is the default wherever it can be sent.
    return {name: value for name, value in sent.items() if value is not False and value != _DEFAULTS.get(name)}


def replayable(body: GenerationBody, seed: int) -> dict[str, object]:
    """The same with the seed that was used, also where the caller left it to us, and the grammar's record."""
    return {**kept(body), **grammar_record(body), "seed": seed}
