"""The requests of a soak: everything that customers do, right and wrong, drawn from a seed.

Streams, whole answers, chats and classifications of mixed sizes; some callers leave at a
random moment, some set a deadline that may be too short, some ask for what is refused.
The first four sorts and the refused ones go to one organisation, whose ledger has to be
exactly what its callers counted; those that may end half-way go to another.
"""

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

from app.modeling.registry import ModelCard

Sort = Literal["stream", "whole", "chat", "classify", "refused", "aborted", "deadline"]

# Out of a hundred requests of a caller. Without a classifier those are whole answers.
SHARES: Mapping[Sort, int] = MappingProxyType(
    {"stream": 30, "whole": 15, "chat": 10, "classify": 20, "refused": 5, "aborted": 12, "deadline": 8}
)
HALFWAY: tuple[Sort, ...] = ("aborted", "deadline")
MAX_OUTPUT = 64
MAX_TEXTS = 4
MAX_WORDS = 24
# Some leave before an answer has begun, some in its middle, some too late.
LEAVE_WITHIN_S = 3.0
DEADLINE_MS = (1, 3000)
WORDS = ("my", "card", "has", "not", "arrived", "w1", "w2", "top", "up", "refund", "?", "明月", "🙂")


@dataclass(frozen=True, slots=True)
class Ask:
    """One request to be.

    Attributes:
        headers: Lines of HTTP, each with its end.
        leave_after_s: When the caller goes away; None: it waits.
        status: Of HTTP that has to come where nothing comes in between.
    """

    sort: Sort
    model: str
    route: str
    body: bytes
    headers: str = ""
    leave_after_s: float | None = None
    status: int = 200
    num_texts: int = 0
    has_logprobs: bool = False


def asks(seed: int, cards: Sequence[ModelCard]) -> Iterator[Ask]:
    """Requests of one caller, without end.

    Args:
        seed: The same gives the same.
        cards: What is served; at least one that generates.
    """
    rng = random.Random(seed)  # noqa: S311 - a workload, not a secret
    writers = [card for card in cards if card.kind == "generation"]
    readers = [card for card in cards if card.kind == "classification"]
    while True:
        sort = rng.choices([*SHARES], [*SHARES.values()])[0]
        if sort == "refused":
            yield _refused(rng, rng.choice(writers))
        elif sort in HALFWAY:
            plain = rng.choice(("stream", "whole", "chat", "classify" if readers else "whole"))
            ask = _proper(rng, plain, writers, readers)
            yield _left(rng, ask) if sort == "aborted" else _hurried(rng, ask)
        else:
            yield _proper(rng, sort if readers or sort != "classify" else "whole", writers, readers)


def _proper(rng: random.Random, sort: str, writers: Sequence[ModelCard], readers: Sequence[ModelCard]) -> Ask:
    make: Mapping[str, Callable[[random.Random, ModelCard], Ask]]
    make = {"stream": _stream, "whole": _whole, "chat": _chat, "classify": _classify}
    return make[sort](rng, rng.choice(readers if sort == "classify" else writers))


def _stream(rng: random.Random, card: ModelCard) -> Ask:
    has_logprobs = rng.random() < 0.5  # then each token is named, and can be counted
    body = _generation(rng, card) | {"stream": True, "stream_options": {"include_usage": True}}
    if has_logprobs:
        body["logprobs"] = 0
    return replace(_ask("stream", card, "/completions", body), has_logprobs=has_logprobs)


def _whole(rng: random.Random, card: ModelCard) -> Ask:
    return _ask("whole", card, "/completions", _generation(rng, card) | {"n": rng.randint(1, 2)})


def _chat(rng: random.Random, card: ModelCard) -> Ask:
    message = {"role": "user", "content": _text(rng, 4)}
    body = {"messages": [message], "max_completion_tokens": rng.randint(1, 24), "seed": rng.randrange(2**31)}
    return _ask("chat", card, "/chat/completions", body)


def _classify(rng: random.Random, card: ModelCard) -> Ask:
    texts = [_text(rng, MAX_WORDS) for _ in range(rng.randint(1, MAX_TEXTS))]
    return replace(_ask("classify", card, "/classifications", {"input": texts}), num_texts=len(texts))


def _refused(rng: random.Random, card: ModelCard) -> Ask:
    good = _generation(rng, card)
    ask = _ask("refused", card, "/completions", good)
    wrong = (
        replace(ask, body=b'{"model": ', status=400),
        replace(ask, headers="x-request-timeout-ms: soon\r\n", status=400),
        replace(ask, body=json.dumps({**good, "model": "no-such-model"}).encode(), status=404),
        *(
            replace(_ask("refused", card, "/completions", good | change), status=400)
            for change in ({"frequency": 1}, {"max_tokens": -1}, {"prompt": [1] * (card.context_length + 1)})
        ),
    )
    return rng.choice(wrong)


def _left(rng: random.Random, ask: Ask) -> Ask:
    return replace(ask, sort="aborted", leave_after_s=rng.uniform(0, LEAVE_WITHIN_S) ** 2 / LEAVE_WITHIN_S)


def _hurried(rng: random.Random, ask: Ask) -> Ask:
    return replace(ask, sort="deadline", headers=f"x-request-timeout-ms: {rng.randint(*DEADLINE_MS)}\r\n")


def _generation(rng: random.Random, card: ModelCard) -> dict[str, Any]:
    """A prompt and an answer that fit; short ones more often than long ones."""
    num_output = rng.randint(1, min(MAX_OUTPUT, card.context_length // 2))
    num_input = max(1, int((card.context_length - num_output) * rng.random() ** 2))
    return {
        "prompt": [rng.randrange(card.vocab_size) for _ in range(num_input)],
        "max_tokens": num_output,
        "temperature": rng.choice((0, 0.7, 1)),
        "seed": rng.randrange(2**31),
    }


def _ask(sort: Sort, card: ModelCard, route: str, body: Mapping[str, Any]) -> Ask:
    return Ask(sort, card.name, route, json.dumps({"model": card.name, **body}).encode())


def _text(rng: random.Random, most: int) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(1, most)))
