"""From deltas to an answer: whole or streamed, counted and settled before it is complete.

A whole answer is gathered, settled and then sent. A stream sends its status line once
the first token exists, counts what each event carries right after it was handed to
the connection, and settles before ``[DONE]``. A client that leaves pays for the prompt
and what it was sent; a request that failed before anything was sent costs nothing.

Both are ASGI responses and do all their work when they are called, so an error before
the first byte still becomes an ordinary error answer.
"""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from fastapi import Response
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

from app.api import sse
from app.api.generation import ClientGone, Delta, FinishReason, Generation
from app.api.generation_schemas import PromptTokensDetails, Usage
from app.api.middleware import record_of
from app.api.stops import Token
from app.errors import AppError, DeadlineExceeded
from app.metering import Meter
from app.rpc import engine_pb2 as pb
from app.settlements import BROKEN_OFF
from app.telemetry import CLIENTS_GONE, FIRST_TOKEN_SECONDS, get_logger, labelled

log = get_logger(__name__)

ABORTED = "aborted"
SLOW_READER_S = 30.0
"""After its deadline; a reservation lasts a minute longer than the deadline."""
BUDGET_HEADER = "x-budget-stopped"
"""The answer ends (of a stream: will have ended) after so many output tokens, for which the budget pays."""


@dataclass(slots=True)
class Choice:
    """One whole choice, as far as it has come."""

    index: int
    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    prompt_scores: tuple[pb.TokenLogprob, ...] = ()
    finish_reason: FinishReason = "length"

    @property
    def is_whole(self) -> bool:
        """Whether it ended by itself; of a grammar it is then a whole sentence."""
        return self.finish_reason == "stop"

    @property
    def mean_logprob(self) -> float:
        """For choosing among candidates; minus infinity without tokens."""
        scores = [token.score.logprob for token in self.tokens if token.score is not None]
        return sum(scores) / len(scores) if scores else float("-inf")

    def add(self, delta: Delta) -> None:
        """Appends what the choice gained."""
        self.text += delta.piece.text
        self.tokens += delta.piece.tokens
        self.prompt_scores = self.prompt_scores or delta.prompt_scores
        self.finish_reason = delta.finish_reason or self.finish_reason


class Renderer(Protocol):
    """Writes one kind of answer in its wire format."""

    def whole(self, choices: Sequence[Choice], usage: Usage) -> BaseModel:
        """The JSON answer."""
        ...

    def opening(self) -> Iterable[BaseModel]:
        """Events before the first text."""
        ...

    def chunk(self, delta: Delta) -> BaseModel:
        """The event of a delta."""
        ...

    def closing(self, usage: Usage) -> BaseModel | None:
        """The event after the last text, if one was asked for."""
        ...


@dataclass(frozen=True, slots=True)
class Work:
    """An admitted request, ready to run.

    Attributes:
        num_prompts: Of the request.
        num_choices: Returned per prompt.
        num_candidates: Run per prompt; the best become the choices.
        budget: Output tokens that are paid for, where they are fewer than were asked for.
        has_grammar: A candidate that is cut short is worse than any that is whole.
    """

    generation: Generation
    renderer: Renderer
    meter: Meter
    num_prompts: int
    num_choices: int
    num_candidates: int
    budget: int | None = None
    has_grammar: bool = False

    def rank(self, candidate: Choice) -> tuple[bool, float]:
        """The higher the better, among the candidates of a prompt."""
        return self.has_grammar and candidate.is_whole, candidate.mean_logprob

    def report(self) -> None:
        """Tells the meter all that the engine has said until now."""
        efforts = self.generation.efforts
        # The candidates of a prompt share it, and it is billed once: as the first found it.
        cached_tokens = sum(effort.cached_tokens for effort in efforts[:: self.num_candidates])
        self.meter.report(cached_tokens, sum(effort.engine_ms for effort in efforts))

    async def settle(self, finish_reason: str) -> None:
        """Writes the usage row, once."""
        self.report()
        await self.meter.settle(finish_reason)


def usage_of(meter: Meter) -> Usage:
    """The answer's usage block: exactly what is billed."""
    return Usage(
        prompt_tokens=meter.input_tokens,
        completion_tokens=meter.output_tokens,
        total_tokens=meter.input_tokens + meter.output_tokens,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=meter.cached_tokens),
    )


def json_response(body: BaseModel) -> Response:
    """A JSON answer with the fields of ``body`` that were set."""
    return Response(body.__pydantic_serializer__.to_json(body, exclude_unset=True), media_type="application/json")


class WholeAnswer(Response):
    """Runs the work, settles it and sends one JSON body."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers; whatever the engine fails with is raised, as nothing has been sent."""
        work = self._work
        try:
            candidates = await self._gather(scope, receive)
            choices = _best(candidates, work)
            work.meter.deliver(sum(len(choice.tokens) for choice in choices))
            work.report()
            # Rendered first: what cannot be shown is not billed.
            response = json_response(work.renderer.whole(choices, usage_of(work.meter)))
            await work.settle(choices[0].finish_reason)
        except ClientGone:
            CLIENTS_GONE.labels(work.meter.model).inc()
            await work.settle(ABORTED)
            return
        finally:
            await work.meter.release()
        if work.budget is not None and any(choice.finish_reason == "length" for choice in choices):
            record_of(scope).headers[BUDGET_HEADER] = str(work.budget)
        await response(scope, receive, send)

    async def _gather(self, scope: Scope, receive: Receive) -> list[Choice]:
        work = self._work
        candidates = [Choice(index) for index in range(work.num_prompts * work.num_candidates)]
        is_first = True
        async with work.generation as generation:
            generation.watch(receive)
            async for delta in generation.deltas():
                assert delta is not None  # only a stream asks to hear of silence
                if is_first:
                    _observe_first_token(scope, work.meter)
                    is_first = False
                candidates[delta.choice].add(delta)
        return candidates


class StreamedAnswer(Response):
    """Runs the work and sends server-sent events.

    Args:
        work: What to run; as many candidates as choices.
        silence_s: A comment keeps the connection open after so long without an event.
    """

    def __init__(self, work: Work, silence_s: float) -> None:
        self._work = work
        self._silence_s = silence_s
        self._is_open = False
        self._finish_reason: str | None = None
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Streams the answer; raises what failed while the status line has not been sent."""
        work, outcome = self._work, BROKEN_OFF
        try:
            async with asyncio.timeout(work.generation.remaining_s + SLOW_READER_S):
                await self._relay(scope, receive, send)
            # The engine's work has ended here; only now is the row complete.
            await work.settle(self._finish_reason or BROKEN_OFF)
            await self._close(send)
        except ClientGone:
            CLIENTS_GONE.labels(work.meter.model).inc()
            outcome, self._is_open = ABORTED, True
        except TimeoutError:
            # It reads so slowly that what is held for it would be freed while it goes on.
            outcome = ABORTED
            raise DeadlineExceeded("The client did not read its answer in time.") from None
        except AppError as error:
            if not self._is_open:
                raise
            log.warning("stream.broken_off", code=error.code)
            await _send(send, sse.error_event(error))
        finally:
            if self._is_open:
                await work.settle(outcome)  # nothing more to do after a whole answer
            else:
                await work.meter.release()
        await _send(send, b"", more=False)

    async def _relay(self, scope: Scope, receive: Receive, send: Send) -> None:
        work = self._work
        async with work.generation as generation:
            generation.watch(receive)
            async for delta in generation.deltas(self._silence_s):
                if delta is None:
                    if self._is_open:
                        await _send(send, sse.KEEP_ALIVE)
                    continue
                if not self._is_open:
                    _observe_first_token(scope, work.meter)
                    if work.budget is not None:
                        record_of(scope).headers[BUDGET_HEADER] = str(work.budget)
                    await self._open(send)
                await self._show(delta, send)

    async def _open(self, send: Send) -> None:
        self._is_open = True
        self._work.meter.begin_stream()
        headers = [(name.encode(), value.encode()) for name, value in sse.HEADERS.items()]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        opening = b"".join(sse.event(body) for body in self._work.renderer.opening())
        if opening:
            await _send(send, opening)

    async def _show(self, delta: Delta, send: Send) -> None:
        work = self._work
        if delta.piece.text or delta.piece.tokens or delta.prompt_scores or delta.finish_reason:
            await _send(send, sse.event(work.renderer.chunk(delta)))
        work.report()
        work.meter.deliver(len(delta.piece.tokens))
        # A usage row has one finish reason; several choices share that of the first.
        if delta.finish_reason and (delta.choice == 0 or self._finish_reason is None):
            self._finish_reason = delta.finish_reason

    async def _close(self, send: Send) -> None:
        closing = self._work.renderer.closing(usage_of(self._work.meter))
        await _send(send, (b"" if closing is None else sse.event(closing)) + sse.DONE)


async def _send(send: Send, body: bytes, *, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})


def _best(candidates: Sequence[Choice], work: Work) -> list[Choice]:
    """The choices to return: per prompt, the candidates of the highest rank."""
    if work.num_candidates == work.num_choices:
        return list(candidates)
    choices = []
    for first in range(0, len(candidates), work.num_candidates):
        group = candidates[first : first + work.num_candidates]
        choices += sorted(group, key=work.rank, reverse=True)[: work.num_choices]
    for index, choice in enumerate(choices):
        choice.index = index
    return choices


def _observe_first_token(scope: Scope, meter: Meter) -> None:
    labelled(FIRST_TOKEN_SECONDS, meter.model).observe(record_of(scope).elapsed_ms / 1000)
