import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from threading import Event

import pytest

from app.engine.batcher import FIRST_TEXT_S, EncoderEngine
from app.engine.runner import DeviceLost
from app.engine.stub import WINNING_SCORE
from app.errors import (
    BadRequest,
    ContextLengthExceeded,
    DeadlineExceeded,
    EngineUnavailable,
    InternalError,
    Overloaded,
)
from tests.fakes import FaultyEncoder, until

SOON_S = 30.0


@asynccontextmanager
async def batching(encoder: FaultyEncoder, queue_capacity: int = 64) -> AsyncIterator[tuple[EncoderEngine, Event]]:
    """A started batcher and a gate: the device is busy until the gate is set."""
    gate = Event()
    with ThreadPoolExecutor(1) as device:
        device.submit(gate.wait, SOON_S)
        engine = EncoderEngine("sums", encoder, device, queue_capacity=queue_capacity)
        engine.start()
        try:
            yield engine, gate
        finally:
            gate.set()
            await engine.aclose()


async def everybody_waits(engine: EncoderEngine, count: int) -> None:
    async def holds() -> bool:
        return engine.queue_depth == count

    await until(holds)


def winner(scores: tuple[float, ...]) -> int:
    assert max(scores) == WINNING_SCORE
    assert sum(scores) == pytest.approx(1)
    return scores.index(max(scores))


async def test_each_text_gets_its_own_scores_in_order() -> None:
    async with batching(FaultyEncoder()) as (engine, gate):
        gate.set()
        encoded = await engine.encode([(1,), (2, 3), (1, 1), (3,)], SOON_S)
    assert [winner(row) for row in encoded.rows] == [1, 2, 2, 0]


async def test_what_arrives_while_the_device_is_busy_goes_together() -> None:
    encoder = FaultyEncoder(max_batch=8)
    async with batching(encoder) as (engine, gate):
        waiting = [asyncio.create_task(engine.encode([(i + 1,)], SOON_S)) for i in range(11)]
        await everybody_waits(engine, 11)
        gate.set()
        results = await asyncio.gather(*waiting)
    assert [winner(r.rows[0]) for r in results] == [(i + 1) % 3 for i in range(11)]
    assert max(encoder.batches) == 8
    assert sum(encoder.batches) == 11


async def test_texts_of_one_length_bucket_go_together_and_answers_keep_their_order() -> None:
    encoder = FaultyEncoder(bucket_step=2)
    texts: list[tuple[int, ...]] = [(1,), (1, 1, 1), (2, 0), (1, 1, 2, 0), (0, 0, 0, 1, 1)]
    async with batching(encoder) as (engine, gate):
        other = asyncio.create_task(engine.encode([(2, 0)], SOON_S))
        waiting = asyncio.create_task(engine.encode(texts, SOON_S))
        await everybody_waits(engine, 2)
        gate.set()
        read, other_read = await waiting, await other
    assert [winner(row) for row in read.rows] == [1, 0, 2, 1, 2]
    assert winner(other_read.rows[0]) == 2
    # The first went when nothing else was there yet; then whoever has waited longest, and its likes.
    assert encoder.lengths in ([{2}, {1, 2}, {3, 4}, {5}], [{1, 2}, {3, 4}, {5}])


async def test_texts_of_a_request_that_left_are_not_computed() -> None:
    encoder = FaultyEncoder(max_batch=4)
    async with batching(encoder) as (engine, gate):
        waiting = [asyncio.create_task(engine.encode([(i + 1,)] * 4, SOON_S)) for i in range(3)]
        await everybody_waits(engine, 3)
        waiting[1].cancel()
        await asyncio.wait([waiting[1]])
        gate.set()
        await asyncio.gather(waiting[0], waiting[2])
        assert engine.queue_depth == 0
    assert sum(encoder.batches) == 8


@pytest.mark.parametrize("num_texts", [20, 40])
async def test_full_queue_is_refused_and_says_when_half_of_it_will_have_been_read(num_texts: int) -> None:
    async with batching(FaultyEncoder(max_batch=10), queue_capacity=2) as (engine, gate):
        first = asyncio.create_task(engine.encode([(1,)] * 10, SOON_S))
        await everybody_waits(engine, 1)
        await asyncio.sleep(0)  # the loop has taken these
        second = asyncio.create_task(engine.encode([(1,)] * num_texts, SOON_S))
        await everybody_waits(engine, 2)
        with pytest.raises(Overloaded) as refused:
            await engine.encode([(1,)], SOON_S)
        assert refused.value.retry_after_s == pytest.approx(num_texts / 2 * FIRST_TEXT_S)
        gate.set()
        await asyncio.gather(first, second)


async def test_deadline_ends_a_request_that_waits() -> None:
    async with batching(FaultyEncoder()) as (engine, _):
        with pytest.raises(DeadlineExceeded):
            await engine.encode([(1,)], 0.01)


async def test_failed_batch_ends_its_texts_and_the_loop_goes_on() -> None:
    encoder = FaultyEncoder()
    async with batching(encoder) as (engine, gate):
        gate.set()
        encoder.fault = ValueError("secret detail")
        with pytest.raises(InternalError) as failed:
            await engine.encode([(1,)], SOON_S)
        assert "secret" not in failed.value.message
        encoder.fault = None
        assert winner((await engine.encode([(1,)], SOON_S)).rows[0]) == 1


async def test_lost_device_ends_this_and_every_later_request() -> None:
    encoder = FaultyEncoder()
    encoder.fault = DeviceLost("gone")
    async with batching(encoder) as (engine, gate):
        gate.set()
        for _ in range(2):
            with pytest.raises(EngineUnavailable):
                await engine.encode([(1,)], SOON_S)


async def test_device_that_does_not_come_back_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.engine.batcher.LOST_AFTER_S", 0.01)
    async with batching(FaultyEncoder()) as (engine, _):
        with pytest.raises(EngineUnavailable):
            await engine.encode([(1,)], SOON_S)


@pytest.mark.parametrize(
    ("texts", "error"),
    [
        ([], BadRequest),
        ([()], BadRequest),
        ([(256,)], BadRequest),
        ([(1,)] * 257, BadRequest),
        ([(1,) * 513], ContextLengthExceeded),
    ],
)
async def test_what_the_model_cannot_read_is_refused(texts: list[tuple[int, ...]], error: type[BadRequest]) -> None:
    async with batching(FaultyEncoder()) as (engine, _):
        with pytest.raises(error):
            await engine.encode(texts, SOON_S)


async def test_loop_that_ends_by_a_fault_leaves_nobody_waiting() -> None:
    encoder = FaultyEncoder()
    encoder.surplus = ((1.0,),)
    async with batching(encoder) as (engine, gate):
        gate.set()
        for _ in range(2):
            with pytest.raises(EngineUnavailable):
                await engine.encode([(1,)], SOON_S)


async def test_closing_ends_the_batch_under_way_with_an_error() -> None:
    async with batching(FaultyEncoder()) as (engine, _):
        under_way = asyncio.create_task(engine.encode([(1,)], SOON_S))
        await everybody_waits(engine, 1)
        await asyncio.sleep(0)  # the loop has taken it
        await engine.aclose()
        with pytest.raises(EngineUnavailable):
            await under_way


async def test_who_comes_after_the_end_does_not_wait() -> None:
    async with batching(FaultyEncoder()) as (engine, _):
        await engine.aclose()
        with pytest.raises(EngineUnavailable):
            await engine.encode([(1,)], 0.01)
