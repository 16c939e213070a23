"""Tokens to follow grammars with, and a device that draws at random from what is allowed."""

from collections.abc import Sequence as Items

import numpy as np

from app.engine.bias import Bias
from app.engine.grammar import Grammars
from app.engine.runner import Result
from app.engine.scheduler import Part, Prefill, Restore, Scheduler, Step
from app.engine.sequence import Grammar, Request, Sequence, Token
from app.engine.stub import StubRunner

# Every byte, a few longer tokens, and an end that stands for no text.
TOKENS: tuple[bytes | None, ...] = (
    *(bytes([byte]) for byte in range(256)),
    *(
        b'{"',
        b'"}',
        b'":',
        b'": ',
        b'","',
        b'", "',
        b"},",
        b"]}",
        b"true",
        b"null",
        b"ab",
        b"yes",
        b" no",
        "é".encode(),
    ),
    None,
)
END = len(TOKENS) - 1


def grammars(tokens: Items[bytes | None] = TOKENS) -> Grammars:
    return Grammars(lambda: tokens)


def grammar_of(kind: str, *texts: str) -> Grammar:
    return Grammar(kind, texts)  # type: ignore[arg-type]


class RandomRunner(StubRunner):
    """Draws each token by logits that are noise, drawn anew for each, over what `Bias` leaves.

    Args:
        closing: added to the logits of what closes strings, lists and objects, so that
            answers end within their budget.
    """

    def __init__(self, seed: int, tokens: Items[bytes | None] = TOKENS, num_slots: int = 4, closing: float = 0) -> None:
        super().__init__(num_slots, len(tokens), context_length=4096)
        self._grammars = grammars(tokens)
        self._bias = Bias(num_slots, len(tokens), self._grammars)
        self._noise = np.random.default_rng(seed)
        closes = [token is None or token[:1] in (b'"', b"}", b"]", b",") for token in tokens]
        self._closing = np.where(closes, np.float32(closing), np.float32(0))

    def prepare(self, grammar: Grammar) -> object:
        return self._grammars.prepare(grammar)

    def run(self, step: Step) -> Result:
        assert not isinstance(step, Restore)
        if isinstance(step, Prefill):
            return Result(tuple(self._begin(part) for part in step.parts))
        for move in step.moves:
            self._bias.move(*move)
        self._bias.keep({row.slot for row in step.rows})
        for row in step.rows:
            self._bias.observe(row.slot, row.token, row.position + 1 - len(row.sequence.request.prompt))
        return Result(tuple((self._draw(row.slot),) for row in step.rows))

    def _begin(self, part: Part) -> tuple[Token, ...]:
        if not part.is_last:
            return ()
        self._bias.assign(part.slot, part.sequence.request)
        return (self._draw(part.slot),)

    def _draw(self, slot: int) -> Token:
        noise = self._noise.gumbel(size=self.vocab_size).astype(np.float32)
        return self._bias.advance(slot, Token(int((noise + self._closing + self._bias.rows[slot]).argmax())))


def answers(runner: RandomRunner, *requests: Request) -> list[tuple[str | None, bytes]]:
    """Why each ended, and its text."""
    scheduler = Scheduler(runner.shapes, 100)
    sequences = [Sequence(request) for request in requests]
    for sequence in sequences:
        scheduler.enqueue(sequence)
    while (step := scheduler.next_step()) is not None:
        scheduler.advance(step, runner.run(step).tokens)
    texts = (b"".join(TOKENS[token.id] or b"<end>" for token in sequence.output) for sequence in sequences)
    return [(sequence.finish_reason, text) for sequence, text in zip(sequences, texts, strict=True)]
