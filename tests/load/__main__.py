"""64 callers at once, mixed, for a minute: no error, and the ledger says what the callers counted.

    python -m tests.load                          # starts an installation of its own
    python -m tests.load --base-url … --api-key …  # or uses one that runs

Each caller draws its next request from a fixed mix of streams, whole answers and
classifications over all models. Every token that an answer claims is added up by
the caller and compared with GET /v1/usage; the memory of an installation started
here is sampled. Exits 1 if anything failed or differs.
"""

import argparse
import asyncio
import json
import sys
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

import openai

from tests.installation import Installation

PROMPTS = {
    "generation": ("ROMEO:", "To be, or not", "明月", "春眠不覺曉"),
    "classification": ("My card has not arrived", "top up"),
}
CLASSIFICATION_BATCH = 4

Books = dict[str, dict[str, int]]


@dataclass(slots=True)
class Tally:
    """What the callers saw."""

    requests: Counter[str] = field(default_factory=Counter)
    input_tokens: Counter[str] = field(default_factory=Counter)
    output_tokens: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    latencies_s: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    first_chunks_s: list[float] = field(default_factory=list)

    def add(self, model: str, input_tokens: int, output_tokens: int) -> None:
        self.requests[model] += 1
        self.input_tokens[model] += input_tokens
        self.output_tokens[model] += output_tokens


def main() -> None:
    arguments = _arguments()
    if arguments.base_url:
        report = asyncio.run(_load(arguments.base_url, arguments.api_key, arguments, None))
    else:
        with Installation() as own:
            report = asyncio.run(_load(own.url, own.key, arguments, own))
    sys.stdout.write((json.dumps(report) if arguments.json else _table(report)) + "\n")
    sys.exit(0 if report["ok"] else 1)


async def _load(base_url: str, api_key: str, arguments: argparse.Namespace, own: Installation | None) -> dict[str, Any]:
    async with openai.AsyncOpenAI(base_url=base_url, api_key=api_key, timeout=120, max_retries=0) as client:
        kinds = {model.id: str((model.model_extra or {})["kind"]) for model in (await client.models.list()).data}
        before = await _ledger(client)
        tally = Tally()
        memory: list[dict[str, int]] = []
        deadline = time.monotonic() + arguments.seconds
        sampler = asyncio.create_task(own.sample_memory(memory)) if own else None
        callers = [_caller(client, kinds, number, deadline, tally) for number in range(arguments.concurrency)]
        started = time.monotonic()
        await asyncio.gather(*callers)
        seconds = time.monotonic() - started
        if sampler:
            sampler.cancel()
        after = await _ledger(client)
    return _report(tally, before, after, memory, seconds)


async def _caller(
    client: openai.AsyncOpenAI, kinds: dict[str, str], number: int, deadline: float, tally: Tally
) -> None:
    turn = number
    while time.monotonic() < deadline:
        model = sorted(kinds)[turn % len(kinds)]
        what = "classify" if kinds[model] == "classification" else ("stream", "complete", "chat")[turn // 3 % 3]
        started = time.monotonic()
        try:
            await _ACTIONS[what](client, model, turn, tally)
        except (openai.APIError, AssertionError) as error:
            tally.errors[f"{what} {type(error).__name__}: {str(error)[:120]}"] += 1
        tally.latencies_s[what].append(time.monotonic() - started)
        turn += 1


async def _stream(client: openai.AsyncOpenAI, model: str, turn: int, tally: Tally) -> None:
    started, first = time.monotonic(), None
    with_tokens = turn % 2 == 0  # then each token is named, and can be counted
    stream = await client.completions.create(
        model=model,
        prompt=PROMPTS["generation"][turn % 4],
        max_tokens=16 + turn % 5 * 12,
        temperature=turn % 2,
        seed=turn,
        logprobs=0 if with_tokens else openai.omit,
        stream=True,
        stream_options={"include_usage": True},
    )
    usage, num_received = None, 0
    async for chunk in stream:
        first = first or time.monotonic()
        usage = chunk.usage or usage
        num_received += sum(len(choice.logprobs.tokens or ()) for choice in chunk.choices if choice.logprobs)
    assert usage, "a stream ended without usage"
    assert not with_tokens or num_received == usage.completion_tokens, "a stream's usage is not what it carried"
    tally.first_chunks_s.append((first or started) - started)
    tally.add(model, usage.prompt_tokens, usage.completion_tokens)


async def _complete(client: openai.AsyncOpenAI, model: str, turn: int, tally: Tally) -> None:
    answer = await client.completions.create(
        model=model, prompt=PROMPTS["generation"][turn % 4], max_tokens=24, n=1 + turn % 2, seed=turn
    )
    assert answer.usage, "an answer without usage"
    tally.add(model, answer.usage.prompt_tokens, answer.usage.completion_tokens)


async def _chat(client: openai.AsyncOpenAI, model: str, turn: int, tally: Tally) -> None:
    answer = await client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": "Speak."}], max_completion_tokens=24, seed=turn
    )
    assert answer.usage, "an answer without usage"
    tally.add(model, answer.usage.prompt_tokens, answer.usage.completion_tokens)


async def _classify(client: openai.AsyncOpenAI, model: str, turn: int, tally: Tally) -> None:
    texts = [f"{PROMPTS['classification'][turn % 2]} {n}" for n in range(1 + turn % CLASSIFICATION_BATCH)]
    body = await client.post("/classifications", body={"model": model, "input": texts}, cast_to=dict[str, Any])
    assert len(body["data"]) == len(texts), "a classification lost a text"
    tally.add(model, body["usage"]["prompt_tokens"], 0)


_ACTIONS = {"stream": _stream, "complete": _complete, "chat": _chat, "classify": _classify}


async def _ledger(client: openai.AsyncOpenAI) -> Books:
    """Requests and tokens by model, from the usage API."""
    query = {"group_by": "model", "bucket": "month"}
    page = await client.get("/usage", cast_to=dict[str, Any], options={"params": query})
    totals: Books = defaultdict(lambda: defaultdict(int))
    for line in page["data"]:
        for name in ("requests", "input_tokens", "output_tokens"):
            totals[line["model"]][name] += line[name]
    return totals


def _report(tally: Tally, before: Books, after: Books, memory: list[dict[str, int]], seconds: float) -> dict[str, Any]:
    books = {}
    for model in sorted(tally.requests):
        counted = {
            "requests": tally.requests[model],
            "input_tokens": tally.input_tokens[model],
            "output_tokens": tally.output_tokens[model],
        }
        billed = {name: after[model][name] - before.get(model, {}).get(name, 0) for name in counted}
        books[model] = {"counted": counted, "billed": billed, "equal": counted == billed}
    return {
        "ok": not tally.errors and bool(books) and all(book["equal"] for book in books.values()),
        "seconds": round(seconds, 1),
        "requests": sum(tally.requests.values()),
        "requests_per_s": round(sum(tally.requests.values()) / seconds, 1),
        "output_tokens_per_s": round(sum(tally.output_tokens.values()) / seconds, 1),
        "errors": dict(tally.errors),
        "latency_ms": {what: _percentiles(values) for what, values in sorted(tally.latencies_s.items())},
        "time_to_first_chunk_ms": _percentiles(tally.first_chunks_s),
        "books": books,
        "memory_mib": memory,
    }


def _percentiles(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    if not ordered:
        return {}
    return {f"p{p}": round(ordered[min(len(ordered) - 1, len(ordered) * p // 100)] * 1e3, 1) for p in (50, 95, 99)}


def _table(report: dict[str, Any]) -> str:
    lines = [
        f"{report['requests']} requests in {report['seconds']} s: {report['requests_per_s']} requests/s, "
        f"{report['output_tokens_per_s']} output tokens/s"
    ]
    for what, figures in (*report["latency_ms"].items(), ("first chunk", report["time_to_first_chunk_ms"])):
        lines.append(f"  {what:12}" + "".join(f"{name} {value:8.1f} ms   " for name, value in figures.items()))
    for model, book in report["books"].items():
        verdict = "equal" if book["equal"] else "DIFFERENT"
        lines.append(f"  {model:18} counted {book['counted']}  billed {book['billed']}  {verdict}")
    lines += [f"  memory {sample}" for sample in report["memory_mib"]]
    lines += [f"  ERROR x{count}: {error}" for error, count in report["errors"].items()]
    lines.append("ok" if report["ok"] else "FAILED")
    return "\n".join(lines)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.load", description="Load with the books checked.")
    parser.add_argument("--base-url", help="of a running installation, with /v1; else one is started")
    parser.add_argument("--api-key", default="", help="for --base-url")
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


main()
