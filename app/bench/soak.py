"""`tollgate bench soak`: an installation under mixed load for a while, and then nothing of it may be left.

Callers send what `traffic.py` draws and count what complete answers claim. Afterwards
every slot is free and every queue empty, nothing was compiled, the memory of each
process was level, and the ledger has exactly the rows that were counted. Memory is
that of a process alone: PostgreSQL's shared buffers fill up, and may.
"""

import asyncio
import json
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.bench.answers import Answered, events, read
from app.bench.http import Exchange, HttpClient
from app.bench.installation import Installation
from app.bench.progress import note
from app.bench.soak_report import Book, Books, Memory, ModelState, SoakReport
from app.bench.traffic import HALFWAY, Ask, asks
from app.errors import ConfigError, EngineUnavailable
from app.modeling.registry import ModelCard, Registry
from app.rpc.client import EngineClient

OK = 200
SAMPLES = 60
LEAST_INTERVAL_S = 2.0
# What is left of aborted requests is settled and given back within this.
SETTLED_WITHIN_S = 15.0
# Errors that a deadline may end in.
LATE = ("deadline_exceeded",)


@dataclass(frozen=True, slots=True)
class Plan:
    """How long, how much.

    Attributes:
        models_dir: What is served.
    """

    models_dir: Path
    seconds: float = 1200.0
    concurrency: int = 32
    num_slots: int = 16
    seed: int = 0


@dataclass(slots=True)
class Tally:
    """What the callers saw."""

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    latencies_s: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    books: defaultdict[str, Book] = field(default_factory=lambda: defaultdict(Book))
    failures: Counter[str] = field(default_factory=Counter)
    num_sent: Counter[bool] = field(default_factory=Counter)

    def add(self, ask: Ask, answer: Answered | None, outcome: str, failure: str) -> None:
        """One request; of a complete answer of the exact organisation also what it claims."""
        self.outcomes[ask.sort, outcome] += 1
        if failure:
            self.failures[f"{ask.sort} {ask.model}: {failure}"] += 1
        if answer is None or outcome != "complete":
            return
        self.latencies_s[ask.sort].append(answer.latency_s)
        if ask.sort not in HALFWAY:
            self.books[ask.model] += Book(1, answer.input_tokens, answer.output_tokens)


@dataclass(frozen=True, slots=True)
class Clients:
    """One for each organisation."""

    exact: HttpClient
    halfway: HttpClient

    async def aclose(self) -> None:
        """Give the connections back."""
        await self.exact.aclose()
        await self.halfway.aclose()


def soak(plan: Plan) -> SoakReport:
    """Run it.

    Raises:
        ConfigError: No model generates, or the installation does not start.
    """
    cards = [card for card in Registry(plan.models_dir).list() if card.enabled and card.kind != "embedding"]
    if not any(card.kind == "generation" for card in cards):
        raise ConfigError(f"no model in {plan.models_dir} generates")
    note(f"starting {', '.join(card.name for card in cards)}")
    with Installation(plan.models_dir, num_slots=plan.num_slots) as installation:
        return soak_on(installation, plan, cards)


def soak_on(installation: Installation, plan: Plan, cards: list[ModelCard]) -> SoakReport:
    """Run it on an installation that serves these models."""
    clients = Clients(
        HttpClient(installation.url, installation.key),
        HttpClient(installation.url, installation.make_key(installation.make_org("soak"))),
    )
    return asyncio.run(run(plan, cards, clients, installation))


async def run(plan: Plan, cards: list[ModelCard], clients: Clients, installation: Installation) -> SoakReport:
    """Load, then look at what is left; what the ledger had before is taken off."""
    engine, tally = EngineClient(installation.engine_target), Tally()
    samples: list[tuple[float, Mapping[str, float]]] = []
    try:
        before = await _ledger(clients.exact)
        started = time.perf_counter()
        sampler = asyncio.create_task(_sample(installation, plan.seconds, samples, tally))
        ends_at = started + plan.seconds
        callers = [_caller(asks(plan.seed * 1000 + i, cards), clients, ends_at, tally) for i in range(plan.concurrency)]
        await asyncio.gather(*callers)
        wall_s = time.perf_counter() - started
        sampler.cancel()
        models = await _settled(engine)
        return SoakReport(
            wall_s=wall_s,
            outcomes=dict(tally.outcomes),
            latencies_s=dict(tally.latencies_s),
            failures=dict(tally.failures),
            models=models,
            memory={role: Memory.of(samples, role) for role in sorted({role for _, by in samples for role in by})},
            counted=dict(tally.books),
            billed=_since(before, await _ledger(clients.exact)),
            num_halfway=tally.num_sent[True],
            num_halfway_billed=sum(book.requests for book in (await _ledger(clients.halfway)).values()),
        )
    finally:
        await clients.aclose()
        await engine.aclose()


async def _caller(draw: Iterator[Ask], clients: Clients, ends_at: float, tally: Tally) -> None:
    for ask in draw:
        if time.perf_counter() >= ends_at:
            return
        is_halfway = ask.sort in HALFWAY
        tally.num_sent[is_halfway] += 1
        client = clients.halfway if is_halfway else clients.exact
        try:
            async with asyncio.timeout(ask.leave_after_s):
                exchange = await client.post(ask.route, ask.body, headers=ask.headers)
        except TimeoutError:
            tally.add(ask, None, "left", "")
            continue
        answer = read(exchange)
        tally.add(ask, answer, *judge(ask, exchange, answer))


def judge(ask: Ask, exchange: Exchange, answer: Answered) -> tuple[str, str]:
    """What became of a request, and what is wrong with that; empty where nothing is."""
    if ask.status != OK:
        what = "refused" if exchange.status == ask.status else "failed"
        return what, "" if what == "refused" else f"{exchange.failure or exchange.status} instead of {ask.status}"
    if ask.sort == "deadline" and answer.error in LATE:
        return "late", ""
    if answer.error:
        return "failed", answer.error
    if ask.num_texts:
        found = len(_objects(exchange, "data"))
        return "complete", "" if found == ask.num_texts else f"{found} of {ask.num_texts} texts came back"
    # Now and then the first token drawn is the end: an answer of none, and rightly so.
    is_empty = not answer.output_tokens and answer.finish_reason != "stop"
    if is_empty or not answer.input_tokens:
        return "complete", "an answer without usage"
    if ask.has_logprobs and (carried := num_carried(exchange)) != answer.output_tokens:
        return "complete", f"a stream carried {carried} tokens and claims {answer.output_tokens}"
    return "complete", ""


def num_carried(exchange: Exchange) -> int:
    """Tokens that the events of a stream name."""
    choices = (choice for event in events(exchange) for choice in event.get("choices") or ())
    return sum(len((choice.get("logprobs") or {}).get("tokens") or ()) for choice in choices)


async def _sample(
    installation: Installation, seconds: float, samples: list[tuple[float, Mapping[str, float]]], tally: Tally
) -> None:
    """Memory by role at intervals, until cancelled."""
    started, interval_s = time.perf_counter(), max(LEAST_INTERVAL_S, seconds / SAMPLES)
    while True:
        uses = await asyncio.to_thread(installation.uses)
        at_s = time.perf_counter() - started
        samples.append((at_s, {role: use.memory_mib for role, use in uses.items()}))
        if len(samples) % 10 == 0:
            memory = ", ".join(f"{role} {mib:.0f}" for role, mib in sorted(samples[-1][1].items()))
            note(f"{at_s:.0f} s: {tally.outcomes.total()} requests; MiB: {memory}")
        await asyncio.sleep(interval_s)


async def _settled(engine: EngineClient) -> list[ModelState]:
    """What the engine holds when it holds nothing more, or after a while."""
    ends_at = time.perf_counter() + SETTLED_WITHIN_S
    while True:
        try:
            found = [
                ModelState(m.name, m.num_slots, m.free_slots, m.queue_depth, m.compilations_after_warm_up, m.state)
                for m in (await engine.describe()).models
            ]
        except EngineUnavailable:
            found = []
        if time.perf_counter() >= ends_at or (found and all(model.is_idle for model in found)):
            return found
        await asyncio.sleep(0.2)


async def _ledger(client: HttpClient) -> Books:
    """Requests and tokens by model, of the client's organisation."""
    exchange = await client.get("/usage?group_by=model&bucket=month")
    if exchange.status != OK:
        raise ConfigError(f"GET /v1/usage answered {exchange.failure or exchange.status}")
    books: defaultdict[str, Book] = defaultdict(Book)
    for line in _objects(exchange, "data"):
        books[line["model"]] += Book(line["requests"], line["input_tokens"], line["output_tokens"])
    return dict(books)


def _since(before: Books, after: Books) -> Books:
    gained = {model: book - before.get(model, Book()) for model, book in after.items()}
    return {model: book for model, book in gained.items() if book != Book()}


def _objects(exchange: Exchange, name: str) -> list[Any]:
    """A list of the answer."""
    found: list[Any] = json.loads(b"".join(part for _, part in exchange.parts))[name]
    return found
