r"""Log-probabilities in the layout of text completions: tokens by name, and where in the text each begins.

Alternatives are keyed by their names there, so a name has to tell them apart: a token that
is a part of a character only is named by its bytes, ``bytes:\xe2\x80``, as OpenAI does.
"""

import math
from collections.abc import Iterable, Sequence

from app.api.completion_schemas import CompletionLogprobs
from app.api.stops import Token
from app.modeling.tokenizer import Tokenizer
from app.rpc import engine_pb2 as pb


def scored_prompt(tokenizer: Tokenizer, ids: Sequence[int], scores: Sequence[pb.TokenLogprob]) -> list[Token]:
    """The tokens of a prompt.

    Args:
        tokenizer: Whose text ``echo`` shows, without special tokens and with whole characters.
        ids: Of the prompt.
        scores: Of its last tokens: nothing precedes the first one.
    """
    unscored = [None] * (len(ids) - len(scores))
    detokenizer, offset, tokens = tokenizer.detokenizer(), 0, list[Token]()
    for token_id, score in zip(ids, [*unscored, *scores], strict=True):
        tokens.append(Token(token_id, offset, score))
        offset += len(detokenizer.push(token_id))
    return tokens


def completion_logprobs(tokenizer: Tokenizer, tokens: Iterable[Token]) -> CompletionLogprobs:
    """All of them on the wire; a token is among its own alternatives, however unlikely it was."""
    rendered = CompletionLogprobs(text_offset=[], token_logprobs=[], tokens=[], top_logprobs=[])
    for token in tokens:
        name, score = _name(tokenizer, token.id), token.score
        rendered.tokens.append(name)
        rendered.text_offset.append(token.offset)
        rendered.token_logprobs.append(None if score is None else finite(score.logprob))
        rendered.top_logprobs.append(None if score is None else _alternatives(tokenizer, name, score))
    return rendered


def finite(logprob: float) -> float:
    """JSON has no infinity; -9999.0 is OpenAI's value for a token that cannot be."""
    return logprob if math.isfinite(logprob) else -9999.0


def _alternatives(tokenizer: Tokenizer, name: str, score: pb.TokenLogprob) -> dict[str, float]:
    tops = zip(score.top_tokens, score.top_logprobs, strict=True)
    named = {_name(tokenizer, token_id): finite(value) for token_id, value in tops}
    return named | {name: finite(score.logprob)}


def _name(tokenizer: Tokenizer, token_id: int) -> str:
    raw = tokenizer.token_bytes(token_id)
    if not raw:
        return f"token_id:{token_id}"  # a number without a token, of which the vocabulary may have many
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
