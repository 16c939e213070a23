"""Which device call comes next: parts of some prompts, or tokens for everybody.

First come, first served into the slots; among those whose prompt is being read,
the shortest rest goes first, so that a long prompt delays nobody else's first
token by more than a part, and none is passed over for ever. A part is as long as a
call takes while several prompts wait, since the sum of their delays counts then, and
where it is the whole rest; one of several parts of a lone prompt is shorter, for the
sake of who comes next. Where the bits depend on it, calls take no more than a chunk,
and parts end at fixed multiples of it whatever the load. Parts of up to a chunk and of
equal length go together. After `prefill_budget` prompt tokens every decoding row gets
its token.

A decode call covers the first slots only, as many as are needed: where sequences
that ended left gaps, those behind move up. It takes several steps at once while
nobody waits and no row's next token is decided on the host.

It does not look at clocks, tensors or callers; a deadline reaches it as `abort`, and
what a step costs as `max_steps`.
"""

from collections import deque
from dataclasses import dataclass

from app.engine.prefixes import Prefixes
from app.engine.sequence import Sequence, State, Token
from app.engine.shapes import Shapes
from app.engine.slots import Slots

# A prompt goes next after this many parts of others went first.
MAX_PASSED_OVER = 4
# Decode steps of a call, at most.
MOST_STEPS = 8


@dataclass(frozen=True, slots=True)
class Part:
    """Read `prompt[start:end]` of a sequence into its slot; sample if that is its end.

    Attributes:
        kept: places of the prefix cache that are filled afterwards, with the prompt's
            blocks from number `first_kept` on.
    """

    sequence: Sequence
    slot: int
    start: int
    end: int
    first_kept: int = 0
    kept: tuple[int, ...] = ()

    @property
    def is_last(self) -> bool:
        """Whether the prompt ends here, so that a token is sampled."""
        return self.end == len(self.sequence.request.prompt)


@dataclass(frozen=True, slots=True)
class Restore:
    """Copy the beginning of a sequence's prompt, `end` tokens, from these places of the prefix cache to its slot."""

    sequence: Sequence
    slot: int
    places: tuple[int, ...]
    end: int

    @property
    def sequences(self) -> tuple[Sequence, ...]:
        """Who takes part."""
        return (self.sequence,)


@dataclass(frozen=True, slots=True)
class Prefill:
    """Read these parts, of different sequences and of one padded length."""

    parts: tuple[Part, ...]

    @property
    def sequences(self) -> tuple[Sequence, ...]:
        """Who takes part."""
        return tuple(part.sequence for part in self.parts)


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
    """Sample `num_steps` more tokens for each of these rows.

    Attributes:
        moves: slots whose keys and values go to other ones first, each as (from, to).
    """

    rows: tuple[Row, ...]
    num_steps: int = 1
    moves: tuple[tuple[int, int], ...] = ()

    @property
    def sequences(self) -> tuple[Sequence, ...]:
        """Who takes part."""
        return tuple(row.sequence for row in self.rows)


Step = Restore | Prefill | Decode


class Scheduler:
    """The queue, the slots and the order of steps of one model.

    Args:
        shapes: of the runner's calls.
        queue_capacity: sequences that may wait for a slot.
        prefill_budget: prompt tokens read between two decode steps.
    """

    def __init__(self, shapes: Shapes, queue_capacity: int, prefill_budget: int = 512) -> None:
        self.slots = Slots(shapes.num_slots)
        self.queue_capacity = queue_capacity
        self.prefixes = Prefixes(shapes.num_blocks, shapes.chunk)
        self.cached_tokens = 0
        self._shapes = shapes
        self._prefill_budget = prefill_budget
        self._waiting: deque[Sequence] = deque()
        self._prefilled_since_decode = 0

    @property
    def queue_depth(self) -> int:
        """Sequences that wait for a slot."""
        return len(self._waiting)

    @property
    def can_enqueue(self) -> bool:
        """Whether one more may wait, or has a slot."""
        return len(self._waiting) - self.slots.num_free < self.queue_capacity

    def enqueue(self, sequence: Sequence) -> None:
        """Take a sequence in; the caller has asked `can_enqueue`."""
        assert self.can_enqueue
        self._waiting.append(sequence)

    def next_step(self, max_steps: int = 1) -> Step | None:
        """What the device shall do now; None when there is nothing to do.

        Args:
            max_steps: decode steps that a call may take at most.
        """
        self._fill_slots()
        prefilling = [s for s in self.slots if s.state is State.PREFILLING]
        decoding = [s for s in self.slots if s.state is State.DECODING]
        if prefilling and not (decoding and self._prefilled_since_decode >= self._prefill_budget):
            return self._prefill(prefilling)
        self._prefilled_since_decode = 0
        if not decoding:
            return None
        is_alone = not prefilling and not self._waiting
        return self._decode(decoding, max_steps if is_alone else 1)

    def advance(self, step: Step, tokens: tuple[tuple[Token, ...], ...]) -> None:
        """Take a step's result in; `tokens` has an entry for each sequence, empty after an inner part.

        Sequences that were aborted while the step ran are passed by, and so is what was
        sampled after a sequence's end.
        """
        if isinstance(step, Restore):
            step.sequence.prefilled = step.sequence.cached_tokens = step.end
            self.cached_tokens += step.end
        if isinstance(step, Prefill):
            for part in step.parts:
                self._advance_prompt(part)
        for sequence, new in zip(step.sequences, tokens, strict=True):
            for token in new:
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

    def fail(self, step: Step) -> None:
        """Drop everybody who took part in a step that failed, and what it may have left in the prefix cache."""
        for sequence in step.sequences:
            self.abort(sequence)
        self.prefixes.clear()

    def _fill_slots(self) -> None:
        while self._waiting and self.slots.can_allocate:
            sequence = self._waiting.popleft()
            self.slots.allocate(sequence)
            sequence.state = State.PREFILLING

    def _prefill(self, prefilling: list[Sequence]) -> Restore | Prefill:
        overdue = [s for s in prefilling if s.passed_over >= MAX_PASSED_OVER]
        first = min(overdue or prefilling, key=lambda s: -s.passed_over if overdue else s.remaining_prompt)
        is_alone = len(prefilling) == 1 and not self._waiting
        size = self._part_size(first, is_alone=is_alone)
        mates = [s for s in prefilling if s is not first and self._may_go_with(first, s, size)]
        mates.sort(key=lambda s: (-s.passed_over, s.remaining_prompt))
        chosen = [first, *mates][: self._shapes.num_parts(1 + len(mates))]
        restore = next(filter(None, map(self._look_up, chosen)), None)
        if restore is not None:
            return restore
        for other in prefilling:
            other.passed_over = 0 if other in chosen else other.passed_over + 1
        parts = tuple(self._part(sequence, size) for sequence in chosen)
        self._prefilled_since_decode += sum(part.end - part.start for part in parts)
        return Prefill(parts)

    def _look_up(self, sequence: Sequence) -> Restore | None:
        """What the prefix cache knows of a prompt; asked once, when its turn has come."""
        request = sequence.request
        if sequence.is_looked_up or not request.may_use_cache:
            return None
        sequence.is_looked_up = True
        places = self.prefixes.match(request.cache_salt, request.prompt)
        if not places:
            return None
        return Restore(sequence, _slot(sequence), places, len(places) * self._shapes.chunk)

    def _part_size(self, sequence: Sequence, *, is_alone: bool) -> int:
        """Tokens that are read of a prompt next, padded."""
        shapes, rest = self._shapes, sequence.remaining_prompt
        if sequence.request.prompt_logprobs:
            return shapes.length_bucket(min(rest, shapes.chunk))
        if is_alone and rest > shapes.longest:
            return shapes.longest_alone
        return shapes.part_length(rest)

    def _may_go_with(self, first: Sequence, other: Sequence, size: int) -> bool:
        """Whether their parts have one padded length, up to a chunk, and neither is scored, which is done alone."""
        is_scored = first.request.prompt_logprobs or other.request.prompt_logprobs
        return not is_scored and size <= self._shapes.chunk and size == self._part_size(other, is_alone=False)

    def _part(self, sequence: Sequence, size: int) -> Part:
        request = sequence.request
        end = min(sequence.prefilled + size, len(request.prompt))
        first_kept, kept = 0, tuple[int, ...]()
        if end == len(request.prompt) and request.may_use_cache:
            first_kept, kept = self.prefixes.keep(request.cache_salt, request.prompt)
        return Part(sequence, _slot(sequence), sequence.prefilled, end, first_kept, kept)

    def _decode(self, decoding: list[Sequence], max_steps: int) -> Decode:
        moves = self._close_gaps(decoding)
        if any(s.request.needs_host for s in decoding):
            max_steps = 1
        num_steps = max(1, min(max_steps, MOST_STEPS, max(s.remaining_output for s in decoding)))
        return Decode(tuple(_row(s) for s in decoding), num_steps, moves)

    def _close_gaps(self, decoding: list[Sequence]) -> tuple[tuple[int, int], ...]:
        """Move rows from behind into gaps where that makes the call smaller."""
        size = self._shapes.row_bucket(len(decoding))
        behind = [s for s in decoding if _slot(s) >= size]
        gaps = self.slots.free_below(size)
        if len(gaps) < len(behind):
            return ()
        moves = []
        for sequence, gap in zip(behind, gaps, strict=False):
            moves.append((_slot(sequence), gap))
            self.slots.move(sequence, gap)
        return tuple(moves)

    def _advance_prompt(self, part: Part) -> None:
        sequence = part.sequence
        if not sequence.is_live:
            return
        sequence.prefilled = part.end
        if not part.is_last:
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
