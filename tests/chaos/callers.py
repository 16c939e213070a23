"""Callers that note exactly what they received, and nothing that they did not.

Each has a key of its own and sends one request after the other: streams and whole
answers, chats, two choices, classifications; some leave, some have a short deadline.
Every request carries a mark among the parameters that its usage row keeps, so that a
row is known to be its own even where no byte of the answer came back.
"""

import asyncio
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx

from app.modeling.registry import ModelCard

Ending = Literal["whole", "refused", "error", "left", "broken", "unreached", "hung", "cut short"]
# No answer takes so long: every request has a deadline.
HUNG_AFTER_S = 60.0
# After a refusal, so that callers do not only hear of an outage.
BREATH_S = 0.2
MAX_OUTPUT = 48
MAX_PROMPT = 80
MARKS_PER_CALLER = 2**20
# As a share of one, for a parameter that is a probability.
MARK_SCALE = 2**40


@dataclass(frozen=True, slots=True)
class Ask:
    """One request to be.

    Attributes:
        mark: Unlike every other request's.
        input_tokens: Of the prompt; None: only the server knows.
        max_output: Of all choices together.
        timeout_ms: Its own deadline; None: the server's.
        leave_after_s: When the caller goes away; None: it waits.
    """

    mark: int
    route: str
    body: dict[str, Any]
    input_tokens: int | None = None
    max_output: int = 0
    timeout_ms: int | None = None
    leave_after_s: float | None = None

    @property
    def is_stream(self) -> bool:
        """Whether the answer comes in chunks."""
        return bool(self.body.get("stream"))


@dataclass(slots=True)
class Seen:
    """What the caller of one request received.

    Attributes:
        request_id: From the answer's headers; None: there was no answer.
        error: Of an answer that is none, or of a stream that broke off with a word.
        usage: As the answer states it: tokens in and out.
        finish_reason: Of the first choice.
        chunks: Tokens that each event of the stream named.
        is_done: ``[DONE]`` came.
    """

    ask: Ask
    ending: Ending = "broken"
    request_id: str | None = None
    status: int | None = None
    error: str | None = None
    usage: tuple[int, int] | None = None
    finish_reason: str | None = None
    chunks: list[int] = field(default_factory=list)
    is_done: bool = False

    @property
    def num_received(self) -> int:
        """Output tokens that events named."""
        return sum(self.chunks)

    @property
    def last_chunk(self) -> int:
        """Tokens of the last event that carried any."""
        return next((tokens for tokens in reversed(self.chunks) if tokens), 0)

    def __str__(self) -> str:
        what = "stream" if self.ask.is_stream else "whole answer"
        end = f"{self.status or 'no status'}{f' {self.error}' if self.error else ''}, {self.ending}"
        return (
            f"request {self.request_id or 'of unknown id'} (mark {self.ask.mark}, {self.ask.route}, {what}): {end};"
            f" received {self.num_received} tokens in {len(self.chunks)} chunks, usage {self.usage},"
            f" finish reason {self.finish_reason}"
        )

    def read_event(self, line: str) -> None:
        """Takes a line of a stream."""
        if not line.startswith("data: "):
            return
        data = line.removeprefix("data: ")
        if data == "[DONE]":
            self.is_done = True
            return
        event = json.loads(data)
        self.error = (event.get("error") or {}).get("code", self.error)
        if choices := event.get("choices"):
            self.chunks.append(sum(map(_num_named, choices)))
        self._read_end(event)

    def read_body(self, raw: bytes) -> None:
        """Takes the whole body."""
        body = json.loads(raw)
        self.error = (body.get("error") or {}).get("code")
        self._read_end(body)

    def _read_end(self, body: dict[str, Any]) -> None:
        for choice in body.get("choices") or ():
            if choice.get("finish_reason") and (choice["index"] == 0 or self.finish_reason is None):
                self.finish_reason = choice["finish_reason"]
        if usage := body.get("usage"):
            self.usage = usage["prompt_tokens"], usage.get("completion_tokens", 0)


class Callers:
    """As many as there are keys, at work whenever they are told to.

    Args:
        url: Without /v1.
        keys: In full.
        cards: Models to ask.
        seed: The same gives the same requests, though not the same answers in time.
    """

    def __init__(self, url: str, keys: Sequence[str], cards: Sequence[ModelCard], seed: int) -> None:
        # One process takes in all connections that come at once: some are opened anew, so that each has its share.
        limits = httpx.Limits(max_connections=2 * len(keys), max_keepalive_connections=len(keys) // 4)
        self._client = httpx.AsyncClient(base_url=f"{url}/v1", timeout=HUNG_AFTER_S, limits=limits)
        self._workloads = [(key, asks(seed, caller, cards)) for caller, key in enumerate(keys)]

    async def work(self, until: asyncio.Event) -> list[Seen]:
        """What was seen of the requests that began before ``until`` was set."""
        seen: list[Seen] = []
        async with asyncio.TaskGroup() as group:
            for key, workload in self._workloads:
                group.create_task(self._call(key, workload, until, seen))
        return seen

    async def aclose(self) -> None:
        """Gives the connections back."""
        await self._client.aclose()

    async def _call(self, key: str, workload: Iterator[Ask], until: asyncio.Event, seen: list[Seen]) -> None:
        while not until.is_set():
            this = Seen(next(workload))
            seen.append(this)
            this.ending = await self._send(this, key)
            if this.ending in {"refused", "unreached"}:
                await asyncio.sleep(BREATH_S)

    async def _send(self, seen: Seen, key: str) -> Ending:
        try:
            async with asyncio.timeout(seen.ask.leave_after_s):
                await self._receive(seen, key)
        except httpx.ConnectError:
            return "unreached"
        except httpx.TimeoutException:
            return "hung"
        except TimeoutError:
            return "left"
        except httpx.TransportError:
            return "broken"
        if seen.status != httpx.codes.OK:
            return "refused"
        if seen.error is not None:
            return "error"
        return "whole" if seen.is_done or not seen.ask.is_stream else "cut short"

    async def _receive(self, seen: Seen, key: str) -> None:
        ask = seen.ask
        headers = {"authorization": f"Bearer {key}"}
        if ask.timeout_ms is not None:
            headers["x-request-timeout-ms"] = str(ask.timeout_ms)
        async with self._client.stream("POST", ask.route, json=ask.body, headers=headers) as response:
            seen.status, seen.request_id = response.status_code, response.headers.get("x-request-id")
            if ask.is_stream and seen.status == httpx.codes.OK:
                async for line in response.aiter_lines():
                    seen.read_event(line)
            else:
                seen.read_body(await response.aread())


def asks(seed: int, caller: int, cards: Sequence[ModelCard]) -> Iterator[Ask]:
    """Requests of one caller, without end.

    Args:
        seed: The same gives the same.
        caller: Its number.
        cards: What is served: at least one that writes and one that classifies.
    """
    rng = random.Random(seed * 1_000_003 + caller)
    writers = [card for card in cards if card.kind == "generation"]
    readers = [card for card in cards if card.kind == "classification"]
    for mark in range(caller * MARKS_PER_CALLER, (caller + 1) * MARKS_PER_CALLER):
        sort = rng.choices(("completion", "chat", "classification"), (60, 20, 20))[0]
        if sort == "completion":
            route, body, more = _completion(rng, rng.choice(writers), mark)
        elif sort == "chat":
            route, body, more = _chat(rng, rng.choice(writers), mark)
        else:
            route, body, more = _classification(rng, rng.choice(readers), mark)
        fate = rng.random()
        leave_after_s = rng.uniform(0, 1.5) if fate < 0.12 else None
        timeout_ms = rng.randint(20, 1500) if 0.12 <= fate < 0.2 else None
        yield Ask(mark, route, body, *more, timeout_ms=timeout_ms, leave_after_s=leave_after_s)


def mark_of(parameters: dict[str, Any]) -> int | None:
    """The mark among the parameters of a usage row."""
    if "seed" in parameters:
        return int(parameters["seed"])
    if "abstain_below" in parameters:
        return round(float(parameters["abstain_below"]) * MARK_SCALE)
    return None


_Parts = tuple[str, dict[str, Any], tuple[int | None, int]]


def _completion(rng: random.Random, card: ModelCard, mark: int) -> _Parts:
    prompt = [rng.randrange(card.vocab_size) for _ in range(rng.randint(1, MAX_PROMPT))]
    max_tokens, n = rng.randint(1, MAX_OUTPUT), rng.choice((1, 1, 2))
    body = {"model": card.name, "prompt": prompt, "max_tokens": max_tokens, "n": n, "seed": mark, "logprobs": 0}
    return "/completions", body | _streaming(rng), (len(prompt), n * max_tokens)


def _chat(rng: random.Random, card: ModelCard, mark: int) -> _Parts:
    message = {"role": "user", "content": "Good morrow, my lord. " * rng.randint(1, 3)}
    max_tokens = rng.randint(1, MAX_OUTPUT)
    body = {"model": card.name, "messages": [message], "max_completion_tokens": max_tokens, "seed": mark}
    return "/chat/completions", body | {"logprobs": True} | _streaming(rng), (None, max_tokens)


def _classification(rng: random.Random, card: ModelCard, mark: int) -> _Parts:
    texts = [[rng.randrange(card.vocab_size) for _ in range(rng.randint(1, 24))] for _ in range(rng.randint(1, 3))]
    words = [f"card {number} of mine {'is lost ' * len(text)}" for number, text in enumerate(texts)]
    return "/classifications", {"model": card.name, "input": words, "abstain_below": mark / MARK_SCALE}, (None, 0)


def _streaming(rng: random.Random) -> dict[str, Any]:
    return {"stream": True, "stream_options": {"include_usage": True}} if rng.random() < 0.6 else {}


def _num_named(choice: dict[str, Any]) -> int:
    logprobs = choice.get("logprobs") or {}
    return len(logprobs.get("tokens") or logprobs.get("content") or ())
