"""Sides of a comparison that are as fast, and as right, as a test says."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from app.bench.sides import Batch, PeerFailed
from app.bench.workload import Prompt


@dataclass
class FakeSide:
    """Every token takes a time; tokens are those of the prompt again and again, or ones more."""

    name: str
    token_s: float = 0.01
    wrong: int = 0
    fails_at: int | None = None
    warms_up: bool = True
    batches: list[list[Prompt]] = field(default_factory=list)

    def run(self, prompts: Sequence[Prompt], *, exact: bool = False) -> Batch:
        self.batches.append([*prompts])
        if self.fails_at is not None and len(self.batches) > self.fails_at:
            raise PeerFailed(f"{self.name} ended")
        tokens = [[p.tokens[i % len(p.tokens)] + self.wrong for i in range(p.max_tokens)] for p in prompts]
        longest = max(prompt.max_tokens for prompt in prompts)
        return Batch(longest * self.token_s, tokens)

    def latency_s(self, prompt: Prompt) -> float:
        return 0.1 + prompt.max_tokens * self.token_s

    def first_token_s(self, prompt: Prompt, other: Prompt | None = None, after_s: float = 0.0) -> float:
        return 0.1 + (3 * self.token_s if other else 0.0)

    def close(self) -> None:
        """Nothing is open."""
