"""Which device call comes next: a chunk of one prompt, or one token for everybody.

First come, first served into the slots; among those whose prompt is being read,
the shortest rest goes first, so that a long prompt delays nobody else's first
token by more than a chunk, and none is passed over for ever. Chunks end at fixed
multiples of the chunk length whatever the load, because a prompt cut in other
places would give other last bits. After `prefill_budget` prompt tokens every
decoding row gets its token.

It does not look at clocks, tensors or callers; a deadline reaches it as `abort`.
"""

from collections import deque
from dataclasses import dataclass

from app.engine.sequence import Sequence, State, Token
from app.engine.slots import Slots

# A prompt goes next after this many chunks of others went first.
MAX_PASSED_OVER = 4


class QueueFull(Exception):
    """The bounded queue holds all it may."""


@dataclass(frozen=True, slots=True)
class Prefill:
    """Read `prompt[start:end]` of a sequence into its slot; sample if that is its end."""

    sequence: Sequence
    slot: int
    start: int
    end: int

    @property
    def is_last(self) -> bool:
        """Whether the prompt ends here, so that a token is sampled."""
        return self.end == len(self.sequence.request.prompt)

    @property
    def sequences(self) -> tuple[Sequence, ...]:
        """Who takes part."""
        return (self.sequence,)


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence in a decode step.

    The slot is noted here because an abort may take it from the sequence while
    the step runs.

    Attributes:
        token: the newest token, whose key and value are not in the slot yet.
        position: where they go.
    """

    sequence: Sequence
    slot: int
    token: int
    position: int


@dataclass(frozen=True, slots=True)
class Decode:
    """Sample one more token for each of these rows."""

    rows: tuple[Row, ...]

    @property
    def sequences(self) -> tuple[Sequence, ...]:
        """Who takes part."""
        return tuple(row.sequence for row in self.rows)


Step = Prefill | Decode


class Scheduler:
    """The queue, the slots and the order of steps of one model.

    Args:
        num_slots: sequences decoded together.
        queue_capacity: sequences that may wait for a slot.
        chunk: prompt tokens of one device call.
        prefill_budget: prompt tokens read between two decode steps.
    """

    def __init__(self, num_slots: int, queue_capacity: int, chunk: int = 256, prefill_budget: int = 512) -> None:
        self.slots = Slots(num_slots)
        self.queue_capacity = queue_capacity
        self._chunk = chunk
        self._prefill_budget = prefill_budget
        self._waiting: deque[Sequence] = deque()
        self._prefilled_since_decode = 0

    @property
    def queue_depth(self) -> int:
        """Sequences that wait for a slot."""
        return len(self._waiting)

    def enqueue(self, sequence: Sequence) -> None:
        """Take a sequence in.

        Raises:
            QueueFull: as many wait already as may.
        """
        if len(self._waiting) - self.slots.num_free >= self.queue_capacity:
            raise QueueFull
        self._waiting.append(sequence)

    def next_step(self) -> Step | None:
        """What the device shall do now; None when there is nothing to do."""
        self._fill_slots()
        prefilling = [s for s in self.slots if s.state is State.PREFILLING]
        decoding = [s for s in self.slots if s.state is State.DECODING]
        if prefilling and not (decoding and self._prefilled_since_decode >= self._prefill_budget):
            return self._prefill(prefilling)
        self._prefilled_since_decode = 0
        return Decode(tuple(_row(s) for s in decoding)) if decoding else None

    def advance(self, step: Step, tokens: tuple[Token, ...]) -> None:
        """Take a step's result in; `tokens` are one per sequence, none after an inner chunk.

        Sequences that were aborted while the step ran are passed by.
        """
        if isinstance(step, Prefill):
            self._advance_prompt(step)
        if not tokens:
            return
        for sequence, token in zip(step.sequences, tokens, strict=True):
            if sequence.is_live:
                sequence.accept(token)
                self._release_if_finished(sequence)

    def abort(self, sequence: Sequence) -> None:
        """Drop a sequence wherever it is; harmless if it ended already.

        Its slot is free at once: device calls run in order, so the next owner's
        prompt is written after a step that may still be under way.
        """
        if sequence.state is State.WAITING:
            self._waiting.remove(sequence)
        self._finish(sequence)

    def _fill_slots(self) -> None:
        while self._waiting and self.slots.can_allocate:
            sequence = self._waiting.popleft()
            self.slots.allocate(sequence)
            sequence.state = State.PREFILLING

    def _prefill(self, prefilling: list[Sequence]) -> Prefill:
        overdue = [s for s in prefilling if s.passed_over >= MAX_PASSED_OVER]
        chosen = min(overdue or prefilling, key=lambda s: -s.passed_over if overdue else s.remaining_prompt)
        for other in prefilling:
            other.passed_over += other is not chosen
        chosen.passed_over = 0
        end = min(chosen.prefilled + self._chunk, len(chosen.request.prompt))
        self._prefilled_since_decode += end - chosen.prefilled
        return Prefill(chosen, _slot(chosen), chosen.prefilled, end)

    def _advance_prompt(self, step: Prefill) -> None:
        sequence = step.sequence
        if not sequence.is_live:
            return
        sequence.prefilled = step.end
        if not step.is_last:
            return
        sequence.state = State.DECODING
        if sequence.request.max_tokens == 0:
            sequence.finish_reason = "length"
            self._release_if_finished(sequence)

    def _release_if_finished(self, sequence: Sequence) -> None:
        if sequence.finish_reason is not None:
            self._finish(sequence)

    def _finish(self, sequence: Sequence) -> None:
        sequence.state = State.FINISHED
        self.slots.release(sequence)


def _row(sequence: Sequence) -> Row:
    return Row(sequence, _slot(sequence), sequence.output[-1].id, sequence.next_position)


def _slot(sequence: Sequence) -> int:
    assert sequence.slot is not None
    return sequence.slot
