"""`tollgate bench peers`: puts the sides up as they are needed, runs the scenarios, tears everything down.

Targets are those of the engine's design: ratios within one run, the whole way through
HTTP with key, admission and metering on our side, the same weights on both. A case
that the record has already is not measured again, and no side is started for it.
"""

import json
import os
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import count, islice
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar, cast

from app.bench import classify, scenarios
from app.bench.classify import TextServer
from app.bench.finding import Finding, Record
from app.bench.installation import Installation
from app.bench.progress import note
from app.bench.random_model import Sizes, TextSizes, write_random_classifier, write_random_model
from app.bench.scenarios import Against, InBatches, Rounds
from app.bench.sides import MODEL, Ours, Peer, PeerFailed, Side, write_gguf
from app.bench.workload import Lengths, Prompt, prompts
from app.errors import ConfigError

T = TypeVar("T")

F32, INT8, IN_BATCHES = "tollgate", "tollgate int8", "tollgate in batches"


@dataclass(frozen=True, slots=True)
class Kind:
    """A peer that generates.

    Attributes:
        script: Below ``peers/``.
        targets: Output tokens a second of ours over theirs, by concurrency.
        options: Of its setup.
        gguf: Type of the GGUF file that it reads; empty: the Hugging Face directory.
        ours: Which of our sides it is held against.
    """

    script: str
    targets: Mapping[int, float]
    options: Mapping[str, Any] = field(default_factory=dict)
    gguf: str = ""
    ours: str = F32


TRANSFORMERS, LLAMA_CPP = {1: 1.5, 8: 2.0, 32: 3.0}, {1: 0.95, 8: 0.9, 32: 1.1}
KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "transformers": Kind("transformers_generate.py", TRANSFORMERS),
        "transformers static": Kind("transformers_generate.py", TRANSFORMERS, {"cache": "static"}),
        "llama.cpp": Kind("llama_cpp_batch.py", LLAMA_CPP, gguf="f32"),
        "llama.cpp plain": Kind("llama_cpp_batch.py", LLAMA_CPP, {"flash_attention": False}, gguf="f32"),
        "keras-hub": Kind("keras_hub_generate.py", {1: 1.5, 8: 3.0, 32: 5.0}),
        "llama.cpp q8_0": Kind("llama_cpp_batch.py", {1: 1.0, 8: 1.25, 32: 1.4}, gguf="q8_0", ours=INT8),
    }
)
CLASSIFIERS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {"onnx single": {"batching": "single"}, "onnx dynamic": {"batching": "dynamic"}}
)
ALL_PEERS = (*KINDS, *CLASSIFIERS)
# The others are variants, to see on a machine which way a peer is the stronger.
PEERS = ("transformers", "llama.cpp", "keras-hub", "llama.cpp q8_0", *CLASSIFIERS)
SCENARIOS = ("agreement", "throughput", "mixed", "first-token", "classification")
# Of requests of mixed lengths against static batches.
MIXED_TARGET = 3.0


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
        text_len: Tokens of a text to classify.
        text_seconds: Of a round of classifications.
    """

    python: Path | None = None
    peers: tuple[str, ...] = PEERS
    scenarios: tuple[str, ...] = SCENARIOS
    sizes: Sizes = field(default_factory=Sizes)
    text_sizes: TextSizes = field(default_factory=TextSizes)
    concurrencies: tuple[int, ...] = (1, 8, 32)
    rounds: int = 3
    case_seconds: float = 60.0
    input_len: int = 128
    output_len: int = 128
    mixed_input: Lengths = field(default_factory=lambda: Lengths(16, 512))
    mixed_output: Lengths = field(default_factory=lambda: Lengths(16, 256))
    num_mixed: int = 64
    mixed_batch: int = 32
    text_len: int = 128
    text_seconds: float = 4.0
    num_slots: int = 32
    int8: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what there is not."""
        for given, known, what in ((self.peers, ALL_PEERS, "peer"), (self.scenarios, SCENARIOS, "scenario")):
            for name in given:
                if name not in known:
                    raise ConfigError(f"there is no {what} {name!r}; there are {', '.join(known)}")

    @property
    def settings(self) -> dict[str, Any]:
        """What a figure depends on; neither which are made, nor how often they are tried."""
        free = {"python", "peers", "scenarios", "concurrencies", "rounds", "case_seconds", "text_seconds"}
        settings: dict[str, Any] = json.loads(json.dumps({k: v for k, v in asdict(self).items() if k not in free}))
        return settings

    @property
    def measured(self) -> Rounds:
        """Of each case."""
        return Rounds(self.rounds, self.case_seconds)


def quick(plan: Plan) -> Plan:
    """The same with tiny models, few tokens and one round, to see whether everything works."""
    return replace(
        plan,
        sizes=Sizes(layers=2, width=64, feed_forward=128, heads=4, key_heads=2, vocab=512, context=1024),
        text_sizes=TextSizes(layers=2, width=64, feed_forward=128, heads=4, vocab=512, context=128),
        concurrencies=(1, 4),
        rounds=1,
        input_len=16,
        output_len=16,
        mixed_input=Lengths(4, 32),
        mixed_output=Lengths(4, 16),
        num_mixed=8,
        mixed_batch=4,
        text_len=32,
        text_seconds=0.5,
        num_slots=4,
    )


def compare(plan: Plan, record: Record) -> None:
    """Run what the record lacks; findings are in it as they are made.

    Raises:
        ConfigError: Our own side does not start or does not answer as it should.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tollgate-peers-")))
        folder.chmod(0o711)  # as root, the database of an installation runs as another user
        comparison = Comparison(plan, record, Sides(plan, folder, stack))
        for scenario in SCENARIOS:
            if scenario in plan.scenarios:
                for finding in comparison.run(scenario):
                    note(f"{finding.scenario}: {finding.case}: {finding.failure or f'{finding.figure:.3g}'}")
                    record.add(finding)


class Sides:
    """Whoever is compared, started when first asked for; a peer that failed to start is not tried again."""

    def __init__(self, plan: Plan, folder: Path, stack: ExitStack) -> None:
        self._plan = plan
        self._folder = folder
        self._stack = stack
        self._made: dict[str, object] = {}

    def ours(self, name: str) -> Ours:
        """One of our installations that generate."""
        return self._once(name, partial(self._start_ours, name))

    def peer(self, name: str) -> Peer:
        """A peer.

        Raises:
            PeerFailed: It does not start.
        """
        return self._once(name, partial(self._start_peer, name))

    def our_classifier(self) -> TextServer:
        """Our installation that classifies."""
        return self._once("tollgate, texts", self._start_our_classifier)

    def classifier(self, name: str) -> TextServer:
        """A peer that classifies.

        Raises:
            PeerFailed: It does not start.
        """
        return self._once(name, partial(self._start_classifier, name))

    def _once(self, name: str, start: Callable[[], T]) -> T:
        if name not in self._made:
            note(f"starting {name}")
            try:
                self._made[name] = start()
            except PeerFailed as failure:
                note(f"{name} failed: {failure}")
                self._made[name] = failure
        made = self._made[name]
        if isinstance(made, PeerFailed):
            raise made
        return cast("T", made)

    def _start_ours(self, name: str) -> Ours:
        variable, _, value = (self._plan.int8 or "").partition("=")
        environment = {variable: value} if name == INT8 else {}
        ours = Ours(name, self._install(self._model.parent, environment))
        self._stack.callback(ours.close)
        return ours

    def _start_peer(self, name: str) -> Peer:
        kind, model = KINDS[name], self._model
        if kind.gguf:
            model = self._folder / f"{kind.gguf}.gguf"
            if not model.exists():
                write_gguf(self._python, self._model, model, kind.gguf)
        setup = {"model": str(model), "threads": num_cores(), **kind.options}
        return self._stack.enter_context(Peer(name, self._python, kind.script, setup))

    def _start_our_classifier(self) -> TextServer:
        installation = self._install(self._text_model.parent, {})
        fields: dict[str, object] = {"model": self._text_model.name}
        route = "/classifications"
        return self._text_server(
            TextServer(F32, installation.url, route, classify.our_scores, key=installation.key, fields=fields)
        )

    def _start_classifier(self, name: str) -> TextServer:
        setup = {"model": str(self._text_model), "threads": num_cores(), **CLASSIFIERS[name]}
        peer = self._stack.enter_context(Peer(name, self._python, "onnx_server.py", setup))
        return self._text_server(
            TextServer(name, peer.ready["url"], "/classifications", classify.peer_scores, failure=PeerFailed)
        )

    def _text_server(self, server: TextServer) -> TextServer:
        self._stack.callback(server.close)
        return server

    def _install(self, models_dir: Path, environment: Mapping[str, str]) -> Installation:
        slots = self._plan.num_slots
        return self._stack.enter_context(Installation(models_dir, num_slots=slots, environment=environment))

    @property
    def _python(self) -> Path:
        assert self._plan.python is not None
        return self._plan.python

    @property
    def _model(self) -> Path:
        path, sizes = self._folder / "models" / MODEL, self._plan.sizes
        if not path.exists():
            note(f"writing a random model of {sizes.num_parameters / 1e6:.1f} M parameters")
            write_random_model(path, sizes, self._plan.seed)
        return path

    @property
    def _text_model(self) -> Path:
        path = self._folder / "texts" / MODEL
        if not path.exists():
            write_random_classifier(path, self._plan.text_sizes, self._plan.seed)
        return path


class Comparison:
    """The scenarios of a plan."""

    def __init__(self, plan: Plan, record: Record, sides: Sides) -> None:
        self._plan = plan
        self._record = record
        self._sides = sides

    def run(self, scenario: str) -> Iterator[Finding]:
        """One of ``SCENARIOS``."""
        scenes: dict[str, Callable[[], Iterator[Finding]]] = {
            "agreement": self._agreement,
            "throughput": self._throughput,
            "mixed": self._mixed,
            "first-token": self._first_token,
            "classification": self._classification,
        }
        return scenes[scenario]()

    def _agreement(self) -> Iterator[Finding]:
        pairs = yield from self._pairs("agreement", scenarios.against)
        yield from scenarios.agreement(pairs, self._fixed(0))

    def _throughput(self) -> Iterator[Finding]:
        for concurrency in self._plan.concurrencies:
            pairs = yield from self._pairs("throughput", partial(scenarios.concurrent, concurrency))
            if pairs:
                yield from scenarios.throughput(pairs, concurrency, self._fixed(concurrency), self._plan.measured)

    def _mixed(self) -> Iterator[Finding]:
        size = self._plan.mixed_batch
        case = partial(scenarios.static, size)
        pairs = yield from self._pairs("mixed", case, only="transformers")
        pairs = [replace(pair, targets={size: MIXED_TARGET}) for pair in pairs]
        if not self._record.has("mixed", case(F32, IN_BATCHES)):
            ours = self._sides.ours(F32)
            pairs.append(Against(ours, InBatches(IN_BATCHES, ours), {}))
        if pairs:
            draw = prompts(self._plan.seed + 1, self._plan.mixed_input, self._plan.mixed_output, self._plan.sizes.vocab)
            requests = partial(lambda: [*islice(draw, self._plan.num_mixed)])
            yield from scenarios.mixed_lengths(pairs, requests, size, self._plan.measured)

    def _first_token(self) -> Iterator[Finding]:
        if not self._record.has("first-token", scenarios.LATER):
            yield from scenarios.first_token(self._sides.ours(F32), self._drawer(), self._plan.measured)

    def _classification(self) -> Iterator[Finding]:
        plan, names = self._plan, self._names(CLASSIFIERS)
        peers = yield from self._classifiers(names, [classify.agreeing(F32, name) for name in names])
        vocab, longest = plan.text_sizes.num_words, plan.text_sizes.context
        lengths = [max(3, longest * share // 16) for share in range(1, 17)]
        mixed = classify.texts_of(plan.seed, classify.TEXTS_COMPARED, vocab, lengths)
        for peer in peers:
            yield from classify.agreement(self._sides.our_classifier(), peer, mixed)
        for concurrency in plan.concurrencies:
            cases = [scenarios.concurrent(concurrency, F32, name) for name in names]
            peers = yield from self._classifiers(names, cases)
            if peers:
                texts = classify.texts_of(plan.seed + concurrency, 256, vocab, [plan.text_len])
                ours = self._sides.our_classifier()
                yield from classify.speeds(ours, peers, texts, concurrency, plan.measured, plan.text_seconds)

    def _names(self, known: Mapping[str, Any]) -> list[str]:
        """The plan's peers of one sort; none without an environment for them."""
        return [name for name in self._plan.peers if name in known and self._plan.python is not None]

    def _pairs(
        self, scenario: str, case: Callable[[str, str], str], only: str = ""
    ) -> Generator[Finding, None, list[Against]]:
        """Those that the record lacks, started; of a peer that does not start a finding that says so."""
        pairs: list[Against] = []
        for name in self._names(KINDS):
            kind = KINDS[name]
            lacks_int8 = kind.ours == INT8 and self._plan.int8 is None
            if lacks_int8 or (only and name != only) or self._record.has(scenario, case(kind.ours, name)):
                continue
            ours: Side = self._sides.ours(kind.ours)
            try:
                pairs.append(Against(ours, self._sides.peer(name), kind.targets, is_exact=kind.gguf != "q8_0"))
            except PeerFailed as failure:
                yield Finding.failed(scenario, case(kind.ours, name), failure)
        return pairs

    def _classifiers(self, names: list[str], cases: list[str]) -> Generator[Finding, None, list[TextServer]]:
        """As ``_pairs``."""
        servers = []
        for name, case in zip(names, cases, strict=True):
            if self._record.has("classification", case):
                continue
            try:
                servers.append(self._sides.classifier(name))
            except PeerFailed as failure:
                yield Finding.failed("classification", case, failure)
        return servers

    def _fixed(self, number: int) -> Iterator[Prompt]:
        """Prompts of the plan's lengths; others for each number, so that none was seen before."""
        plan = self._plan
        lengths = Lengths.of(plan.input_len), Lengths.of(plan.output_len)
        return prompts(plan.seed + 1000 * number, *lengths, plan.sizes.vocab)

    def _drawer(self) -> Callable[[int, int], Prompt]:
        """Single prompts of any lengths, each another one."""
        seeds = count(self._plan.seed + 1_000_000)

        def draw(input_len: int, output_len: int) -> Prompt:
            lengths = Lengths.of(input_len), Lengths.of(output_len)
            return next(prompts(next(seeds), *lengths, self._plan.sizes.vocab))

        return draw


def num_cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0))
