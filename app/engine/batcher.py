"""Dynamic batching of texts to classify or embed: what arrived while the device was busy goes next, together.

No timer: an idle device takes a lone text at once, a busy one finds a full batch
waiting. Texts of one request may go in different batches, and those of different
requests in the same one: whatever is of one length bucket. The bucket of the text
that has waited longest goes next.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import chain, count

from app.engine.limits import check_texts
from app.engine.runner import CLOSED, LOST, LOST_AFTER_S, DeviceLost, Encoder, Vectors
from app.errors import DeadlineExceeded, EngineUnavailable, InternalError, Overloaded
from app.telemetry import get_logger

log = get_logger(__name__)

MAX_FAILURES_IN_A_ROW = 3
# Of one text, before the first batch has shown it.
FIRST_TEXT_S = 0.05
# Weight of the newest batch in the mean time of one text.
SMOOTHING = 0.1


@dataclass(frozen=True, slots=True)
class Encoded:
    """A row, of scores or an embedding, for each text in the order of the texts, and their share of device time."""

    rows: tuple[tuple[float, ...], ...]
    accelerator_ms: float


@dataclass(frozen=True, slots=True, eq=False)
class _Text:
    number: int
    tokens: tuple[int, ...]
    result: "asyncio.Future[tuple[tuple[float, ...], float]]"


class EncoderEngine:
    """One encoder, its queue and its loop.

    Args:
        name: for the log.
        encoder: the model on its device.
        executor: the device's one thread.
        queue_capacity: requests that may wait or be under way.
        on_lost: called once when the device is given up.
    """

    def __init__(
        self,
        name: str,
        encoder: Encoder,
        executor: Executor,
        *,
        queue_capacity: int = 128,
        on_lost: Callable[[], None] = lambda: None,
    ) -> None:
        self.encoder = encoder
        self.queue_capacity = queue_capacity
        self.queue_depth = 0
        self.accelerator_s = 0.0
        self._name = name
        self._executor = executor
        self._on_lost = on_lost
        self._waiting: dict[int, deque[_Text]] = {}
        self._numbers = count()
        self._batch: list[_Text] = []
        self._work = asyncio.Event()
        self._failures = 0
        self._text_s = FIRST_TEXT_S
        self._is_lost = False
        self._gone = ""  # why, once no loop runs any more
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to serve; needs a running event loop."""
        self._task = asyncio.create_task(self._run(), name=f"batcher-{self._name}")
        self._task.add_done_callback(self._give_up)

    async def aclose(self) -> None:
        """Stop the loop; requests that are still open end with an error."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._end_all(CLOSED)

    async def encode(self, texts: list[tuple[int, ...]], timeout_s: float) -> Encoded:
        """Read some texts.

        Raises:
            BadRequest, ContextLengthExceeded: the model cannot do this.
            Overloaded: too many requests wait.
            DeadlineExceeded: `timeout_s` seconds passed.
            InternalError: the batch failed.
        """
        check_texts(texts, self.encoder.max_length, self.encoder.vocab_size)
        if self._gone:
            raise EngineUnavailable(self._gone)
        if self.queue_depth >= self.queue_capacity:
            raise Overloaded("The model's queue is full.", retry_after_s=self._retry_after_s())
        loop = asyncio.get_running_loop()
        waiting = [_Text(next(self._numbers), tokens, loop.create_future()) for tokens in texts]
        self.queue_depth += 1
        try:
            for text in waiting:
                self._waiting.setdefault(self.encoder.bucket(len(text.tokens)), deque()).append(text)
            self._work.set()
            async with asyncio.timeout(timeout_s):
                results = await asyncio.gather(*(text.result for text in waiting))
        except TimeoutError:
            raise DeadlineExceeded("The texts were not read within the deadline.") from None
        finally:
            self.queue_depth -= 1
            for text in waiting:
                text.result.cancel()
        return Encoded(tuple(row for row, _ in results), sum(ms for _, ms in results))

    def _retry_after_s(self) -> float:
        """When about half of those who wait will have had their turn."""
        return sum(map(len, self._waiting.values())) / 2 * self._text_s

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._is_lost:
            self._batch = self._next_batch()
            if not self._batch:
                self._work.clear()
                await self._work.wait()
                continue
            tokens = [text.tokens for text in self._batch]
            await self._settle(self._batch, loop.run_in_executor(self._executor, self.encoder.encode, tokens))

    def _give_up(self, loop: "asyncio.Task[None]") -> None:
        """The loop ended: by `aclose`, with the device, or by a fault of its own, after which nobody may wait."""
        if loop.cancelled():
            return
        if loop.exception() is not None:
            log.error("engine.loop_failed", model=self._name, exc_info=loop.exception())
        self._is_lost = True
        self._end_all(LOST)
        self._on_lost()

    def _next_batch(self) -> list[_Text]:
        """Of the texts that somebody still wants: the one that waits longest, and those that fit with it."""
        wanted = {bucket: deque(t for t in texts if not t.result.done()) for bucket, texts in self._waiting.items()}
        self._waiting = {bucket: texts for bucket, texts in wanted.items() if texts}
        if not self._waiting:
            return []
        bucket, texts = min(self._waiting.items(), key=lambda item: item[1][0].number)
        return [texts.popleft() for _ in range(self.encoder.num_to_take(bucket, len(texts)))]

    async def _settle(self, batch: list[_Text], running: "asyncio.Future[Vectors]") -> None:
        try:
            async with asyncio.timeout(LOST_AFTER_S):
                rows = await running
        except (DeviceLost, TimeoutError):
            log.exception("engine.device_lost", model=self._name)
            self._is_lost = True
            return
        except Exception:
            # The edge of a step: whatever went wrong ends the texts in it, not the loop.
            log.exception("engine.step_failed", model=self._name, texts=len(batch))
            self._failures += 1
            self._is_lost = self._failures >= MAX_FAILURES_IN_A_ROW
            self._end(batch, InternalError("The model failed to read this text."))
            return
        self._failures = 0
        self.accelerator_s += rows.device_s
        self._text_s += SMOOTHING * (rows.device_s / len(batch) - self._text_s)
        # Paired before the first is answered: rows too many or too few may be anybody's.
        for text, row in [*zip(batch, rows.rows, strict=True)]:
            if not text.result.done():
                text.result.set_result((row, rows.device_s * 1000 / len(batch)))

    def _end_all(self, reason: str) -> None:
        """End who waits, and let nobody wait any more."""
        self._gone = reason
        self._end([*self._batch, *chain.from_iterable(self._waiting.values())], EngineUnavailable(reason))

    def _end(self, texts: Iterable[_Text], error: Exception) -> None:
        for text in texts:
            if not text.result.done():
                text.result.set_exception(error)
