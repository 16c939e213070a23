"""What is compared, and what each comparison should come to.

Rounds alternate between the sides, each with prompts of its own that nobody has seen,
and the quickest round of a side counts: noise of a shared machine only ever adds.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from statistics import median
from typing import Any, Literal

from app.bench.sides import Batch, Ours, Side, note
from app.bench.summary import number, table
from app.bench.workload import Prompt

# A short prompt comes while a long one is being read, at several moments of that.
SHORT, LONG = 16, 512
STAGGER_S = (0.005, 0.02, 0.04)


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of a report.

    Attributes:
        figure: What counts: a ratio, steps, or milliseconds.
        target: None where there is none.
        bound: Whether the figure should be at least or at most the target.
    """

    scenario: str
    case: str
    ours: float
    other: float
    unit: str
    figure: float
    target: float | None = None
    bound: Literal["at least", "at most"] = "at least"

    @property
    def verdict(self) -> str:
        """Of the target, where there is one."""
        if self.target is None:
            return ""
        is_met = self.figure >= self.target if self.bound == "at least" else self.figure <= self.target
        return "met" if is_met else "missed"

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return asdict(self) | {"verdict": self.verdict}


@dataclass(frozen=True, slots=True)
class Against:
    """A peer, which of our sides it is held against, and the ratio that should come of it, by concurrency."""

    ours: Ours
    peer: Side
    targets: dict[int, float]


def report(findings: Sequence[Finding]) -> str:
    """All of it as a table."""
    signs = {"at least": ">=", "at most": "<="}
    rows = [
        (
            f"{f.scenario}: {f.case}",
            number(f.ours),
            number(f.other),
            f.unit,
            number(f.figure, 2),
            "" if f.target is None else f"{signs[f.bound]} {f.target:g}",
            f.verdict,
        )
        for f in findings
    ]
    return table(("scenario", "ours", "other", "unit", "figure", "target", ""), rows)


def throughput(pairs: Sequence[Against], concurrency: int, draw: Iterator[Prompt], rounds: int) -> Iterator[Finding]:
    """Output tokens a second of so many requests at once."""
    sides = list({id(side): side for pair in pairs for side in (pair.ours, pair.peer)}.values())
    for side in sides:  # what is done once: connections, threads, compilations
        side.run([*islice(draw, concurrency)])
    best = quickest(sides, lambda: [*islice(draw, concurrency)], rounds, lambda side, batch: side.run(batch))
    for pair in pairs:
        ours, theirs = best[pair.ours.name], best[pair.peer.name]
        case = f"{concurrency} x {pair.ours.name} / {pair.peer.name}"
        ratio = theirs.seconds / ours.seconds
        target = pair.targets.get(concurrency)
        yield Finding("throughput", case, ours.tokens_per_s, theirs.tokens_per_s, "tokens/s", ratio, target)


def mixed_lengths(
    ours: Ours, peers: Sequence[Side], draw: Callable[[], list[Prompt]], batch: int, rounds: int
) -> Iterator[Finding]:
    """All requests at once against batches that end with their longest answer."""

    def run(side: Side, requests: list[Prompt]) -> Batch:
        return static_batches(side, requests, batch)

    at_once = quickest([ours], draw, rounds, lambda side, requests: side.run(requests))[ours.name]
    for name, other in quickest([ours, *peers], draw, rounds, run).items():
        ratio = at_once.tokens_per_s / other.tokens_per_s
        case = f"{len(at_once.tokens)} / static {batch} {name}"
        yield Finding("mixed lengths", case, at_once.tokens_per_s, other.tokens_per_s, "tokens/s", ratio, 3.0)


def static_batches(side: Side, requests: Sequence[Prompt], size: int) -> Batch:
    """One batch after the other, in order."""
    parts = [side.run(requests[at : at + size]) for at in range(0, len(requests), size)]
    return Batch(sum(part.seconds for part in parts), [row for part in parts for row in part.tokens])


def first_token(ours: Ours, draw_of: Callable[[int, int], Prompt], rounds: int) -> Iterator[Finding]:
    """How much later the first token of a short prompt comes while a long one is being read, in decode steps."""
    step_s = min(ours.step_s(draw_of(SHORT, 64)) for _ in range(2))
    idle_s, busy_s = [], []
    for number_ in range(rounds * len(STAGGER_S)):
        idle_s.append(ours.first_token_s(draw_of(SHORT, 2)))
        after_s = STAGGER_S[number_ % len(STAGGER_S)]
        busy_s.append(ours.first_token_s(draw_of(SHORT, 2), draw_of(LONG, 2), after_s))
    idle_ms, busy_ms = median(idle_s) * 1e3, median(busy_s) * 1e3
    steps = (busy_ms - idle_ms) / (step_s * 1e3)
    case = f"{SHORT} tokens while {LONG} are read / idle (steps of {step_s * 1e3:.1f} ms)"
    yield Finding("first token", case, busy_ms, idle_ms, "ms", steps, 2.0, "at most")


def agreement(pairs: Sequence[Against], draw: Iterator[Prompt]) -> Iterator[Finding]:
    """The share of greedy tokens that are the same; a peer of less precision need not agree."""
    batch = [*islice(draw, 2)]
    for pair in pairs:
        mine, theirs = (side.run(batch, exact=True).tokens for side in (pair.ours, pair.peer))
        total = sum(map(len, mine))
        equal = sum(a == b for rows in zip(mine, theirs, strict=True) for a, b in zip(*rows, strict=True))
        case = f"{pair.ours.name} / {pair.peer.name}"
        yield Finding("equal tokens", case, total, equal, "tokens", equal / total)


def quickest(
    sides: Sequence[Side],
    draw: Callable[[], list[Prompt]],
    rounds: int,
    run: Callable[[Side, list[Prompt]], Batch],
) -> dict[str, Batch]:
    """By side, the best of alternating rounds; within a round all get the same prompts."""
    best: dict[str, Batch] = {}
    for round_ in range(rounds):
        batch = draw()
        for side in sides[:: 1 if round_ % 2 == 0 else -1]:
            result = run(side, batch)
            note(f"round {round_ + 1}: {len(batch)} requests, {side.name}: {result.tokens_per_s:,.1f} tokens/s")
            if side.name not in best or result.tokens_per_s > best[side.name].tokens_per_s:
                best[side.name] = result
    return best
