"""What is measured of generation, and what each comparison should come to.

Rounds alternate between the sides, each with prompts of its own that nobody has seen,
and the quickest round of a side counts: noise of a shared machine only ever adds.
A peer that fails is left out from then on; the others go on.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from statistics import median
from typing import Protocol

from app.bench.finding import Finding
from app.bench.progress import note
from app.bench.sides import Batch, Ours, PeerFailed, Side
from app.bench.workload import Prompt

# A short prompt comes while a long one is being read, at several moments of that.
SHORT, LONG = 16, 512
STAGGER_S = (0.005, 0.02, 0.04)
# A decode step is the difference of two answers of one prompt's length: whatever the way costs is in both.
FEW_TOKENS, MANY_TOKENS = 2, 66
WARM_UP_TOKENS = 8

Outcome = Batch | PeerFailed


class Run(Protocol):
    """How a side is asked for a batch."""

    def __call__(self, side: Side, batch: list[Prompt]) -> Batch:
        """Ask it."""
        ...


def _at_once(side: Side, batch: list[Prompt]) -> Batch:
    return side.run(batch)


@dataclass(frozen=True, slots=True)
class Rounds:
    """How often a case is measured: no further round begins after so many seconds, and there is always one."""

    number: int = 3
    seconds: float = 60.0

    def __iter__(self) -> Iterator[int]:
        started = time.perf_counter()
        for round_ in range(self.number):
            if round_ and time.perf_counter() - started >= self.seconds:
                return
            yield round_


@dataclass(frozen=True, slots=True)
class Against:
    """A peer, which of our sides it is held against, and what should come of it.

    Attributes:
        targets: Ratio of throughput by concurrency.
        is_exact: It computes as precisely as we do, so its greedy tokens are ours.
    """

    ours: Side
    peer: Side
    targets: Mapping[int, float]
    is_exact: bool = True


def agreement(pairs: Sequence[Against], draw: Iterator[Prompt]) -> Iterator[Finding]:
    """The share of greedy tokens that are the same; a peer of less precision need not agree."""
    batch = [*islice(draw, 2)]
    mine: dict[str, list[list[int]]] = {}
    for pair in pairs:
        case = against(pair.ours.name, pair.peer.name)
        if pair.ours.name not in mine:
            mine[pair.ours.name] = pair.ours.run(batch, exact=True).tokens
        try:
            theirs = pair.peer.run(batch, exact=True).tokens
        except PeerFailed as failure:
            yield Finding.failed("agreement", case, failure)
            continue
        rows = zip(mine[pair.ours.name], theirs, strict=True)
        equal = sum(a == b for row in rows for a, b in zip(*row, strict=True))
        total = sum(map(len, theirs))
        target = 1.0 if pair.is_exact else None
        yield Finding("agreement", case, equal, total, "equal tokens", equal / total, target)


def throughput(pairs: Sequence[Against], concurrency: int, draw: Iterator[Prompt], rounds: Rounds) -> Iterator[Finding]:
    """Output tokens a second of so many requests at once."""
    best = quickest(_sides(pairs), lambda: [*islice(draw, concurrency)], rounds)
    for pair in pairs:
        yield _ratio("throughput", concurrent(concurrency, pair.ours.name, pair.peer.name), best, pair, concurrency)


def mixed_lengths(
    pairs: Sequence[Against], draw: Callable[[], list[Prompt]], size: int, rounds: Rounds
) -> Iterator[Finding]:
    """All requests at once of ours against the peer's batches, each of which ends with its longest answer."""
    at_once = {pair.ours.name for pair in pairs}

    def run(side: Side, batch: list[Prompt]) -> Batch:
        return side.run(batch) if side.name in at_once else static_batches(side, batch, size)

    best = quickest(_sides(pairs), draw, rounds, run)
    for pair in pairs:
        yield _ratio("mixed", static(size, pair.ours.name, pair.peer.name), best, pair, size)


def static_batches(side: Side, requests: Sequence[Prompt], size: int) -> Batch:
    """One batch after the other, in order."""
    parts = [side.run(requests[at : at + size]) for at in range(0, len(requests), size)]
    return Batch(sum(part.seconds for part in parts), [row for part in parts for row in part.tokens])


@dataclass(frozen=True, slots=True)
class InBatches:
    """One of our sides again, asked as one would ask a server that batches by hand."""

    name: str
    side: Side
    warms_up: bool = False

    def run(self, prompts: Sequence[Prompt], *, exact: bool = False) -> Batch:
        """One batch."""
        return self.side.run(prompts, exact=exact)


def first_token(ours: Ours, draw_of: Callable[[int, int], Prompt], rounds: Rounds) -> Iterator[Finding]:
    """How much later the first token of a short prompt comes while a long one is being read, in decode steps."""
    few_s, many_s = (
        min(ours.latency_s(draw_of(SHORT, tokens)) for _ in range(3)) for tokens in (FEW_TOKENS, MANY_TOKENS)
    )
    step_ms = (many_s - few_s) * 1e3 / (MANY_TOKENS - FEW_TOKENS)
    idle_s, busy_s = [], []
    for _ in rounds:
        for after_s in STAGGER_S:
            idle_s.append(ours.first_token_s(draw_of(SHORT, FEW_TOKENS)))
            busy_s.append(ours.first_token_s(draw_of(SHORT, FEW_TOKENS), draw_of(LONG, FEW_TOKENS), after_s))
    idle_ms, busy_ms = median(idle_s) * 1e3, median(busy_s) * 1e3
    note(f"first token: {idle_ms:.1f} ms idle, {busy_ms:.1f} ms busy, steps of {step_ms:.2f} ms")
    yield Finding("first-token", LATER, busy_ms, idle_ms, "ms", (busy_ms - idle_ms) / step_ms, 2.0, "at most")


LATER = f"{SHORT} tokens while {LONG} are read / idle, in decode steps"


def against(ours: str, peer: str) -> str:
    """Name of a case."""
    return f"{ours} / {peer}"


def concurrent(concurrency: int, ours: str, peer: str) -> str:
    """Name of a case of so many requests at once."""
    return f"{concurrency} x {against(ours, peer)}"


def static(size: int, ours: str, peer: str) -> str:
    """Name of a case of batches of so many rows."""
    return f"{ours} at once / {peer}, static {size}"


def quickest(
    sides: Sequence[Side],
    draw: Callable[[], list[Prompt]],
    rounds: Rounds,
    run: Run = _at_once,
) -> dict[str, Outcome]:
    """By side, the best of alternating rounds, or why there is none; within a round all get the same prompts."""
    best: dict[str, Outcome] = {}
    warm_up = [replace(prompt, max_tokens=min(WARM_UP_TOKENS, prompt.max_tokens)) for prompt in draw()]
    for side in sides:  # what is done once: connections, threads, memory
        if side.warms_up:
            _attempt(best, side, partial(run, batch=warm_up), counts=False)
    for round_ in rounds:
        batch = draw()
        for side in sides[:: 1 if round_ % 2 == 0 else -1]:
            if not isinstance(best.get(side.name), PeerFailed):
                _attempt(best, side, partial(run, batch=batch), counts=True)
    return best


def _attempt(best: dict[str, Outcome], side: Side, run: Callable[[Side], Batch], *, counts: bool) -> None:
    try:
        result = run(side)
    except PeerFailed as failure:
        note(f"{side.name} failed: {failure}")
        best[side.name] = failure
        return
    if not counts:
        return
    note(f"{len(result.tokens)} requests, {side.name}: {result.tokens_per_s:,.1f} tokens/s")
    known = best.get(side.name)
    if not isinstance(known, Batch) or result.tokens_per_s > known.tokens_per_s:
        best[side.name] = result


def _sides(pairs: Sequence[Against]) -> list[Side]:
    """Each once, ours first."""
    return [*{side.name: side for side in (*(pair.ours for pair in pairs), *(pair.peer for pair in pairs))}.values()]


def _ratio(scenario: str, case: str, best: Mapping[str, Outcome], pair: Against, concurrency: int) -> Finding:
    ours, theirs = best[pair.ours.name], best[pair.peer.name]
    for outcome in (ours, theirs):
        if isinstance(outcome, PeerFailed):
            return Finding.failed(scenario, case, outcome)
    assert isinstance(ours, Batch)
    assert isinstance(theirs, Batch)
    ratio = ours.tokens_per_s / theirs.tokens_per_s
    return Finding(
        scenario, case, ours.tokens_per_s, theirs.tokens_per_s, "tokens/s", ratio, pair.targets.get(concurrency)
    )
