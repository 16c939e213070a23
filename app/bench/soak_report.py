"""The report of `tollgate bench soak`: what was done, what is left of it, and whether that is nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import linear_regression
from typing import Any

from app.bench.summary import Summary, number, table

OUTCOMES = ("complete", "refused", "left", "late", "failed")
# The first part of a run fills caches and pools; memory is judged after it.
WARM_UP_SHARE = 0.25
# Growth that is no leak over the judged part: an allocator's play, as a share and at least in MiB.
PLAY_SHARE, PLAY_MIB = 0.05, 16.0
LEAST_SAMPLES = 4


@dataclass(frozen=True, slots=True)
class Book:
    """Requests and tokens of one model."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0

    def __add__(self, other: "Book") -> "Book":
        return Book(
            self.requests + other.requests,
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
        )

    def __sub__(self, other: "Book") -> "Book":
        return self + Book(-other.requests, -other.input_tokens, -other.output_tokens)


Books = dict[str, Book]


@dataclass(frozen=True, slots=True)
class ModelState:
    """As the engine describes it after the load."""

    name: str
    num_slots: int
    free_slots: int
    queue_depth: int
    compilations: int
    state: str

    @property
    def is_idle(self) -> bool:
        """Whether it holds nothing of any request."""
        return self.free_slots == self.num_slots and not self.queue_depth


@dataclass(frozen=True, slots=True)
class Memory:
    """Of one role, MiB; the slope is that of a line through all samples after the warm-up.

    Attributes:
        growth: What the line gained over the judged part.
    """

    first: float
    last: float
    per_minute: float
    growth: float

    @classmethod
    def of(cls, samples: Sequence[tuple[float, Mapping[str, float]]], role: str) -> "Memory":
        """From samples at seconds; a role that is not there yet has none."""
        points = [(at_s, by_role[role]) for at_s, by_role in samples if role in by_role]
        judged = [point for point in points if point[0] >= WARM_UP_SHARE * points[-1][0]]
        if len(judged) < LEAST_SAMPLES:
            return cls(points[0][1], points[-1][1], 0.0, 0.0)
        slope, _ = linear_regression(*zip(*judged, strict=True))
        return cls(judged[0][1], judged[-1][1], slope * 60, slope * (judged[-1][0] - judged[0][0]))

    @property
    def is_level(self) -> bool:
        """Whether nothing leaked."""
        return self.growth <= max(PLAY_MIB, PLAY_SHARE * self.first)


@dataclass(frozen=True, slots=True)
class SoakReport:
    """Everything of one soak.

    Attributes:
        outcomes: Requests by sort and outcome.
        counted: What callers of the exact organisation added up, by model.
        billed: What its ledger says.
        num_halfway: Requests of the other organisation, whose answers may be incomplete.
        num_halfway_billed: Rows of its ledger: at most one a request.
    """

    wall_s: float
    outcomes: dict[tuple[str, str], int]
    latencies_s: dict[str, list[float]]
    failures: dict[str, int]
    models: list[ModelState]
    memory: dict[str, Memory]
    counted: Books
    billed: Books
    num_halfway: int
    num_halfway_billed: int

    @property
    def problems(self) -> list[str]:
        """Everything that should not be; nothing where all is well."""
        found = [f"x{count} {failure}" for failure, count in sorted(self.failures.items())]
        found += ["the engine says nothing of its models"] if not self.models else []
        for model in self.models:
            if not model.is_idle:
                found.append(
                    f"{model.name}: {model.free_slots} of {model.num_slots} slots free, {model.queue_depth} wait"
                )
            if model.compilations or model.state != "ready":
                found.append(f"{model.name}: {model.state}, {model.compilations} compilations after the warm-up")
        found += [
            f"{role}: memory grew by {memory.growth:.1f} MiB, {memory.per_minute:.2f} a minute"
            for role, memory in self.memory.items()
            if not memory.is_level
        ]
        found += [
            f"{model}: counted {self.counted.get(model)}, billed {self.billed.get(model)}"
            for model in sorted(self.counted.keys() | self.billed.keys())
            if self.counted.get(model) != self.billed.get(model)
        ]
        if self.num_halfway_billed > self.num_halfway:
            found.append(f"{self.num_halfway_billed} rows for {self.num_halfway} requests that ended half-way")
        return found if self.counted else [*found, "no answer was complete"]

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "ok": not self.problems,
            "problems": self.problems,
            "wall_s": round(self.wall_s, 1),
            "requests": {sort: self._by_outcome(sort) for sort in self._sorts},
            "latency_ms": {sort: self._latency(sort).as_json() for sort in self._sorts},
            "models": [asdict(model) for model in self.models],
            "memory_mib": {role: asdict(memory) for role, memory in self.memory.items()},
            "counted": {model: asdict(book) for model, book in self.counted.items()},
            "billed": {model: asdict(book) for model, book in self.billed.items()},
            "halfway": {"requests": self.num_halfway, "billed": self.num_halfway_billed},
        }

    def as_text(self) -> str:
        """For people."""
        total, output = sum(self.outcomes.values()), sum(book.output_tokens for book in self.counted.values())
        rates = f"{total / self.wall_s:.1f} requests/s, {output / self.wall_s:,.1f} output tokens/s"
        return "\n\n".join(
            (
                f"{total:,} requests in {self.wall_s:,.0f} s: {rates}",
                self._requests_table(),
                table(
                    ("model", "slots", "free", "waiting", "compilations", "counted", "billed", ""),
                    [self._model_row(model) for model in self.models],
                ),
                f"half-way: {self.num_halfway:,} requests, {self.num_halfway_billed:,} of them billed",
                table(
                    ("memory, MiB", "first", "last", "a minute", ""),
                    [
                        (
                            role,
                            number(m.first),
                            number(m.last),
                            number(m.per_minute, 2),
                            "level" if m.is_level else "GREW",
                        )
                        for role, m in self.memory.items()
                    ],
                ),
                "\n".join(f"PROBLEM {problem}" for problem in self.problems) or "ok",
            )
        )

    @property
    def _sorts(self) -> list[str]:
        return sorted({sort for sort, _ in self.outcomes})

    def _by_outcome(self, sort: str) -> dict[str, int]:
        return {outcome: self.outcomes.get((sort, outcome), 0) for outcome in OUTCOMES}

    def _latency(self, sort: str) -> Summary:
        return Summary.of(seconds * 1e3 for seconds in self.latencies_s.get(sort, ()))

    def _requests_table(self) -> str:
        rows = []
        for sort in self._sorts:
            latency = self._latency(sort)
            rows.append((sort, *self._by_outcome(sort).values(), number(latency.p50), number(latency.p99)))
        return table(("requests", *OUTCOMES, "p50 ms", "p99 ms"), rows)

    def _model_row(self, model: ModelState) -> tuple[object, ...]:
        counted, billed = self.counted.get(model.name, Book()), self.billed.get(model.name, Book())
        verdict = "equal" if counted == billed else "DIFFERENT"
        columns = model.num_slots, model.free_slots, model.queue_depth, model.compilations
        return (model.name, *columns, counted.requests, billed.requests, verdict)
