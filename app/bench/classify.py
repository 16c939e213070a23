"""Texts that get labels: one of our installations beside ONNX Runtime behind FastAPI, over HTTP both.

The same client asks both, in a closed loop of callers with one text a request. Ours
checks the key, admits and meters; the peer does nothing of the kind. Sides take turns
and the best round of each counts. Scores of texts of many lengths have to agree.
"""

import asyncio
import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from statistics import median
from typing import Any

from app.bench.finding import Finding
from app.bench.http import Exchange, HttpClient
from app.bench.load import closed_loop
from app.bench.progress import note
from app.bench.scenarios import Rounds, against, concurrent
from app.bench.sides import PeerFailed
from app.errors import ConfigError

OK = 200
AGREEMENT = 1e-4
TEXTS_COMPARED = 24
# Of the median latency of one caller at most, and of the requests a second of so many at least.
LATENCY_TARGET = 1.1
TARGETS = {32: 1.2}


@dataclass(frozen=True, slots=True)
class Speed:
    """Of one round."""

    requests_per_s: float
    latency_ms: float


class TextServer:
    """Something that classifies one text a request.

    Args:
        name: In reports.
        url: What routes are below.
        route: Of classification.
        key: Bearer token; empty: none.
        fields: Of a body beside ``input``.
        scores: Reads them from an answer, in the order of the model's labels.
        failure: What to raise where an answer is an error.
    """

    def __init__(
        self,
        name: str,
        url: str,
        route: str,
        scores: Callable[[Any], list[float]],
        *,
        key: str = "",
        fields: dict[str, object] | None = None,
        failure: type[ConfigError] = ConfigError,
    ) -> None:
        self.name = name
        self._route = route
        self._scores = scores
        self._fields = fields or {}
        self._failure = failure
        self._runner = asyncio.Runner()
        self._client = HttpClient(url, key)

    def scores(self, texts: Sequence[str]) -> list[list[float]]:
        """Of each text, asked one after the other."""
        exchanges, _ = self._ask([self._body(text) for text in texts], 1, 3600.0)
        return [self._scores(json.loads(b"".join(part for _, part in each.parts))) for each in exchanges]

    def speed(self, texts: Sequence[str], concurrency: int, seconds: float) -> Speed:
        """Of so many callers for so long."""
        bodies = cycle([self._body(text) for text in texts])
        exchanges, wall_s = self._ask(bodies, concurrency, seconds)
        latencies_s = [each.ended_at - each.due_at for each in exchanges]
        return Speed(len(exchanges) / wall_s, median(latencies_s) * 1e3)

    def close(self) -> None:
        """Give the connections back."""
        self._runner.run(self._client.aclose())
        self._runner.close()

    def _ask(
        self, bodies: Iterator[bytes] | list[bytes], concurrency: int, seconds: float
    ) -> tuple[list[Exchange], float]:
        exchanges, started = self._runner.run(self._load(iter(bodies), concurrency, seconds))
        if not exchanges:
            raise self._failure(f"{self.name}: {seconds:g} s were over before a request was sent")
        for each in exchanges:
            if each.failure or each.status != OK:
                raise self._failure(f"{self.name} answered {each.failure or each.status}")
        return exchanges, max(each.ended_at for each in exchanges) - started

    async def _load(self, bodies: Iterator[bytes], concurrency: int, seconds: float) -> tuple[list[Exchange], float]:
        started = time.perf_counter()  # here, so that making a loop is no part of it
        return await closed_loop(self._client, self._route, bodies, concurrency, started + seconds), started

    def _body(self, text: str) -> bytes:
        return json.dumps({"input": text} | self._fields).encode()


def our_scores(answer: Any) -> list[float]:  # noqa: ANN401 - JSON's
    """Of POST /v1/classifications, whose labels come best first."""
    by_label = {each["label"]: float(each["score"]) for each in answer["data"][0]["scores"]}
    return [by_label[label] for label in sorted(by_label)]


def peer_scores(answer: Any) -> list[float]:  # noqa: ANN401 - JSON's
    """Of the peer's server."""
    return [float(answer["scores"][label]) for label in sorted(answer["scores"])]


def texts_of(seed: int, count: int, vocab: int, lengths: Sequence[int]) -> list[str]:
    """Texts of a random classifier's words, whose tokens with the two around them are so many, in turn."""
    rng = random.Random(seed)  # noqa: S311 - a workload, not a secret
    return [
        " ".join(f"w{rng.randrange(vocab)}" for _ in range(length - 2))
        for length, _ in zip(cycle(lengths), range(count), strict=False)
    ]


def agreement(ours: TextServer, peer: TextServer, texts: Sequence[str]) -> Iterator[Finding]:
    """The largest difference of any score."""
    case = agreeing(ours.name, peer.name)
    try:
        theirs = peer.scores(texts)
    except PeerFailed as failure:
        yield Finding.failed("classification", case, failure)
        return
    mine = ours.scores(texts)
    pairs = [pair for rows in zip(mine, theirs, strict=True) for pair in zip(*rows, strict=True)]
    largest = max(abs(a - b) for a, b in pairs)
    best = [max(row) for row in mine]
    yield Finding("classification", case, min(best), max(best), "score", largest, AGREEMENT, "at most")


def speeds(
    ours: TextServer,
    peers: Sequence[TextServer],
    texts: Sequence[str],
    concurrency: int,
    rounds: Rounds,
    seconds: float,
) -> Iterator[Finding]:
    """Requests a second of so many callers; of one caller the latency."""
    best: dict[str, Speed | PeerFailed] = {}
    for round_ in rounds:
        for side in (ours, *peers)[:: 1 if round_ % 2 == 0 else -1]:
            _attempt(best, side, texts, concurrency, seconds)
    mine = best[ours.name]
    assert isinstance(mine, Speed)
    for peer in peers:
        case, theirs = concurrent(concurrency, ours.name, peer.name), best[peer.name]
        if isinstance(theirs, PeerFailed):
            yield Finding.failed("classification", case, theirs)
        elif concurrency == 1:
            ratio = mine.latency_ms / theirs.latency_ms
            yield Finding(
                "classification", case, mine.latency_ms, theirs.latency_ms, "ms", ratio, LATENCY_TARGET, "at most"
            )
        else:
            ratio = mine.requests_per_s / theirs.requests_per_s
            yield Finding(
                "classification",
                case,
                mine.requests_per_s,
                theirs.requests_per_s,
                "requests/s",
                ratio,
                TARGETS.get(concurrency),
            )


def agreeing(ours: str, peer: str) -> str:
    """Name of the case of scores."""
    return f"largest difference of a score, {against(ours, peer)}"


def _attempt(
    best: dict[str, Speed | PeerFailed], side: TextServer, texts: Sequence[str], concurrency: int, seconds: float
) -> None:
    known = best.get(side.name)
    if isinstance(known, PeerFailed):
        return
    try:
        if known is None:  # what is done once: connections, threads, memory
            side.speed(texts, concurrency, seconds / 4)
        found = side.speed(texts, concurrency, seconds)
    except PeerFailed as failure:
        note(f"{side.name} failed: {failure}")
        best[side.name] = failure
        return
    note(f"{concurrency} callers, {side.name}: {found.requests_per_s:,.1f} requests/s, {found.latency_ms:.1f} ms")
    if known is None:
        best[side.name] = found
        return
    best[side.name] = Speed(max(known.requests_per_s, found.requests_per_s), min(known.latency_ms, found.latency_ms))
