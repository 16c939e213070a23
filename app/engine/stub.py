"""A device that can be computed by hand, behind the very same engine.

The next token is the sum of all tokens so far, modulo the vocabulary; a text's
label is its sum modulo the labels. Sums are kept per slot, as keys and values
are, so that a mistake with slots shows. For tests, gateway benchmarks and chaos
runs: it needs no weights and no TensorFlow.
"""

import math
import threading

from app.engine.runner import NO_GRAMMARS, Result, Vectors
from app.engine.scheduler import Decode, Prefill, Step
from app.engine.sequence import Grammar, Sequence, Token
from app.errors import BadRequest

# The share of the winning label; the others divide the rest.
WINNING_SCORE = 0.9


class StubRunner:
    """Generation by sums.

    Args:
        num_slots: rows of the batch.
        vocab_size: tokens it knows.
        context_length: of prompt and output together.
        step_s: how long each step takes.
    """

    compilations = 0

    def __init__(
        self, num_slots: int = 16, vocab_size: int = 256, context_length: int = 4096, step_s: float = 0.0
    ) -> None:
        self.num_slots = num_slots
        self.vocab_size = vocab_size
        self.context_length = context_length
        self._step_s = step_s
        self._sums = [0] * num_slots

    def warm_up(self) -> None:
        """There is nothing to compile."""

    def prepare(self, grammar: Grammar) -> None:
        """Refuse: sums follow no grammar."""
        raise BadRequest(NO_GRAMMARS, param="grammar")

    def run(self, step: Step) -> Result:
        """Add up, and take the step's time."""
        if self._step_s:
            _wait(self._step_s)
        if isinstance(step, Prefill):
            return self._prefill(step)
        return Result(self._decode(step), device_s=self._step_s)

    def _prefill(self, step: Prefill) -> Result:
        request = step.sequence.request
        before = self._sums[step.slot] if step.start else 0
        self._sums[step.slot] = before + sum(request.prompt[step.start : step.end])
        scored: tuple[Token, ...] = ()
        if request.prompt_logprobs:
            scored = tuple(self._token(step.sequence, t) for t in request.prompt[step.start + 1 : step.end + 1])
        tokens = (self._next(step.sequence, step.slot),) if step.is_last else ()
        return Result(tokens, scored, self._step_s)

    def _decode(self, step: Decode) -> tuple[Token, ...]:
        for row in step.rows:
            self._sums[row.slot] += row.token
        return tuple(self._next(row.sequence, row.slot) for row in step.rows)

    def _next(self, sequence: Sequence, slot: int) -> Token:
        return self._token(sequence, self._sums[slot] % self.vocab_size)

    def _token(self, sequence: Sequence, token: int) -> Token:
        count = sequence.request.logprobs
        if count is None:
            return Token(token)
        logprob = -math.log(self.vocab_size)
        return Token(token, logprob, tuple((i, logprob) for i in range(count)))


class StubEncoder:
    """Scores, or embeddings, by sums."""

    compilations = 0

    def __init__(
        self,
        num_labels: int = 3,
        vocab_size: int = 256,
        max_length: int = 512,
        max_batch: int = 32,
        step_s: float = 0.0,
    ) -> None:
        self.vocab_size = vocab_size
        self.max_length = max_length
        self.max_batch = max_batch
        self._num_labels = num_labels
        self._step_s = step_s

    def warm_up(self) -> None:
        """There is nothing to compile."""

    def bucket(self, length: int) -> int:
        """All texts go together."""
        return 0

    def num_to_take(self, bucket: int, num_waiting: int) -> int:
        """As many as there are, up to `max_batch`."""
        return min(num_waiting, self.max_batch)

    def encode(self, texts: list[tuple[int, ...]]) -> Vectors:
        """Score each text's sum, and take a step's time."""
        if self._step_s:
            _wait(self._step_s)
        return Vectors(tuple(self._scores(text) for text in texts), self._step_s)

    def _scores(self, text: tuple[int, ...]) -> tuple[float, ...]:
        winner = sum(text) % self._num_labels
        other = (1 - WINNING_SCORE) / (self._num_labels - 1)
        return tuple(WINNING_SCORE if label == winner else other for label in range(self._num_labels))


def _wait(seconds: float) -> None:
    threading.Event().wait(seconds)
