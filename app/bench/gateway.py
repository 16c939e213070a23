"""What the way through costs: ours and the LiteLLM proxy's, each over calling what is behind it.

Behind ours is the hand-computable engine, behind LiteLLM a server that answers at once,
so that no model's time is part of it. Ours checks the key, admits and settles in
PostgreSQL; LiteLLM has no database and no key, which is the fastest it can be. Sides
take turns. The best round of a processor time counts, as a shared machine only ever adds, and
the median round of a latency, which is a difference of two.

Processor time is that of the API process or of the proxy with all below it, not of
PostgreSQL, the engine or the client. Requests come one at a time where it is measured,
so that nobody shares a round trip or a wake-up with another.
"""

import asyncio
import json
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import median

from app.bench.answers import OK
from app.bench.finding import Finding
from app.bench.http import Exchange, HttpClient
from app.bench.installation import Installation
from app.bench.load import closed_loop, open_loop
from app.bench.processes import cpu_s
from app.bench.progress import note
from app.bench.random_model import Sizes, write_random_model
from app.bench.sides import MODEL, Peer, PeerFailed
from app.bench.summary import Summary
from app.bench.workload import Lengths, Prompt, poisson_arrivals, prompts
from app.errors import ConfigError
from app.rpc import engine_pb2 as pb
from app.rpc.client import EngineClient

ROUTE = "/chat/completions"
OURS, LITELLM = "tollgate", "LiteLLM"
SCRIPT = "litellm_proxy.py"
# Without a model to wait for, the engine sends the first token alone and then eight steps at a time: 20 chunks.
PLAIN_TOKENS, STREAM_TOKENS = 16, 153
PROMPT_TOKENS = 128
SIZES = Sizes(layers=1, width=8, feed_forward=8, heads=1, key_heads=1, vocab=256)
NUM_WARM_UP = 20
DONE = b"data: [DONE]\n\n"
# What a gateway may cost, milliseconds, and how many times as much LiteLLM should at least.
PLAIN_TARGET, STREAM_TARGET, P50_TARGET, P99_TARGET, RATIO_TARGET = 1.5, 4.0, 3.0, 10.0, 8.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure.

    Attributes:
        python: Of the environment that LiteLLM is installed in; None: ours alone.
        rounds: See ``Figures.of``.
        num_requests: Of each kind, for processor time.
        seconds: Of each load.
        callers: At once, for the most requests a second.
        seed: Of prompts and arrivals.
    """

    python: Path | None = None
    rounds: int = 3
    num_requests: int = 300
    seconds: float = 6.0
    callers: int = 16
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Question:
    """One request to be: the prompt, and the body that asks for its continuation."""

    prompt: Prompt
    body: bytes

    @classmethod
    def of(cls, prompt: Prompt, *, is_streamed: bool) -> "Question":
        """A conversation of one turn; each token is a word of the random model."""
        content = " ".join(f"t{token}" for token in prompt.tokens)
        body: dict[str, object] = {
            "model": MODEL,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": prompt.max_tokens,
            "temperature": 0,
        }
        return cls(prompt, json.dumps(body | {"stream": True} if is_streamed else body).encode())


@dataclass(frozen=True, slots=True)
class Gateway:
    """One that is measured.

    Attributes:
        client: Asks it over HTTP.
        direct: Asks what is behind it, and returns with the answer.
        cpu_s: Processor time that its process has used so far.
        failure: What an answer that is none is raised as.
    """

    name: str
    client: HttpClient
    direct: Callable[[Question], Awaitable[None]]
    cpu_s: Callable[[], float]
    failure: type[ConfigError] = ConfigError

    async def through(self, question: Question, due_at: float) -> float:
        """Ask; seconds from when it was due to the last byte."""
        exchange = await self.client.post(ROUTE, question.body, due_at)
        self.check(exchange)
        return exchange.ended_at - due_at

    async def beside(self, question: Question, due_at: float) -> float:
        """The same of what is behind it."""
        await self.direct(question)
        return time.perf_counter() - due_at

    def check(self, exchange: Exchange) -> None:
        """Pass a whole answer.

        Raises:
            ConfigError: It is none; as ``failure``.
        """
        body = b"".join(part for _, part in exchange.parts)
        if exchange.failure or exchange.status != OK:
            raise self.failure(f"{self.name}: {exchange.failure or exchange.status}: {body[:200]!r}")
        if body.startswith(b"data:") and not body.endswith(DONE):
            raise self.failure(f"{self.name}: a stream broke off")


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one gateway.

    Attributes:
        plain_ms, stream_ms: Processor time of a plain request and of a stream.
        requests_per_s: Plain ones, by all callers together.
        p50_ms, p99_ms: Of latency at half of that, less the same of what is behind it.
    """

    plain_ms: float
    stream_ms: float
    requests_per_s: float
    p50_ms: float
    p99_ms: float

    @classmethod
    def of(cls, rounds: Sequence["Figures"]) -> "Figures":
        """What the rounds come to: the best, but of a difference, which noise may make too small, the median."""
        return cls(
            min(each.plain_ms for each in rounds),
            min(each.stream_ms for each in rounds),
            max(each.requests_per_s for each in rounds),
            median(each.p50_ms for each in rounds),
            median(each.p99_ms for each in rounds),
        )


Outcome = list[Figures] | PeerFailed


def gateway(plan: Plan) -> list[Finding]:
    """Start both sides, measure them in turns, and end them.

    Raises:
        ConfigError: Our own side does not start or does not answer as it should.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tollgate-stub-")))
        folder.chmod(0o711)  # as root, the database of an installation runs as another user
        write_random_model(folder / MODEL, SIZES, plan.seed)
        installation = stack.enter_context(Installation(folder, options=("--stub",)))
        if plan.python is None:
            return gateway_of(installation, None, plan)
        try:
            setup = {"model": MODEL, "prompt_tokens": PROMPT_TOKENS}
            peer = stack.enter_context(Peer(LITELLM, plan.python, SCRIPT, setup))
        except PeerFailed as failure:
            return [*gateway_of(installation, None, plan), Finding.failed("gateway", LITELLM, failure)]
        return gateway_of(installation, peer, plan)


def gateway_of(installation: Installation, peer: Peer | None, plan: Plan) -> list[Finding]:
    """As ``gateway``, of sides that run; the installation serves ``MODEL`` on the stub engine."""
    outcomes = asyncio.run(_outcomes(installation, peer, plan))
    ours, other = outcomes[OURS], outcomes.get(LITELLM)
    assert isinstance(ours, list)
    if isinstance(other, PeerFailed):
        return [*findings(Figures.of(ours), None), Finding.failed("gateway", LITELLM, other)]
    return findings(Figures.of(ours), None if other is None else Figures.of(other))


def findings(ours: Figures, other: Figures | None) -> list[Finding]:
    """What the figures come to, with the targets."""
    nan = float("nan")
    theirs = other or Figures(nan, nan, nan, nan, nan)
    plain, stream = (ours.plain_ms, theirs.plain_ms), (ours.stream_ms, theirs.stream_ms)
    p50, p99 = (ours.p50_ms, theirs.p50_ms), (ours.p99_ms, theirs.p99_ms)
    rates = ours.requests_per_s, theirs.requests_per_s
    found = [
        _at_most("processor time, plain", plain, PLAIN_TARGET),
        _at_most("processor time, stream of 20 chunks", stream, STREAM_TARGET),
        _at_most("latency added at half load, p50", p50, P50_TARGET),
        _at_most("latency added at half load, p99", p99, P99_TARGET),
    ]
    if other is None:
        return found
    return [
        *found,
        _ratio("processor time, plain, theirs / ours", plain),
        _ratio("processor time, stream, theirs / ours", stream),
        Finding("gateway", "most requests a second, ours / theirs", *rates, "1/s", rates[0] / rates[1]),
    ]


def _at_most(case: str, both: tuple[float, float], target: float) -> Finding:
    return Finding("gateway", case, *both, "ms", both[0], target, "at most")


def _ratio(case: str, both: tuple[float, float]) -> Finding:
    return Finding("gateway", case, *both, "ms", both[1] / both[0], RATIO_TARGET)


async def _outcomes(installation: Installation, peer: Peer | None, plan: Plan) -> Mapping[str, Outcome]:
    """By name."""
    outcomes: dict[str, Outcome] = {}
    async with AsyncExitStack() as stack:
        gateways = [await stack.enter_async_context(_ours(installation))]
        if peer is not None:
            gateways.append(await stack.enter_async_context(_litellm(peer)))
        for round_ in range(plan.rounds):
            for each in gateways[:: 1 if round_ % 2 == 0 else -1]:
                outcomes[each.name] = await _next_outcome(each, plan, round_, outcomes.get(each.name, []))
    return outcomes


async def _next_outcome(each: Gateway, plan: Plan, round_: int, before: Outcome) -> Outcome:
    if isinstance(before, PeerFailed):
        return before
    try:
        figures = await _measure(each, plan, round_)
    except PeerFailed as failure:
        note(f"{each.name} failed: {failure}")
        return failure
    note(f"round {round_ + 1}, {each.name}: {figures}")
    return [*before, figures]


async def _measure(each: Gateway, plan: Plan, round_: int) -> Figures:
    """One round of one gateway."""
    plain = _questions(plan.seed + round_, PLAIN_TOKENS, is_streamed=False)
    streams = _questions(plan.seed + round_, STREAM_TOKENS, is_streamed=True)
    plain_ms = await _cpu_ms(each, plain, plan.num_requests)
    stream_ms = await _cpu_ms(each, streams, plan.num_requests)
    requests_per_s = await _most(each, plain, plan)
    direct, through = await _latencies_ms(each, plain, requests_per_s / 2, plan)
    return Figures(plain_ms, stream_ms, requests_per_s, through.p50 - direct.p50, through.p99 - direct.p99)


async def _cpu_ms(each: Gateway, questions: Iterator[Question], num_requests: int) -> float:
    """Of the gateway, a request, one request at a time."""
    bodies = [question.body for question in islice(questions, NUM_WARM_UP + num_requests)]
    await closed_loop(each.client, ROUTE, iter(bodies[:NUM_WARM_UP]), concurrency=1)
    before = each.cpu_s()
    exchanges = await closed_loop(each.client, ROUTE, iter(bodies[NUM_WARM_UP:]), concurrency=1)
    used_s = each.cpu_s() - before
    for exchange in exchanges:
        each.check(exchange)
    return used_s * 1e3 / num_requests


async def _most(each: Gateway, questions: Iterator[Question], plan: Plan) -> float:
    """Requests a second of so many callers."""
    started = time.perf_counter()
    bodies = (question.body for question in questions)
    exchanges = await closed_loop(each.client, ROUTE, bodies, plan.callers, started + plan.seconds)
    for exchange in exchanges:
        each.check(exchange)
    return len(exchanges) / (max(exchange.ended_at for exchange in exchanges) - started)


async def _latencies_ms(
    each: Gateway, questions: Iterator[Question], rate: float, plan: Plan
) -> tuple[Summary, Summary]:
    """Of what is behind the gateway, and through it, at the same arrivals."""
    summaries = []
    for ask in (each.beside, each.through):
        arrivals = poisson_arrivals(plan.seed, rate)
        seconds = await open_loop(ask, questions, arrivals, time.perf_counter(), plan.seconds)
        summaries.append(Summary.of(value * 1e3 for value in seconds))
    return summaries[0], summaries[1]


def _questions(seed: int, tokens: int, *, is_streamed: bool) -> Iterator[Question]:
    draw = prompts(seed, Lengths.of(PROMPT_TOKENS), Lengths.of(tokens), SIZES.vocab)
    return (Question.of(prompt, is_streamed=is_streamed) for prompt in draw)


@asynccontextmanager
async def _ours(installation: Installation) -> AsyncIterator[Gateway]:
    client, engine = HttpClient(installation.url, installation.key), EngineClient(installation.engine_target)

    async def direct(question: Question) -> None:
        async for _ in engine.generate(_engine_request(question.prompt)):
            pass

    try:
        yield Gateway(OURS, client, direct, lambda: installation.uses()["api"].cpu_s)
    finally:
        await client.aclose()
        await engine.aclose()


@asynccontextmanager
async def _litellm(peer: Peer) -> AsyncIterator[Gateway]:
    client, upstream = HttpClient(peer.ready["url"]), HttpClient(peer.ready["upstream"])

    async def direct(question: Question) -> None:
        await upstream.post(ROUTE, question.body)

    try:
        yield Gateway(LITELLM, client, direct, lambda: cpu_s(peer.ready["pid"]), PeerFailed)
    finally:
        await client.aclose()
        await upstream.aclose()


def _engine_request(prompt: Prompt) -> pb.GenerateRequest:
    sampling = pb.Sampling(temperature=0.0, top_p=1.0, seed=1)
    return pb.GenerateRequest(
        request_id="bench",
        model=MODEL,
        prompt_tokens=prompt.tokens,
        max_tokens=prompt.max_tokens,
        sampling=sampling,
        whole=True,
    )
