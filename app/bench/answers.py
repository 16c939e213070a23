"""Reads answers of the completions route once they are all there: latencies, tokens, errors.

A stream's latencies are those of events that carry text. A server may put several
tokens into one event: then there are fewer gaps between events, each longer; the time
per output token does not depend on that.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from app.bench.http import Exchange

DATA = b"data: "
DONE = b"[DONE]"
OK = 200


@dataclass(frozen=True, slots=True)
class Answered:
    """One answer; seconds are counted from when the request was due.

    Attributes:
        error: Code or HTTP status; empty where it succeeded.
        first_s: To the first text; None without a stream.
        gaps_s: Between events that carry text.
        latency_s: To the last byte.
        finish_reason: Of the first choice.
    """

    latency_s: float
    error: str = ""
    first_s: float | None = None
    gaps_s: tuple[float, ...] = ()
    input_tokens: int = 0
    output_tokens: int = 0
    finish_reason: str = ""
    text: str = ""

    @property
    def per_token_s(self) -> float | None:
        """Time per output token after the first; None where there is no second."""
        if self.first_s is None or self.output_tokens < 2:
            return None
        return sum(self.gaps_s) / (self.output_tokens - 1)


def read(exchange: Exchange) -> Answered:
    """Make sense of an exchange, streamed or not."""
    latency_s = exchange.ended_at - exchange.due_at
    if exchange.failure:
        return Answered(latency_s, error=exchange.failure)
    body = b"".join(part for _, part in exchange.parts)
    if exchange.status != OK:
        return Answered(latency_s, error=_code(body) or str(exchange.status))
    if body.startswith((DATA, b":")):
        return _read_stream(exchange, latency_s)
    return _read_whole(body, latency_s)


def events(exchange: Exchange) -> Iterator[dict[str, Any]]:
    """The objects that a stream's events carry."""
    return (_object(line.removeprefix(DATA)) for _, line in _lines(exchange.parts) if not line.endswith(DONE))


def _read_whole(body: bytes, latency_s: float) -> Answered:
    answer = _object(body)
    if not answer:  # a page, of another address than the interface's
        return Answered(latency_s, error="no JSON")
    return _with_usage(Answered(latency_s, finish_reason=_reason(answer), text=_text(answer)), _usage(answer))


def _read_stream(exchange: Exchange, latency_s: float) -> Answered:
    times: list[float] = []
    texts: list[str] = []
    usage: dict[str, Any] = {}
    reason, is_done = "", False
    for at, line in _lines(exchange.parts):
        payload = line.removeprefix(DATA)
        if payload == DONE:
            is_done = True
            continue
        event = _object(payload)
        if "error" in event:
            return Answered(latency_s, error=_code(payload) or "broke off")
        if text := _text(event):
            times.append(at)
            texts.append(text)
        usage = usage or _usage(event)
        reason = reason or _reason(event)
    gaps = tuple(later - sooner for sooner, later in pairwise(times))
    first_s = times[0] - exchange.due_at if times else None
    error = "" if is_done else "broke off"
    answered = Answered(latency_s, error, first_s, gaps, finish_reason=reason, text="".join(texts))
    return _with_usage(answered, usage)


def _with_usage(answered: Answered, usage: dict[str, Any]) -> Answered:
    tokens = usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0)
    return replace(answered, input_tokens=tokens[0], output_tokens=tokens[1])


def _lines(parts: Iterable[tuple[float, bytes]]) -> Iterator[tuple[float, bytes]]:
    """Lines of data with the arrival of their last byte; comments are left out."""
    rest = b""
    for at, part in parts:
        *whole, rest = (rest + part).split(b"\n")
        for line in whole:
            if line.startswith(DATA):
                yield at, line.rstrip(b"\r")


def _object(text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _text(event: dict[str, Any]) -> str:
    return "".join(choice.get("text") or "" for choice in event.get("choices") or ())


def _reason(event: dict[str, Any]) -> str:
    return next((choice["finish_reason"] for choice in event.get("choices") or () if choice.get("finish_reason")), "")


def _usage(event: dict[str, Any]) -> dict[str, Any]:
    return event.get("usage") or {}


def _code(body: bytes) -> str:
    error = _object(body).get("error")
    return str(error.get("code") or error.get("type") or "") if isinstance(error, dict) else ""
