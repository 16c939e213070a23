"""A device that can be computed by hand, behind the very same engine.

The next token is the sum of all tokens so far, modulo the vocabulary; a text's
label is its sum modulo the labels. Sums are kept per slot, as keys and values
are, so that a mistake with slots shows. For tests, gateway benchmarks and chaos
runs: it needs no weights and no TensorFlow.
"""

import math
import threading
from dataclasses import replace

from app.engine.runner import NO_GRAMMARS, Result, Vectors
from app.engine.scheduler import Decode, Prefill, Restore, Step
from app.engine.sequence import Grammar, Sequence, Token
from app.engine.shapes import Shapes
from app.errors import BadRequest

# The share of the winning label; the others divide the rest.
WINNING_SCORE = 0.9
CHUNK = 256
NUM_BLOCKS = 256


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
        self.shapes = Shapes(
            rows=tuple(sorted({min(2**i, num_slots) for i in range(num_slots.bit_length() + 1)})),
            parts=(1, 2),
            lengths=(CHUNK,),
            chunk=CHUNK,
            num_blocks=NUM_BLOCKS,
        )
        self.vocab_size = vocab_size
        self.context_length = context_length
        self._step_s = step_s
        self._sums = [0] * num_slots
        self._blocks = [0] * NUM_BLOCKS

    def warm_up(self) -> None:
        """There is nothing to compile."""

    def prepare(self, grammar: Grammar) -> object:
        """Refuse: sums follow no grammar."""
        raise BadRequest(NO_GRAMMARS, param="grammar")

    def run(self, step: Step) -> Result:
        """Add up, and take the step's time."""
        if isinstance(step, Restore):
            self._sums[step.slot] = self._blocks[step.places[-1]]
            return Result(tokens=((),))
        num_steps = step.num_steps if isinstance(step, Decode) else 1
        if self._step_s:
            _wait(self._step_s * num_steps)
        result = self._prefill(step) if isinstance(step, Prefill) else Result(self._decode(step))
        return replace(result, device_s=self._step_s * num_steps)

    def _prefill(self, step: Prefill) -> Result:
        tokens, scored = [], list[Token]()
        for part in step.parts:
            prompt = part.sequence.request.prompt
            before = self._sums[part.slot] if part.start else 0
            self._sums[part.slot] = before + sum(prompt[part.start : part.end])
            if part.sequence.request.prompt_logprobs:
                scored += (self._token(part.sequence, t) for t in prompt[part.start + 1 : part.end + 1])
            for number, place in enumerate(part.kept, part.first_kept + 1):
                self._blocks[place] = sum(prompt[: number * self.shapes.chunk])
            tokens.append((self._next(part.sequence, part.slot),) if part.is_last else ())
        return Result(tuple(tokens), tuple(scored))

    def _decode(self, step: Decode) -> tuple[tuple[Token, ...], ...]:
        for source, target in step.moves:
            self._sums[target] = self._sums[source]
        tokens = []
        for row in step.rows:
            newest, new = row.token, list[Token]()
            for _ in range(step.num_steps):
                self._sums[row.slot] += newest
                new.append(self._next(row.sequence, row.slot))
                newest = new[-1].id
            tokens.append(tuple(new))
        return tuple(tokens)

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
        other = (1 - WINNING_SCORE) / max(1, self._num_labels - 1)
        return tuple(WINNING_SCORE if label == winner else other for label in range(self._num_labels))


def _wait(seconds: float) -> None:
    threading.Event().wait(seconds)
