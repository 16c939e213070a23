"""Devices that a test holds in its hand: by-sum answers, steps let through one by one, faults on demand."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from app.engine.engine import GenerationEngine
from app.engine.host import Host
from app.engine.runner import Encoder, Result, Runner, Vectors
from app.engine.scheduler import Step
from app.engine.sequence import Token
from app.engine.server import EngineServer
from app.engine.stub import StubEncoder, StubRunner
from app.modeling.registry import ModelCard
from app.rpc.client import EngineClient

# Far longer than anything takes. A thread that waits so long lets go then, so that a test that failed
# holds up neither the others nor the end of the process.
HELD_S = 30.0


class HeldRunner(StubRunner):
    """A stub whose steps wait until they are let through, unless it is opened for good."""

    def __init__(self, num_slots: int = 4, vocab_size: int = 256, context_length: int = 4096) -> None:
        super().__init__(num_slots, vocab_size, context_length)
        self.steps: list[Step] = []
        self._entered = threading.Semaphore(0)
        self._passes = threading.Semaphore(0)
        self._is_open = False

    async def entered(self) -> None:
        """Wait until one more step is under way."""
        assert await asyncio.to_thread(self._entered.acquire, timeout=HELD_S)

    def let(self, count: int = 1) -> None:
        """Let so many steps through."""
        self._passes.release(count)

    def open(self) -> None:
        """Hold nothing back any more."""
        self._is_open = True
        self._passes.release()

    def run(self, step: Step) -> Result:
        """Wait for a pass, then do as the stub does."""
        self.steps.append(step)
        self._entered.release()
        if not self._is_open:
            assert self._passes.acquire(timeout=HELD_S)
        return super().run(step)


class FaultyRunner(StubRunner):
    """A stub whose steps raise while `fault` is set, and give `surplus` tokens that nobody asked for."""

    fault: Exception | None = None
    surplus: tuple[Token, ...] = ()

    def run(self, step: Step) -> Result:
        """Raise the fault, or do as the stub does."""
        if self.fault is not None:
            raise self.fault
        result = super().run(step)
        return replace(result, tokens=(*result.tokens, *([self.surplus] if self.surplus else ())))


class FaultyEncoder(StubEncoder):
    """An encoder that remembers its batches, raises while `fault` is set, and gives `surplus` rows."""

    fault: Exception | None = None
    surplus: tuple[tuple[float, ...], ...] = ()

    def __init__(self, num_labels: int = 3, max_batch: int = 32, bucket_step: int = 512) -> None:
        super().__init__(num_labels, max_batch=max_batch)
        self.batches: list[int] = []
        self.lengths: list[set[int]] = []
        self._bucket_step = bucket_step

    def bucket(self, length: int) -> int:
        """Texts of about the same length go together."""
        return -(-length // self._bucket_step)

    def encode(self, texts: list[tuple[int, ...]]) -> Vectors:
        """Raise the fault, or do as the stub does."""
        self.batches.append(len(texts))
        self.lengths.append({len(text) for text in texts})
        if self.fault is not None:
            raise self.fault
        rows = super().encode(texts)
        return replace(rows, rows=(*rows.rows, *self.surplus))


def make_card(name: str = "sums", kind: str = "generation", eos_token_ids: tuple[int, ...] = ()) -> ModelCard:
    """A card of a model that exists nowhere."""
    labels = ("a", "b", "c") if kind == "classification" else ()
    return ModelCard(
        name=name,
        kind=kind,
        path=Path("nowhere"),
        digest="0" * 64,
        context_length=4096,
        vocab_size=256,
        labels=labels,
        embedding_size=3 if kind == "embedding" else 0,
        bos_token_id=None,
        eos_token_ids=eos_token_ids,
        chat_template=None,
        created=0,
        license=None,
        description="",
        enabled=True,
    )


@asynccontextmanager
async def running(
    runner: Runner, queue_capacity: int = 8, on_lost: Callable[[], None] = lambda: None
) -> AsyncIterator[GenerationEngine]:
    """A started engine around a runner."""
    with ThreadPoolExecutor(1) as device:
        engine = GenerationEngine("sums", runner, device, queue_capacity=queue_capacity, on_lost=on_lost)
        engine.start()
        try:
            yield engine
        finally:
            if isinstance(runner, HeldRunner):
                runner.open()
            await engine.aclose()


@asynccontextmanager
async def serving(
    load: Callable[[ModelCard], Runner | Encoder],
    *cards: ModelCard,
    queue_capacity: int = 8,
    address: str = "127.0.0.1:0",
) -> AsyncIterator[tuple[EngineClient, EngineServer, Host]]:
    """A listening server with these models, and a client of it."""
    host = Host(load, list(cards) or [make_card()], queue_capacity)
    server = EngineServer(host, address)
    await server.start()
    await host.start()
    await server.set_ready()
    client = EngineClient(address if address.startswith("unix:") else f"127.0.0.1:{server.port}")
    try:
        yield client, server, host
    finally:
        await client.aclose()
        await server.drain(0)


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    """Ask again and again until it holds."""
    async with asyncio.timeout(60):
        while True:
            if await holds():
                return
            await asyncio.sleep(0)
