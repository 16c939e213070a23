"""The report of `tollgate bench serve`: one table to read, one object for programs."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from app.bench.load import Measured
from app.bench.summary import PERCENTILES, Summary, number, table

MS = 1e3


@dataclass(frozen=True, slots=True)
class ServeReport:
    """Sums of one load; latencies in milliseconds, of answers that succeeded."""

    num_requests: int
    num_ok: int
    errors: dict[str, int]
    wall_s: float
    client_cpu_s: float
    input_tokens: int
    output_tokens: int
    first_token_ms: Summary
    inter_token_ms: Summary
    per_token_ms: Summary
    latency_ms: Summary

    @classmethod
    def of(cls, measured: Measured) -> "ServeReport":
        """Sum up."""
        good = [answer for answer in measured.answers if not answer.error]
        return cls(
            num_requests=len(measured.answers),
            num_ok=len(good),
            errors=dict(Counter(answer.error for answer in measured.answers if answer.error)),
            wall_s=measured.wall_s,
            client_cpu_s=measured.client_cpu_s,
            input_tokens=sum(answer.input_tokens for answer in good),
            output_tokens=sum(answer.output_tokens for answer in good),
            first_token_ms=Summary.of(a.first_s * MS for a in good if a.first_s is not None),
            inter_token_ms=Summary.of(gap * MS for answer in good for gap in answer.gaps_s),
            per_token_ms=Summary.of(a.per_token_s * MS for a in good if a.per_token_s is not None),
            latency_ms=Summary.of(answer.latency_s * MS for answer in good),
        )

    @property
    def requests_per_s(self) -> float:
        """Of answers that succeeded."""
        return self.num_ok / self.wall_s if self.wall_s else 0.0

    @property
    def output_tokens_per_s(self) -> float:
        """Over all callers together."""
        return self.output_tokens / self.wall_s if self.wall_s else 0.0

    @property
    def total_tokens_per_s(self) -> float:
        """Prompts and answers."""
        return (self.input_tokens + self.output_tokens) / self.wall_s if self.wall_s else 0.0

    @property
    def latencies(self) -> dict[str, Summary]:
        """By what is measured."""
        return {
            "time to first token": self.first_token_ms,
            "inter-token latency": self.inter_token_ms,
            "time per output token": self.per_token_ms,
            "end-to-end latency": self.latency_ms,
        }

    def as_json(self) -> dict[str, Any]:
        """For programs; milliseconds."""
        return {
            "requests": self.num_requests,
            "succeeded": self.num_ok,
            "errors": self.errors,
            "wall_s": round(self.wall_s, 3),
            "client_cpu_s": round(self.client_cpu_s, 3),
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "requests_per_s": round(self.requests_per_s, 3),
            "output_tokens_per_s": round(self.output_tokens_per_s, 3),
            "total_tokens_per_s": round(self.total_tokens_per_s, 3),
            **{name.replace(" ", "_").replace("-", "_") + "_ms": s.as_json() for name, s in self.latencies.items()},
        }

    def as_text(self) -> str:
        """For people."""
        share = self.client_cpu_s / self.wall_s if self.wall_s else 0.0
        lines = [
            f"{self.num_ok} of {self.num_requests} requests in {self.wall_s:.2f} s:"
            f" {self.requests_per_s:.2f} requests/s, {self.output_tokens_per_s:,.1f} output tokens/s,"
            f" {self.total_tokens_per_s:,.1f} tokens/s in all",
            f"load generator: {self.client_cpu_s:.2f} s of processor time ({share:.0%} of one core)",
            "",
            table(
                ("ms", "mean", *(f"p{rank}" for rank in PERCENTILES), "max"),
                [
                    (name, *(number(v, 2) for v in (s.mean, s.p50, s.p90, s.p95, s.p99, s.max)))
                    for name, s in self.latencies.items()
                ],
            ),
        ]
        lines += [f"ERROR x{count}: {code}" for code, count in sorted(self.errors.items())]
        return "\n".join(lines)
