"""Load on a server: a closed loop of callers, or an open loop of arrivals.

A closed loop sends a caller's next request when the last one is answered, so a slow
server is asked less. An open loop sends at its times whatever happens, and counts
latency from them: what a queue costs shows.
"""

import asyncio
import json
import math
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from app.bench.answers import Answered, read
from app.bench.http import Exchange, HttpClient
from app.bench.workload import Lengths, Prompt, poisson_arrivals, prompts
from app.errors import ConfigError

T = TypeVar("T")
R = TypeVar("R")

ROUTE = "/completions"


@dataclass(frozen=True, slots=True)
class Load:
    """How to load a server.

    Attributes:
        concurrency: Callers of a closed loop; with a rate, nothing.
        rate: Mean requests a second of an open loop; None: a closed one.
        num_requests: Measured requests; None: as many as fit into the duration.
        duration_s: No request is started after it; None: no end but the number.
        num_warm_up: Requests before, which do not count.
        options: Fields added to every request body.
    """

    model: str
    input_len: Lengths
    output_len: Lengths
    concurrency: int = 1
    rate: float | None = None
    num_requests: int | None = None
    duration_s: float | None = None
    num_warm_up: int = 1
    seed: int = 0
    vocab_size: int = 256
    shared_prefix: int = 0
    is_streamed: bool = True
    fills_output: bool = False
    options: tuple[tuple[str, object], ...] = ()

    def __post_init__(self) -> None:
        """Refuse a load without an end."""
        if self.num_requests is None and self.duration_s is None:
            raise ConfigError("say how much: --requests, --duration or both")
        if self.rate is not None and not 0 < self.rate < math.inf:
            raise ConfigError("--rate must be above 0, and a number")
        if self.duration_s is not None and not 0 < self.duration_s < math.inf:
            raise ConfigError("--duration must be above 0, and a number")


@dataclass(frozen=True, slots=True)
class Measured:
    """A load and its answers.

    Attributes:
        wall_s: From the first request to the last answer.
        client_cpu_s: Processor time of the load generator itself.
    """

    load: Load
    answers: tuple[Answered, ...]
    wall_s: float
    client_cpu_s: float


async def run(client: HttpClient, load: Load) -> Measured:
    """Warm up, load, and read the answers when all of them are there."""
    requests = prompts(load.seed, load.input_len, load.output_len, load.vocab_size, load.shared_prefix)
    bodies = (request_body(load, prompt) for prompt in requests)
    await asyncio.gather(*(client.post(ROUTE, body) for body in islice(bodies, load.num_warm_up)))
    measured: Iterator[bytes] = islice(bodies, load.num_requests)
    if load.num_requests is not None:
        measured = iter(list(measured))  # drawn before the clock runs
    started, cpu_started = time.perf_counter(), time.process_time()
    if load.rate is None:
        ends_at = math.inf if load.duration_s is None else started + load.duration_s
        exchanges = await closed_loop(client, ROUTE, measured, load.concurrency, ends_at)
    else:

        async def send(body: bytes, due_at: float) -> Exchange:
            return await client.post(ROUTE, body, due_at)

        arrivals = poisson_arrivals(load.seed, load.rate)
        exchanges = await open_loop(send, measured, arrivals, started, load.duration_s)
    cpu_s = time.process_time() - cpu_started
    ended = max((exchange.ended_at for exchange in exchanges), default=started)
    return Measured(load, tuple(read(exchange) for exchange in exchanges), ended - started, cpu_s)


async def closed_loop(
    client: HttpClient, route: str, bodies: Iterator[bytes], concurrency: int, ends_at: float = math.inf
) -> list[Exchange]:
    """Callers that share the bodies, each with one request at a time.

    Args:
        client: of the server.
        route: below its base URL.
        bodies: taken by whoever is free.
        concurrency: callers.
        ends_at: no request is started after it, ``time.perf_counter()``.
    """
    exchanges: list[Exchange] = []

    async def caller() -> None:
        for body in bodies:
            if time.perf_counter() >= ends_at:
                return
            exchanges.append(await client.post(route, body))

    await asyncio.gather(*(caller() for _ in range(concurrency)))
    return exchanges


async def open_loop(
    ask: Callable[[T, float], Coroutine[Any, Any, R]],
    items: Iterable[T],
    arrivals: Iterable[float],
    started: float,
    duration_s: float | None = None,
) -> list[R]:
    """What was asked at its times, whatever became of what was asked before.

    Args:
        ask: takes an item and when it was due, ``time.perf_counter()``.
        items: one an arrival.
        arrivals: seconds after ``started``, rising.
        started: ``time.perf_counter()``.
        duration_s: nothing is asked after it; None: no end but that of the items.
    """
    tasks = []
    async with asyncio.TaskGroup() as asking:
        for at_s, item in zip(arrivals, items, strict=False):
            if duration_s is not None and at_s >= duration_s:
                break
            await asyncio.sleep(started + at_s - time.perf_counter())
            tasks.append(asking.create_task(ask(item, started + at_s)))
    return [task.result() for task in tasks]


def request_body(load: Load, prompt: Prompt) -> bytes:
    """The JSON of one request: greedy, as long as the prompt says."""
    body: dict[str, object] = {
        "model": load.model,
        "prompt": prompt.tokens,
        "max_tokens": prompt.max_tokens,
        "temperature": 0,
    }
    if load.fills_output:
        body["min_tokens"] = prompt.max_tokens
    if load.is_streamed:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return json.dumps(body | dict(load.options)).encode()
