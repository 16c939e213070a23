"""`tollgate bench peers`: puts the sides up, runs the scenarios, tears everything down.

Targets are those of the engine's design: ratios within one run, the whole way through
HTTP with key, admission and metering on our side, the same weights on both.
"""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count, islice
from pathlib import Path
from types import MappingProxyType

from app.bench import scenarios
from app.bench.installation import Installation
from app.bench.overhead import overhead
from app.bench.random_model import Sizes, write_random_model
from app.bench.scenarios import Against, Finding
from app.bench.sides import MODEL, Ours, Peer, note, write_gguf
from app.bench.workload import Lengths, Prompt, prompts
from app.errors import ConfigError

F32, INT8 = "tollgate", "tollgate int8"
PEERS = ("transformers", "llama.cpp", "keras-hub", "llama.cpp q8_0")
SCENARIOS = ("agreement", "throughput", "mixed", "first-token", "overhead")
TARGETS = MappingProxyType(
    {
        "transformers": {1: 1.5, 8: 2.0, 32: 3.0},
        "llama.cpp": {1: 0.95, 8: 0.9, 32: 1.1},
        "llama.cpp q8_0": {1: 1.0, 8: 1.25, 32: 1.4},
        "keras-hub": {1: 1.5, 8: 3.0, 32: 5.0},
    }
)
"""Output tokens a second of ours over theirs, by concurrency."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to compare.

    Attributes:
        python: Of the peers' environment; None: no peer, our own bars only.
        int8: NAME=VALUE in the environment that makes the engine use int8; None: not compared.
        input_len: Tokens of a prompt.
        output_len: Tokens of an answer.
        num_mixed: Requests of mixed lengths.
        mixed_batch: Rows of a static batch.
        num_overhead: Requests of each kind for the way's cost.
    """

    python: Path | None = None
    peers: tuple[str, ...] = PEERS
    scenarios: tuple[str, ...] = SCENARIOS
    sizes: Sizes = field(default_factory=Sizes)
    concurrencies: tuple[int, ...] = (1, 8, 32)
    rounds: int = 3
    input_len: int = 128
    output_len: int = 128
    mixed_input: Lengths = field(default_factory=lambda: Lengths(16, 512))
    mixed_output: Lengths = field(default_factory=lambda: Lengths(16, 256))
    num_mixed: int = 64
    mixed_batch: int = 32
    num_overhead: int = 500
    num_slots: int = 32
    int8: str | None = None
    seed: int = 0

    @property
    def wants_sides(self) -> bool:
        """Whether anything but the stub has to be started."""
        return any(name != "overhead" for name in self.scenarios)


def quick(plan: Plan) -> Plan:
    """The same with a tiny model, few tokens and one round, to see whether everything works."""
    return replace(
        plan,
        sizes=Sizes(layers=2, width=64, feed_forward=128, heads=4, key_heads=2, vocab=512, context=1024),
        concurrencies=(1, 4),
        rounds=1,
        input_len=16,
        output_len=16,
        mixed_input=Lengths(4, 32),
        mixed_output=Lengths(4, 16),
        num_mixed=8,
        mixed_batch=4,
        num_overhead=50,
        num_slots=4,
    )


def compare(plan: Plan) -> Iterator[Finding]:
    """Run everything; findings come as they are made.

    Raises:
        ConfigError: A side does not start or does not answer as it should.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tollgate-peers-")))
        folder.chmod(0o711)
        model = folder / "models" / MODEL
        note(f"writing a random model of {plan.sizes.num_parameters / 1e6:.1f} M parameters")
        write_random_model(model, plan.sizes, plan.seed)
        if plan.wants_sides:
            yield from _with_sides(plan, stack, model)
    if "overhead" in plan.scenarios:
        yield from _overhead(plan)


def _with_sides(plan: Plan, stack: ExitStack, model: Path) -> Iterator[Finding]:
    ours = _ours(plan, stack, F32, model.parent)
    int8 = _ours(plan, stack, INT8, model.parent, plan.int8) if plan.int8 else None
    pairs = [*_pairs(plan, stack, model, ours, int8)]
    draw = _drawer(plan)
    fixed = prompts(plan.seed, Lengths.of(plan.input_len), Lengths.of(plan.output_len), plan.sizes.vocab)
    if "agreement" in plan.scenarios:
        yield from scenarios.agreement(pairs, fixed)
    if "throughput" in plan.scenarios:
        for concurrency in plan.concurrencies:
            yield from scenarios.throughput(pairs, concurrency, fixed, plan.rounds)
    if "mixed" in plan.scenarios:
        static = [pair.peer for pair in pairs if pair.peer.name == "transformers"]
        mixed = prompts(plan.seed + 1, plan.mixed_input, plan.mixed_output, plan.sizes.vocab)
        requests = partial(lambda: [*islice(mixed, plan.num_mixed)])
        yield from scenarios.mixed_lengths(ours, static, requests, plan.mixed_batch, plan.rounds)
    if "first-token" in plan.scenarios:
        yield from scenarios.first_token(ours, draw, plan.rounds)


def _ours(plan: Plan, stack: ExitStack, name: str, models_dir: Path, setting: str | None = None) -> Ours:
    note(f"starting {name}")
    variable, _, value = (setting or "").partition("=")
    environment = {variable: value} if variable else {}
    installation = stack.enter_context(Installation(models_dir, num_slots=plan.num_slots, environment=environment))
    ours = Ours(name, installation)
    stack.callback(ours.close)
    return ours


def _pairs(plan: Plan, stack: ExitStack, model: Path, ours: Ours, int8: Ours | None) -> Iterator[Against]:
    for name in plan.peers if plan.python else ():
        mine = int8 if name == "llama.cpp q8_0" else ours
        if mine is None:
            continue
        note(f"starting {name}")
        yield Against(mine, stack.enter_context(_peer(plan, name, model)), TARGETS[name])


def _peer(plan: Plan, name: str, model: Path) -> Peer:
    assert plan.python is not None
    threads = len(os.sched_getaffinity(0))
    if name == "transformers":
        return Peer(name, plan.python, "transformers_generate.py", model, threads)
    if name == "keras-hub":
        return Peer(name, plan.python, "keras_hub_generate.py", model, threads)
    if name not in TARGETS:
        raise ConfigError(f"there is no peer {name!r}; there are {', '.join(TARGETS)}")
    kind = "q8_0" if name.endswith("q8_0") else "f32"
    gguf = write_gguf(plan.python, model, model.parent.parent / f"{kind}.gguf", kind)
    return Peer(name, plan.python, "llama_cpp_batch.py", gguf, threads)


def _drawer(plan: Plan) -> Callable[[int, int], Prompt]:
    """Single prompts of any lengths, each another one."""
    seeds = count(plan.seed + 1_000_000)

    def draw(input_len: int, output_len: int) -> Prompt:
        return next(prompts(next(seeds), Lengths.of(input_len), Lengths.of(output_len), plan.sizes.vocab))

    return draw


def _overhead(plan: Plan) -> Iterator[Finding]:
    """On a small model's card: the stub reads no weights."""
    with tempfile.TemporaryDirectory(prefix="tollgate-stub-") as folder:
        Path(folder).chmod(0o711)
        write_random_model(
            Path(folder) / MODEL, Sizes(layers=1, width=8, feed_forward=8, heads=1, key_heads=1, vocab=256)
        )
        yield from overhead(Path(folder), plan.num_overhead)
