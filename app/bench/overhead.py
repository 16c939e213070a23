"""What the way through costs: HTTP, key, admission and ledger over calling the engine itself.

On the hand-computable engine, so that the model's time is no part of it. Requests
alternate, one at a time; processor time is the API process's own, from /proc.
"""

import asyncio
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from app.bench.answers import read
from app.bench.finding import Finding
from app.bench.http import HttpClient
from app.bench.installation import Installation
from app.bench.load import ROUTE, Load, request_body
from app.bench.sides import MODEL
from app.bench.summary import Summary
from app.bench.workload import Lengths, Prompt, prompts
from app.rpc import engine_pb2 as pb
from app.rpc.client import EngineClient

# The engine sends the first token alone, then four at a time: a stream of 20 events.
STREAM_TOKENS = 77
PLAIN_TOKENS = 16
PROMPT_TOKENS = 128
VOCAB = 256
NUM_WARM_UP = 20
LATENCY = {name: f"{name}, HTTP / gRPC" for name in ("p50", "p99")}
CPU = {
    "plain": f"API processor time, plain, {PLAIN_TOKENS} tokens",
    "stream": f"API processor time, stream, {STREAM_TOKENS} tokens",
}
CASES = (*LATENCY.values(), *CPU.values())
TARGETS_MS = {"p50": 3.0, "p99": 10.0, "plain": 1.5, "stream": 4.0}


def overhead(models_dir: Path, num_requests: int) -> Iterator[Finding]:
    """Latency and processor time of an installation of the stub engine that serves ``MODEL``."""
    with Installation(models_dir, options=("--stub",)) as installation:
        yield from overhead_of(installation, num_requests)


def overhead_of(installation: Installation, num_requests: int) -> Iterator[Finding]:
    """As ``overhead``, of one that runs."""
    direct, through = asyncio.run(_latencies(installation, num_requests))
    for name, case in LATENCY.items():
        ours, other = getattr(through, name), getattr(direct, name)
        yield Finding("overhead", case, ours, other, "ms", ours - other, TARGETS_MS[name], "at most")
    for name, tokens in (("plain", PLAIN_TOKENS), ("stream", STREAM_TOKENS)):
        cpu_ms = asyncio.run(_api_cpu_ms(installation, num_requests, tokens, is_streamed=name == "stream"))
        yield Finding("overhead", CPU[name], cpu_ms, 0.0, "ms", cpu_ms, TARGETS_MS[name], "at most")


async def _latencies(installation: Installation, num_requests: int) -> tuple[Summary, Summary]:
    """Of direct calls and of requests over HTTP, milliseconds."""
    load = _load(is_streamed=False)
    client, engine = HttpClient(installation.url, installation.key), EngineClient(installation.engine_target)
    direct, through = [], []
    try:
        for prompt in islice(_prompts(PLAIN_TOKENS), NUM_WARM_UP + num_requests):
            started = time.perf_counter()
            async for _ in engine.generate(_engine_request(prompt)):
                pass
            direct.append((time.perf_counter() - started) * 1e3)
            answer = read(await client.post(ROUTE, request_body(load, prompt)))
            assert not answer.error, answer.error
            through.append(answer.latency_s * 1e3)
    finally:
        await client.aclose()
        await engine.aclose()
    return Summary.of(direct[NUM_WARM_UP:]), Summary.of(through[NUM_WARM_UP:])


async def _api_cpu_ms(installation: Installation, num_requests: int, tokens: int, *, is_streamed: bool) -> float:
    """Of the API process, a request, one request at a time."""
    client, load = HttpClient(installation.url, installation.key), _load(is_streamed=is_streamed)
    try:
        bodies = [request_body(load, prompt) for prompt in islice(_prompts(tokens), NUM_WARM_UP + num_requests)]
        for body in bodies[:NUM_WARM_UP]:
            await client.post(ROUTE, body)
        before = installation.uses()["api"].cpu_s
        for body in bodies[NUM_WARM_UP:]:
            answer = read(await client.post(ROUTE, body))
            assert not answer.error, answer.error
        return (installation.uses()["api"].cpu_s - before) * 1e3 / num_requests
    finally:
        await client.aclose()


def _load(*, is_streamed: bool) -> Load:
    return Load(MODEL, Lengths.of(1), Lengths.of(1), num_requests=1, is_streamed=is_streamed)


def _prompts(tokens: int) -> Iterator[Prompt]:
    return prompts(tokens, Lengths.of(PROMPT_TOKENS), Lengths.of(tokens), VOCAB)


def _engine_request(prompt: Prompt) -> pb.GenerateRequest:
    sampling = pb.Sampling(temperature=0.0, top_p=1.0, seed=1)
    return pb.GenerateRequest(
        request_id="bench", model=MODEL, prompt_tokens=prompt.tokens, max_tokens=prompt.max_tokens, sampling=sampling
    )
