"""The engine alone, in this process: no HTTP, no gRPC, one model on the device.

Drives `GenerationEngine` as a server would and times each call of its runner, so that
what is measured is the step as it is served. A decode call counts where all rows of the
batch are in it; the quickest counts, noise of a shared machine only ever adds.

Letters: `B` rows.
"""

import asyncio
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any, cast

from app.bench import roofline
from app.bench.roofline import Roofline
from app.bench.summary import number, table
from app.bench.workload import Lengths, Prompt, prompts
from app.config import Settings
from app.engine.device import device_name
from app.engine.engine import GenerationEngine
from app.engine.loader import load_model
from app.engine.runner import Result, Runner
from app.engine.scheduler import Prefill, Step
from app.engine.sequence import Request
from app.errors import ConfigError
from app.modeling import checkpoint
from app.modeling.decoder_config import DecoderConfig
from app.modeling.registry import read_card
from app.modeling.tokenizer import read_json

TIMEOUT_S = 3600.0
FLOAT_BYTES = 4


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure.

    Attributes:
        model: A Hugging Face directory.
        prompts: Lengths whose reading is timed, tokens.
        batches: Rows of a decode step.
        contexts: Tokens before the first timed step.
        num_steps: Timed decode steps.
        num_slots: Of the engine; 0: the largest batch.
        weight_bytes: Of one weight as the engine keeps it on the device.
    """

    model: Path
    data_dir: Path
    prompts: tuple[int, ...] = (16, 128, 512)
    batches: tuple[int, ...] = (1, 8, 16, 32)
    contexts: tuple[int, ...] = (128,)
    num_steps: int = 24
    rounds: int = 3
    num_slots: int = 0
    weight_bytes: float = FLOAT_BYTES
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Line:
    """One measured step.

    Attributes:
        tokens: Prompt tokens read, or context before a decode step.
        roofline: Share of what the device allows, 0 to 1.
    """

    phase: str
    batch: int
    tokens: int
    step_ms: float
    tokens_per_s: float
    roofline: float


@dataclass(frozen=True, slots=True)
class EngineReport:
    """Everything of one run."""

    device: str
    num_parameters: int
    num_slots: int
    roofline: Roofline
    warm_up_s: float
    compilations: int
    lines: tuple[Line, ...]

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return asdict(self)

    def as_text(self) -> str:
        """For people."""
        rows = [
            (x.phase, x.batch, x.tokens, number(x.step_ms, 2), number(x.tokens_per_s), f"{x.roofline:.0%}")
            for x in self.lines
        ]
        limits = self.roofline
        return "\n".join(
            (
                f"{self.device}, {self.num_parameters / 1e6:.1f} M parameters, {self.num_slots} slots;"
                f" reads {limits.bytes_per_s / 1e9:.1f} GB/s, computes {limits.operations_per_s / 1e9:.0f} GFLOP/s",
                f"warm-up {self.warm_up_s:.1f} s, {self.compilations} compilations after it",
                "",
                table(("phase", "batch", "tokens", "ms", "tokens/s", "of roofline"), rows),
            )
        )


@dataclass(eq=False)
class TimedRunner:
    """A runner with a clock; what it is asked besides goes through."""

    runner: Runner
    calls: list[tuple[Step, Result, float]] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the runner has
        return getattr(self.runner, name)

    def run(self, step: Step) -> Result:
        """Do one step and note its time."""
        started = time.perf_counter()
        result = self.runner.run(step)
        self.calls.append((step, result, time.perf_counter() - started))
        return result

    def prefill_s(self) -> float:
        """Of all prompt chunks since the start."""
        return sum(seconds for step, _, seconds in self.calls if isinstance(step, Prefill))

    def decode_s(self, batch: int) -> Iterator[float]:
        """Of each decode step of so many rows, a token a row."""
        for step, result, seconds in self.calls:
            if not isinstance(step, Prefill) and len(step.sequences) == batch:
                yield seconds * batch / num_tokens(result.tokens)


def num_tokens(tokens: Sequence[Any]) -> int:
    """Of a result; a call of several steps gives each row a sequence of them."""
    return sum(len(token) if isinstance(token, tuple | list) else 1 for token in tokens)


def measure(plan: Plan) -> EngineReport:
    """Build, warm up, measure.

    Raises:
        ConfigError: The model is not one with keys and values, or the plan does not fit it.
    """
    card, num_slots = read_card(plan.model), plan.num_slots or max(plan.batches)
    config = checkpoint.read_config(read_json(plan.model / "config.json"), plan.model)
    if not isinstance(config, DecoderConfig):
        raise ConfigError(f"{plan.model} is no decoder with keys and values")
    check(plan, config)
    runner = cast("Runner", load_model(Settings(data_dir=plan.data_dir, engine_slots=num_slots), card))
    started = time.perf_counter()
    runner.warm_up()
    warm_up_s = time.perf_counter() - started
    bench = Bench(plan, config, TimedRunner(runner), roofline.measure())
    lines = asyncio.run(bench.run())
    return EngineReport(
        device=device_name(),
        num_parameters=num_parameters(config),
        num_slots=num_slots,
        roofline=bench.limits,
        warm_up_s=warm_up_s,
        compilations=runner.compilations,
        lines=tuple(lines),
    )


def check(plan: Plan, config: DecoderConfig) -> None:
    """Find out before minutes of compiling what could not be measured after them.

    Raises:
        ConfigError: A length, a batch or the slots do not fit.
    """
    lengths = (*plan.prompts, *plan.contexts)
    if min((*lengths, *plan.batches)) < 1:
        raise ConfigError("prompts, contexts and batches are at least 1")
    if max(lengths) >= config.context_length:
        raise ConfigError(f"{max(lengths)} tokens leave no room for an answer in a context of {config.context_length}")
    if 0 < plan.num_slots < max(plan.batches):
        raise ConfigError(f"{max(plan.batches)} rows do not fit into {plan.num_slots} slots")


@dataclass(frozen=True, slots=True)
class Bench:
    """A warm engine and what it is measured by."""

    plan: Plan
    config: DecoderConfig
    timed: TimedRunner
    limits: Roofline

    async def run(self) -> list[Line]:
        """Every line."""
        with ThreadPoolExecutor(1) as device:
            engine = GenerationEngine("bench", cast("Runner", self.timed), device)
            engine.start()
            try:
                lines = [await self.prefill(engine, length) for length in self.plan.prompts]
                for context in self.plan.contexts:
                    lines += [await self.decode(engine, batch, context) for batch in self.plan.batches]
                return lines
            finally:
                await engine.aclose()

    async def prefill(self, engine: GenerationEngine, length: int) -> Line:
        """Reading one prompt, alone."""
        times = []
        for prompt in self._prompts(length, 1, self.plan.rounds):
            self.timed.calls.clear()
            await _generate(engine, prompt)
            times.append(self.timed.prefill_s())
        seconds = min(times)
        least_s = self.limits.least_s(self._weight_bytes, 2 * self._num_products * length)
        return Line("prefill", 1, length, seconds * 1e3, length / seconds, least_s / seconds)

    async def decode(self, engine: GenerationEngine, batch: int, context: int) -> Line:
        """One token of every row, after a prompt each."""
        self.timed.calls.clear()
        # Rows begin to write while others are still read: more tokens than are timed.
        wanted = self.plan.num_steps + batch * (1 + context // 256)
        draw = self._prompts(context, min(wanted, self.config.context_length - context), batch)
        await asyncio.gather(*(_generate(engine, prompt) for prompt in draw))
        times = [*self.timed.decode_s(batch)]
        if not times:
            raise ConfigError(f"{batch} rows were never in one step; take fewer, or a longer context")
        seconds = min(times)
        least_s = self.limits.least_s(
            self._weight_bytes + batch * context * self._cache_bytes_a_token, 2 * self._num_products * batch
        )
        return Line("decode", batch, context, seconds * 1e3, batch / seconds, least_s / seconds)

    @property
    def _num_products(self) -> int:
        """Weights that every token meets: all but a table that is only looked up."""
        table_size = 0 if self.config.tie_embeddings else self.config.vocab_size * self.config.hidden_size
        return num_parameters(self.config) - table_size

    @property
    def _weight_bytes(self) -> float:
        return self._num_products * self.plan.weight_bytes

    @property
    def _cache_bytes_a_token(self) -> int:
        config = self.config
        return 2 * config.num_layers * config.num_kv_heads * config.head_dim * FLOAT_BYTES

    def _prompts(self, length: int, max_tokens: int, count: int) -> list[Prompt]:
        # Of a seed that no other line has, so that nothing is found in a cache.
        seed = hash((self.plan.seed, length, max_tokens, count))
        draw = prompts(seed, Lengths.of(length), Lengths.of(max_tokens), self.config.vocab_size)
        return [*islice(draw, count)]


async def _generate(engine: GenerationEngine, prompt: Prompt) -> None:
    request = Request("bench", prompt.tokens, prompt.max_tokens)
    async for _ in engine.generate(request, TIMEOUT_S):
        pass


def num_parameters(config: DecoderConfig) -> int:
    """Of all tensors together."""
    return sum(prod(shape) for shape in config.shapes.values())
