"""The engine streams of one request, merged into one stream of certain text.

A request for several choices or prompts runs as that many engine calls, at most 16 at
a time. Their pieces go through one mailbox in the order in which they happen; its size
is bounded by the output that was admitted. Leaving the ``async with`` block, for
whatever reason, cancels what still runs.
"""

import asyncio
import hashlib
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Literal, Self

from starlette.types import Receive

from app.api.call import Call
from app.api.generation_schemas import GenerationBody
from app.api.grammars import engine_grammar
from app.api.mailbox import Mailbox
from app.api.served import ServedModel
from app.api.stops import Piece, TextAssembler
from app.errors import BadRequest, ContextLengthExceeded, DeadlineExceeded
from app.rpc import engine_pb2 as pb
from app.rpc.client import GRAMMAR_PARAM, EngineClient
from app.silence import Silence

FinishReason = Literal["stop", "length"]
MAX_CONCURRENT_SEQUENCES = 16
_SEED_MASK = 2**64 - 1
# A seed of ours survives every JSON reader, JavaScript's numbers included.
_SEED_BITS = 53
# The engine's nucleus is in (0, 1]; so small a mass holds the likeliest token alone.
_SMALLEST_TOP_P = 1e-6


class ClientGone(Exception):
    """The client closed its connection before the answer was complete."""


@dataclass(frozen=True, slots=True)
class SequenceSpec:
    """One engine call and how its tokens become text.

    Attributes:
        choice: Index of the choice in the answer.
        request: For the engine; its deadline is set when it starts.
        max_tokens: Asked output; 0 asks for the prompt's scores only.
        grammar_param: Under which name the caller asked for the request's grammar, if there is one.
    """

    choice: int
    served: ServedModel
    request: pb.GenerateRequest
    stops: tuple[str, ...]
    max_tokens: int
    grammar_param: str | None = None


@dataclass(frozen=True, slots=True)
class Delta:
    """What one choice gained.

    Attributes:
        piece: Certain text and the tokens it completes; may be empty.
        finish_reason: Set in the last delta of a choice, and only there.
        prompt_scores: In the first delta, where asked for.
    """

    choice: int
    piece: Piece
    finish_reason: FinishReason | None = None
    prompt_scores: tuple[pb.TokenLogprob, ...] = ()


@dataclass(slots=True)
class Effort:
    """What one sequence has cost the engine so far, as its newest chunk says.

    Attributes:
        cached_tokens: Prompt tokens served from a cache.
        engine_ms: Accelerator time.
    """

    cached_tokens: int = 0
    engine_ms: float = 0.0


class Generation:
    """A running request; use as ``async with``, then iterate ``deltas``.

    Args:
        engine: Where the sequences run.
        specs: What to run, one per choice.
        timeout_s: From now; passed on to the engine.

    Attributes:
        efforts: By choice. They hold whatever the engine has said, also of tokens whose
            text was never certain and of those that nobody read any more.
    """

    def __init__(self, engine: EngineClient, specs: Sequence[SequenceSpec], timeout_s: float) -> None:
        self._engine = engine
        self._specs = specs
        self.efforts = [Effort() for _ in specs]
        self._deadline = time.monotonic() + timeout_s
        # Each sequence puts at most one item per token, its last delta and its end; the
        # watcher of the connection puts one, and so does silence, into an empty mailbox.
        # Hence nothing ever waits to put.
        size = sum(spec.request.max_tokens + 3 for spec in specs) + 2
        self._mailbox: Mailbox[Delta | asyncio.Task[None] | None] = Mailbox(size)
        self._running = asyncio.Semaphore(MAX_CONCURRENT_SEQUENCES)
        self._tasks: list[asyncio.Task[None]] = []
        self._watcher: asyncio.Task[None] | None = None
        self._is_client_gone = False

    async def __aenter__(self) -> Self:
        for spec in self._specs:
            task = asyncio.create_task(self._run(spec))
            task.add_done_callback(self._mailbox.put)
            self._tasks.append(task)
        return self

    async def __aexit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        tasks = [*self._tasks, self._watcher] if self._watcher else self._tasks
        for task in tasks:
            task.cancel()
        # Waits until each has closed its engine stream; their errors were seen in the mailbox.
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def remaining_s(self) -> float:
        """Until its deadline; below zero after it."""
        return self._deadline - time.monotonic()

    def watch(self, receive: Receive) -> None:
        """Notices from now on when the client closes the connection; its body must have been read."""
        self._watcher = asyncio.create_task(self._watch(receive))

    async def deltas(self, silence_s: float | None = None) -> AsyncIterator[Delta | None]:
        """All deltas of all choices in the order in which they happen.

        Args:
            silence_s: Yields None each time nothing happened for so long.

        Raises:
            ClientGone: The client left.
            AppError: The engine refused, failed or was too slow.
        """
        num_running = len(self._tasks)
        silence = None if silence_s is None else Silence(silence_s, self._tell_silence)
        try:
            while num_running:
                item = await self._mailbox.take()
                if self._is_client_gone:
                    raise ClientGone
                if silence is not None:
                    silence.hear()
                if isinstance(item, Delta) or item is None:
                    yield item
                else:
                    num_running -= 1
                    item.result()  # raises what the sequence failed with
        finally:
            if silence is not None:
                silence.close()

    def _tell_silence(self) -> None:
        if not self._mailbox:
            self._mailbox.put(None)

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._is_client_gone = True
        self._mailbox.put(None)

    async def _run(self, spec: SequenceSpec) -> None:
        async with self._running:
            spec.request.deadline_ms = self._remaining_ms()
            stream = self._engine.generate(spec.request)
            async with aclosing(stream):
                try:
                    async for delta in _assembled(spec, stream, self.efforts[spec.choice]):
                        self._mailbox.put(delta)
                except BadRequest as error:
                    raise _in_callers_words(error, spec) from None

    def _remaining_ms(self) -> int:
        remaining_ms = int((self._deadline - time.monotonic()) * 1000)
        if remaining_ms < 1:
            raise DeadlineExceeded("The request's deadline passed while it waited for its turn.")
        return remaining_ms


def _in_callers_words(error: BadRequest, spec: SequenceSpec) -> BadRequest:
    """The engine's refusal with the parameter's name as the caller knows it."""
    if error.param != GRAMMAR_PARAM:
        return error
    return BadRequest(error.message, param=spec.grammar_param)


async def _assembled(
    spec: SequenceSpec, stream: AsyncIterator[pb.GenerateChunk], effort: Effort
) -> AsyncIterator[Delta]:
    """The deltas of one sequence; ends at a stop string, before the engine does. Keeps ``effort`` up to date."""
    detokenizer = spec.served.tokenizer.detokenizer(spec.request.prompt_tokens)
    assembler = TextAssembler(detokenizer, spec.stops, spec.request.min_tokens)
    is_first = True
    async for chunk in stream:
        # What was found in the cache is known once, the time grows.
        effort.cached_tokens = max(effort.cached_tokens, chunk.cached_tokens)
        effort.engine_ms = chunk.accelerator_ms
        prompt_scores = tuple(chunk.prompt_logprobs)
        if spec.max_tokens == 0:
            yield Delta(spec.choice, Piece("", ()), "length", prompt_scores)
            return
        piece = assembler.push_all(chunk.tokens, chunk.logprobs, is_last=bool(chunk.finish_reason))
        finish = _finish_reason(spec, assembler, chunk)
        # The first chunk is passed on even if no text is certain yet: the answer has begun.
        if is_first or finish or piece.tokens or piece.text:
            yield Delta(spec.choice, piece, finish, prompt_scores)
        if finish:
            return
        is_first = False


def _finish_reason(spec: SequenceSpec, assembler: TextAssembler, chunk: pb.GenerateChunk) -> FinishReason | None:
    if assembler.is_stopped:
        # Cut short, a sentence of a grammar is not whole.
        return "stop" if spec.grammar_param is None else "length"
    if chunk.finish_reason:
        return "stop" if chunk.finish_reason == "stop" else "length"
    return None


def fit_output(served: ServedModel, num_prompt_tokens: int, asked: int | None, default: int | None, param: str) -> int:
    """Longest output of one prompt.

    Args:
        served: Knows the context.
        num_prompt_tokens: Length of the prompt.
        asked: The caller's limit, if there is one.
        default: Without one; None: whatever fits.
        param: Name of the prompt's parameter, for errors.

    Raises:
        BadRequest: The prompt is empty.
        ContextLengthExceeded: Prompt, or prompt and asked output, do not fit.
    """
    context = served.card.context_length
    if num_prompt_tokens == 0:
        raise BadRequest("The prompt holds no tokens.", param=param)
    room = context - num_prompt_tokens
    # The engine draws one token even where nobody wants it.
    if room < max(1, asked or 0):
        wanted = f" and {asked} in the completion" if asked else ", which leaves no room for a completion"
        raise ContextLengthExceeded(
            f"This model's maximum context length is {context} tokens, but you requested"
            f" {num_prompt_tokens} in the prompt{wanted}. Please shorten the request.",
            param=param,
        )
    if asked is not None:
        return asked
    return room if default is None else min(default, room)


def engine_request(
    call: Call, body: GenerationBody, served: ServedModel, prompt: Sequence[int], max_tokens: int, seed: int
) -> pb.GenerateRequest:
    """The engine's request for one sequence.

    Raises:
        BadRequest: A token id is not in the model's vocabulary, or the output is shorter than its least.
    """
    bias = {int(token): value for token, value in (body.logit_bias or {}).items()}
    for param, ids in (("logit_bias", bias), ("stop_token_ids", body.stop_token_ids), ("prompt", prompt)):
        if ids and max(ids) >= served.card.vocab_size:
            raise BadRequest(f"Token ids of this model are below {served.card.vocab_size}.", param=param)
    if (body.min_tokens or 0) > max_tokens:
        raise BadRequest(f"'min_tokens' is above the longest output, {max_tokens} tokens here.", param="min_tokens")
    return pb.GenerateRequest(
        request_id=call.id.hex,
        model=served.card.name,
        prompt_tokens=prompt,
        max_tokens=max(1, max_tokens),
        min_tokens=body.min_tokens or 0,
        stop_token_ids=body.stop_token_ids or (),
        ignore_eos=bool(body.ignore_eos),
        grammar=engine_grammar(body),
        cache_salt=call.cache_salt,
        # A stop string ends an answer early, which is seen here.
        whole=not body.stream and not body.stop,
        sampling=_sampling(body, bias, seed),
    )


async def within_budget(
    call: Call, served: ServedModel, num_input: int, specs: list[SequenceSpec]
) -> tuple[list[SequenceSpec], int | None]:
    """Reserves what a request may cost; the sequences as long as what is left pays for.

    Args:
        call: The request.
        served: The model.
        num_input: Tokens of all prompts, each once.
        specs: As they were asked for.

    Returns:
        The sequences to run, and their output tokens all in all where that is less than was asked for.

    Raises:
        AppError: As ``Call.reserve``.
    """
    asked = sum(spec.max_tokens for spec in specs)
    permit = await call.reserve(served, "generation", num_input, asked, min(asked, len(specs)))
    if permit.output_tokens >= asked:
        return specs, None
    shortened, left = dict[int, SequenceSpec](), permit.output_tokens
    # The shortest first: what they do not need is the others'.
    for place, spec in enumerate(sorted(specs, key=lambda spec: spec.max_tokens)):
        length = min(spec.max_tokens, left // (len(specs) - place))
        left -= length
        shortened[spec.choice] = _shortened(spec, length)
    return [shortened[spec.choice] for spec in specs], permit.output_tokens


def draw_seed() -> int:
    """A seed for a caller who sent none; recorded, so that they can send it."""
    return secrets.randbits(_SEED_BITS)


def seeds(seed: int, count: int) -> list[int]:
    """One seed per sequence: the request's own for the first, derived ones after it."""
    first = seed & _SEED_MASK
    derived = (hashlib.sha256(b"%d/%d" % (first, choice)).digest() for choice in range(1, count))
    return [first, *(int.from_bytes(digest[:8], "big") for digest in derived)]


def _shortened(spec: SequenceSpec, max_tokens: int) -> SequenceSpec:
    spec.request.max_tokens = max(1, max_tokens)
    spec.request.min_tokens = min(spec.request.min_tokens, max_tokens)
    return replace(spec, max_tokens=max_tokens)


def _sampling(body: GenerationBody, bias: dict[int, float], seed: int) -> pb.Sampling:
    return pb.Sampling(
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else max(body.top_p, _SMALLEST_TOP_P),
        top_k=body.top_k or 0,
        min_p=body.min_p or 0.0,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        logit_bias=bias,
        seed=seed,
    )
