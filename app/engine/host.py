"""All models of one process: loads them side by side, and knows which are served.

A model that cannot be loaded is reported by name and listed as broken; the others
are served. Models share the device's one thread, so their steps take turns.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import InitVar, dataclass, field
from typing import Literal

from app.engine.batcher import Encoded, EncoderEngine
from app.engine.engine import Chunk, GenerationEngine
from app.engine.runner import CLOSED, Encoder, Runner
from app.engine.sequence import Request
from app.errors import EngineUnavailable, NotFound, TollgateError
from app.modeling.registry import ModelCard
from app.telemetry import get_logger

log = get_logger(__name__)

# Compiling is not Python's work, so it gains from threads; building a runner is, and does not.
WARM_UP_THREADS = 4

Load = Callable[[ModelCard], Runner | Encoder]


@dataclass(slots=True)
class Model:
    """A model by its card; `engine` is None until it is loaded, and stays so if it is broken."""

    card: ModelCard
    engine: GenerationEngine | EncoderEngine | None = None
    is_broken: bool = False

    @property
    def state(self) -> Literal["loading", "ready", "broken"]:
        """As `ModelStatus.state`; only a restart mends a broken one."""
        if self.is_broken:
            return "broken"
        return "loading" if self.engine is None else "ready"

    @property
    def is_ready(self) -> bool:
        """Whether it answers."""
        return self.state == "ready"


@dataclass(eq=False)
class Host:
    """The models of this process.

    Attributes:
        load: makes a runner of a card; called in a thread, one card after the other.
        cards: of the models; listed as loading from now on.
        queue_capacity: requests that may wait, per model.
        default_timeout_s: of a request that names none.
        device: what `Describe` says of the device; empty until it is known.
        is_draining: no new work is taken.
        lost: set when the device is given up and the process should end.
    """

    load: Load
    cards: InitVar[list[ModelCard]]
    queue_capacity: int = 128
    default_timeout_s: float = 600.0
    device: str = ""
    is_draining: bool = False
    models: dict[str, Model] = field(init=False)
    lost: asyncio.Event = field(default_factory=asyncio.Event)
    _device: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "device"))

    def __post_init__(self, cards: list[ModelCard]) -> None:
        self.models = {card.name: Model(card) for card in cards}

    async def start(self) -> None:
        """Build the models, warm them up side by side, and serve each as soon as it is ready."""
        loop = asyncio.get_running_loop()
        threads = ThreadPoolExecutor(WARM_UP_THREADS, "load")
        try:
            # All are built, one after the other, before the first is warmed up: only so
            # does TensorFlow number its functions alike in each process, which is how
            # compiled code is found again on disk.
            built = [(model, await self._build(model, loop, threads)) for model in self.models.values()]
            await asyncio.gather(*(self._serve(model, runner, loop, threads) for model, runner in built if runner))
        finally:
            # Cancelled in the middle, what a thread compiles cannot be stopped; to wait for it
            # would hold up the answers of the models that are ready.
            threads.shutdown(wait=False, cancel_futures=True)

    async def aclose(self) -> None:
        """Stop every loop; what is still open ends with an error."""
        for model in self.models.values():
            if model.engine is not None:
                await model.engine.aclose()
        self._device.shutdown(wait=False, cancel_futures=True)

    def generate(self, name: str, request: Request, timeout_s: float) -> AsyncGenerator[Chunk, None]:
        """As `GenerationEngine.generate`.

        Raises:
            NotFound: no generation model has this name.
            EngineUnavailable: it is not ready, or the process drains.
        """
        engine = self._engine(name)
        if not isinstance(engine, GenerationEngine):
            raise NotFound(f"The model '{name}' does not generate text.")
        return engine.generate(request, timeout_s or self.default_timeout_s)

    async def classify(self, name: str, texts: list[tuple[int, ...]], timeout_s: float) -> Encoded:
        """Scores of each text, as `EncoderEngine.encode`.

        Raises:
            NotFound: no classification model has this name.
            EngineUnavailable: it is not ready, or the process drains.
        """
        return await self._encoder(name, "classification").encode(texts, timeout_s or self.default_timeout_s)

    async def embed(self, name: str, texts: list[tuple[int, ...]], timeout_s: float) -> Encoded:
        """A vector for each text, as `EncoderEngine.encode`.

        Raises:
            NotFound: no embedding model has this name.
            EngineUnavailable: it is not ready, or the process drains.
        """
        return await self._encoder(name, "embedding").encode(texts, timeout_s or self.default_timeout_s)

    def eos_token_ids(self, name: str) -> tuple[int, ...]:
        """The model's own end tokens; none for a name that is not served."""
        model = self.models.get(name)
        return () if model is None else model.card.eos_token_ids

    def _engine(self, name: str) -> GenerationEngine | EncoderEngine:
        model = self.models.get(name)
        if model is None:
            raise NotFound(f"The model '{name}' is not served here.")
        if self.is_draining:
            raise EngineUnavailable(CLOSED)
        if model.engine is None:
            raise EngineUnavailable(f"The model '{name}' is not ready.", retry_after_s=5.0)
        return model.engine

    def _encoder(self, name: str, kind: str) -> EncoderEngine:
        engine = self._engine(name)
        if not isinstance(engine, EncoderEngine) or self.models[name].card.kind != kind:
            raise NotFound(f"The model '{name}' is no {kind} model.")
        return engine

    async def _build(
        self, model: Model, loop: asyncio.AbstractEventLoop, threads: ThreadPoolExecutor
    ) -> Runner | Encoder | None:
        try:
            return await loop.run_in_executor(threads, self.load, model.card)
        except TollgateError as error:
            log.error("model.broken", model=model.card.name, reason=error.message)
        except Exception:
            # The edge of a job: one model that cannot be built must not take the others along.
            log.exception("model.broken", model=model.card.name)
        model.is_broken = True
        return None

    async def _serve(
        self,
        model: Model,
        runner: Runner | Encoder,
        loop: asyncio.AbstractEventLoop,
        threads: ThreadPoolExecutor,
    ) -> None:
        started = loop.time()
        try:
            await loop.run_in_executor(threads, runner.warm_up)
        except Exception:
            # As above, for what only the device finds wrong.
            log.exception("model.broken", model=model.card.name)
            model.is_broken = True
            return
        model.engine = self._wrap(model.card.name, runner)
        model.engine.start()
        log.info("model.ready", model=model.card.name, warm_up_s=round(loop.time() - started, 3))

    def _wrap(self, name: str, runner: Runner | Encoder) -> GenerationEngine | EncoderEngine:
        on_lost = self.lost.set
        if isinstance(runner, Encoder):
            return EncoderEngine(name, runner, self._device, queue_capacity=self.queue_capacity, on_lost=on_lost)
        return GenerationEngine(name, runner, self._device, queue_capacity=self.queue_capacity, on_lost=on_lost)
