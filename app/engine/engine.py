"""The asynchronous core of one generation model: tokens in, a stream of tokens out.

`generate` is an async generator per request; it knows no transport, keeps its own
deadline and gives everything back in `finally`. One loop decides, hands the step
to the device's thread and, while that computes, publishes the tokens of the step
before. Several models share one device thread, and so take turns.

A step that fails ends the sequences that were in it and nothing else; a device
that keeps failing, or does not come back, is given up, so that a supervisor can start
a fresh process, and so is one whose loop ends by a fault of its own: nobody waits for
a loop that is gone.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

from app.engine.limits import check_request
from app.engine.runner import CLOSED, LOST, LOST_AFTER_S, DeviceLost, Result, Runner
from app.engine.scheduler import Decode, Prefill, Scheduler, Step
from app.engine.sequence import Grammar, Request, Sequence, Token
from app.errors import AppError, DeadlineExceeded, EngineUnavailable, InternalError, Overloaded
from app.telemetry import get_logger

log = get_logger(__name__)

# The first token goes alone. Then whatever comes first: so many tokens, or so long
# since the last chunk. One message per token would keep the processor busier than
# the model does.
CHUNK_TOKENS = 4
CHUNK_S = 0.02
# Of an answer that nobody reads before its end; a caller still sees that the engine lives.
WHOLE_CHUNK_S = 1.0
# To who waits in the queue while the device works for others: the engine lives.
BEAT_S = 10.0
MAX_FAILURES_IN_A_ROW = 3
# Longest decode call of several steps: what a newcomer waits for at most, and how often
# somebody who left is noticed.
MAX_CALL_S = 0.07
SHORTEST_STEP_S = 1e-4
# Weight of the newest decode step in the mean time of one.
STEP_SMOOTHING = 0.3
# Weight of the newest sequence in the mean time that one holds a slot.
SMOOTHING = 0.1


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of one answer.

    Attributes:
        index: place of `tokens[0]` in the output.
        prompt_tokens: first chunk: the prompt's log-probabilities, from its second token on.
        finish_reason: "stop" or "length" in the last chunk, else "".
        cached_tokens: of the prompt, out of the prefix cache.
        accelerator_ms: this sequence's share of device time so far.
        queue_ms: first chunk: time until the device began with it.
    """

    index: int
    tokens: tuple[Token, ...]
    prompt_tokens: tuple[Token, ...] = ()
    finish_reason: str = ""
    cached_tokens: int = 0
    accelerator_ms: float = 0.0
    queue_ms: float = 0.0


@dataclass(slots=True, eq=False)
class _Stream:
    """What one caller waits for; times are the event loop's, in seconds.

    Attributes:
        prepared: its grammar, which must not be forgotten before its turn.
    """

    sequence: Sequence
    prepared: object
    enqueued_at: float
    sent: int
    sent_at: float
    started_at: float | None = None
    error: AppError | None = None
    has_begun: bool = False
    ready: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def is_over(self) -> bool:
        return self.error is not None or self.sequence.finish_reason is not None

    def is_due(self, now: float) -> bool:
        unsent = len(self.sequence.output) - self.sent
        if self.is_over:
            return True
        if self.sequence.request.is_whole:
            return unsent > 0 and now - self.sent_at >= WHOLE_CHUNK_S
        return unsent > 0 and (not self.has_begun or unsent >= CHUNK_TOKENS or now - self.sent_at >= CHUNK_S)

    def take(self, now: float) -> Chunk:
        """All that is there, as a chunk."""
        sequence, is_first = self.sequence, not self.has_begun
        chunk = Chunk(
            index=self.sent,
            tokens=tuple(sequence.output[self.sent :]),
            prompt_tokens=tuple(sequence.prompt_tokens) if is_first else (),
            finish_reason=sequence.finish_reason or "",
            cached_tokens=sequence.cached_tokens,
            accelerator_ms=sequence.accelerator_s * 1000,
            queue_ms=((self.started_at or now) - self.enqueued_at) * 1000 if is_first else 0.0,
        )
        self.sent, self.sent_at, self.has_begun = max(self.sent, len(sequence.output)), now, True
        self.ready.clear()
        return chunk


class GenerationEngine:
    """One generation model, its queue and its loop.

    Args:
        name: for the log.
        runner: the model on its device.
        executor: the device's one thread.
        queue_capacity: requests that may wait for a slot.
        on_lost: called once when the device is given up.
    """

    def __init__(
        self,
        name: str,
        runner: Runner,
        executor: Executor,
        *,
        queue_capacity: int = 128,
        on_lost: Callable[[], None] = lambda: None,
    ) -> None:
        self.runner = runner
        self.scheduler = Scheduler(runner.shapes, queue_capacity)
        self.accelerator_s = 0.0
        self._name = name
        self._executor = executor
        self._on_lost = on_lost
        self._streams: dict[Sequence, _Stream] = {}
        self._unpublished: set[_Stream] = set()
        self._prepared: WeakValueDictionary[Grammar, object] = WeakValueDictionary()
        self._work = asyncio.Event()
        self._failures = 0
        self._num_steps = 0
        self._slot_s = 1.0
        self._step_s = MAX_CALL_S
        self._is_lost = False
        self._gone = ""  # why, once no loop runs any more
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to serve; needs a running event loop."""
        self._task = asyncio.create_task(self._run(), name=f"engine-{self._name}")
        self._task.add_done_callback(self._give_up)

    async def aclose(self) -> None:
        """Stop the loop; streams that are still open end with an error."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._end_all(CLOSED)

    async def generate(self, request: Request, timeout_s: float) -> AsyncGenerator[Chunk, None]:
        """Stream one sequence; the last chunk, and only it, has a finish reason.

        Every `BEAT_S` seconds without a chunk in which the device did something comes an
        empty one.

        Raises:
            BadRequest, ContextLengthExceeded: the model cannot do this.
            Overloaded: the queue is full; before the first chunk.
            DeadlineExceeded: `timeout_s` seconds passed.
            InternalError: the step that computed it failed.
        """
        check_request(request, self.runner.context_length, self.runner.vocab_size)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        self._require_room()  # a full queue compiles nothing
        prepared = await self._prepare(request.grammar, deadline)
        self._require_room()
        stream = self._enqueue(request, prepared)
        try:
            while True:
                steps_before = self._num_steps
                is_ready = await _is_set_by(stream.ready, min(deadline, loop.time() + BEAT_S))
                # Asked whether or not something is there: a reader slower than the model never waits.
                if loop.time() >= deadline and not stream.is_over:
                    raise DeadlineExceeded("The answer was not complete within the deadline.")
                if not is_ready:
                    if self._num_steps > steps_before:
                        yield Chunk(stream.sent, ())
                    continue
                if stream.error is not None:
                    raise stream.error
                chunk = stream.take(loop.time())
                yield chunk
                if chunk.finish_reason:
                    return
        finally:
            self._streams.pop(stream.sequence, None)
            self._unpublished.discard(stream)
            self.scheduler.abort(stream.sequence)

    async def _run(self) -> None:
        while not self._is_lost:
            step = self.scheduler.next_step(max_steps=int(MAX_CALL_S / self._step_s))
            if step is None:
                self._publish()
                await self._wait_for_work()
                continue
            running = self._submit(step)
            self._publish()
            await self._settle(step, running)

    def _give_up(self, loop: "asyncio.Task[None]") -> None:
        if loop.cancelled():  # by `aclose`
            return
        if loop.exception() is not None:
            log.error("engine.loop_failed", model=self._name, exc_info=loop.exception())
        self._is_lost = True
        self._end_all(LOST)
        self._on_lost()

    async def _prepare(self, grammar: Grammar | None, deadline: float) -> object:
        if grammar is None:
            return None
        prepared = self._prepared.get(grammar)
        if prepared is None:  # else not even a thread, as all may be busy with those of others
            try:
                async with asyncio.timeout_at(deadline):
                    prepared = await asyncio.to_thread(self.runner.prepare, grammar)
            except TimeoutError:
                raise DeadlineExceeded("The grammar was not compiled within the deadline.") from None
            self._prepared[grammar] = prepared
        return prepared

    def _require_room(self) -> None:
        if self._gone:
            raise EngineUnavailable(self._gone)
        if not self.scheduler.can_enqueue:
            raise Overloaded("The model's queue is full.", retry_after_s=self._retry_after_s())

    def _enqueue(self, request: Request, prepared: object) -> _Stream:
        sequence = Sequence(request)
        now = asyncio.get_running_loop().time()
        self.scheduler.enqueue(sequence)
        stream = _Stream(sequence, prepared, enqueued_at=now, sent=request.start_index, sent_at=now)
        self._streams[sequence] = stream
        self._work.set()
        return stream

    def _retry_after_s(self) -> float:
        """When about half of those who wait will have had their turn."""
        return self.scheduler.queue_depth / 2 * self._slot_s / self.runner.shapes.num_slots

    async def _wait_for_work(self) -> None:
        # Nothing awaits between the scheduler's "nothing to do" and this line.
        self._work.clear()
        await self._work.wait()

    def _submit(self, step: Step) -> "asyncio.Future[Result]":
        loop = asyncio.get_running_loop()
        now = loop.time()
        for sequence in step.sequences:
            stream = self._streams.get(sequence)
            if stream is not None and stream.started_at is None:
                stream.started_at = now
        return loop.run_in_executor(self._executor, self.runner.run, step)

    async def _settle(self, step: Step, running: "asyncio.Future[Result]") -> None:
        try:
            async with asyncio.timeout(LOST_AFTER_S):
                result = await running
        except (DeviceLost, TimeoutError):
            log.exception("engine.device_lost", model=self._name)
            self._is_lost = True
            return
        except Exception:
            # The edge of a step: whatever went wrong ends the sequences in it, not the loop.
            log.exception("engine.step_failed", model=self._name, sequences=len(step.sequences))
            self._fail(step)
            return
        self._failures = 0
        self._num_steps += 1
        self._record(step, result)
        self.scheduler.advance(step, result.tokens)
        self._unpublished.update(self._streams[s] for s in step.sequences if s in self._streams)

    def _record(self, step: Step, result: Result) -> None:
        self.accelerator_s += result.device_s
        for sequence in step.sequences:
            sequence.accelerator_s += result.device_s / len(step.sequences)
        if isinstance(step, Prefill):
            step.sequences[0].prompt_tokens += result.prompt_tokens
        if isinstance(step, Decode):
            newest_s = max(SHORTEST_STEP_S, result.device_s / step.num_steps)
            self._step_s += STEP_SMOOTHING * (newest_s - self._step_s)

    def _fail(self, step: Step) -> None:
        self._failures += 1
        self._is_lost = self._failures >= MAX_FAILURES_IN_A_ROW
        self.scheduler.fail(step)
        for sequence in step.sequences:
            self._end(sequence, InternalError("The model failed to compute this answer."))

    def _publish(self) -> None:
        """Wake those whose chunk is due; the others stay on the list."""
        now = asyncio.get_running_loop().time()
        due = {stream for stream in self._unpublished if stream.is_due(now)}
        for stream in due:
            self._observe(stream, now)
            stream.ready.set()
        self._unpublished -= due

    def _observe(self, stream: _Stream, now: float) -> None:
        if stream.is_over and stream.started_at is not None:
            self._slot_s += SMOOTHING * (now - stream.started_at - self._slot_s)

    def _end_all(self, reason: str) -> None:
        """End who waits, and let nobody wait any more."""
        self._gone = reason
        for sequence in list(self._streams):
            self.scheduler.abort(sequence)
            self._end(sequence, EngineUnavailable(reason))

    def _end(self, sequence: Sequence, error: AppError) -> None:
        stream = self._streams.get(sequence)
        if stream is None:
            return
        if not stream.is_over:  # else its answer is whole, and its reader only slow
            stream.error = error
        stream.ready.set()


async def _is_set_by(event: asyncio.Event, when: float) -> bool:
    try:
        async with asyncio.timeout_at(when):
            return await event.wait()
    except TimeoutError:
        return False
