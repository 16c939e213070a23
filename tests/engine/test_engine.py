import asyncio
from contextlib import aclosing

import pytest

from app.engine.engine import CHUNK_TOKENS, MAX_FAILURES_IN_A_ROW, Chunk, GenerationEngine
from app.engine.runner import DeviceLost
from app.engine.scheduler import Decode
from app.engine.sequence import Grammar, Request, Token
from app.errors import (
    ContextLengthExceeded,
    DeadlineExceeded,
    EngineUnavailable,
    InternalError,
    Overloaded,
)
from tests.fakes import FaultyRunner, HeldRunner, running, until

SOON_S = 30.0


async def collect(engine: GenerationEngine, request: Request, timeout_s: float = SOON_S) -> list[Chunk]:
    return [chunk async for chunk in engine.generate(request, timeout_s)]


def tokens(chunks: list[Chunk]) -> list[int]:
    return [token.id for chunk in chunks for token in chunk.tokens]


def sums(prompt: tuple[int, ...], count: int, vocab_size: int = 256) -> list[int]:
    known = list(prompt)
    for _ in range(count):
        known.append(sum(known) % vocab_size)
    return known[len(prompt) :]


async def test_answer_is_the_one_computed_by_hand() -> None:
    async with running(FaultyRunner()) as engine:
        chunks = await collect(engine, Request("r", (3, 4), 5))
    assert tokens(chunks) == [7, 14, 28, 56, 112]
    assert [chunk.finish_reason for chunk in chunks] == [""] * (len(chunks) - 1) + ["length"]


async def test_first_token_goes_alone_and_indices_have_no_gap() -> None:
    async with running(FaultyRunner()) as engine:
        chunks = await collect(engine, Request("r", (3,), 40))
    assert len(chunks[0].tokens) == 1
    assert [c.index for c in chunks] == [sum(len(c.tokens) for c in chunks[:i]) for i in range(len(chunks))]
    assert len(tokens(chunks)) == 40


async def test_answer_that_nobody_reads_before_its_end_comes_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.engine.engine.WHOLE_CHUNK_S", SOON_S)
    async with running(FaultyRunner()) as engine:
        [chunk] = await collect(engine, Request("r", (3, 4), 40, is_whole=True))
    assert [token.id for token in chunk.tokens] == sums((3, 4), 40)
    assert (chunk.index, chunk.finish_reason) == (0, "length")


async def test_answer_that_comes_whole_shows_now_and_then_that_it_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.engine.engine.WHOLE_CHUNK_S", 0.0)
    async with running(FaultyRunner()) as engine:
        chunks = await collect(engine, Request("r", (3, 4), 40, is_whole=True))
    assert len(chunks) > 2
    assert tokens(chunks) == sums((3, 4), 40)


async def test_end_token_ends_the_answer_without_being_delivered() -> None:
    async with running(FaultyRunner()) as engine:
        chunks = await collect(engine, Request("r", (3, 4), 9, end_token_ids=frozenset({28})))
    assert tokens(chunks) == [7, 14]
    assert chunks[-1].finish_reason == "stop"


async def test_answers_are_the_same_alone_and_in_a_crowd() -> None:
    prompts = [tuple(n % 256 for n in range(1, 2 + i * 40)) for i in range(12)]
    async with running(FaultyRunner(num_slots=3), queue_capacity=20) as engine:
        answers = await asyncio.gather(*(collect(engine, Request("r", p, 9)) for p in prompts))
    assert [tokens(a) for a in answers] == [sums(p, 9) for p in prompts]


async def test_tokens_below_the_start_index_are_not_sent_again() -> None:
    async with running(FaultyRunner()) as engine:
        chunks = await collect(engine, Request("r", (3, 4), 5, start_index=3))
    assert chunks[0].index == 3
    assert tokens(chunks) == [56, 112]


async def test_prompt_logprobs_cover_all_but_the_first_token() -> None:
    async with running(FaultyRunner()) as engine:
        chunks = await collect(engine, Request("r", (3, 4, 5), 0, logprobs=2, prompt_logprobs=True))
    assert [t.id for t in chunks[0].prompt_tokens] == [4, 5]
    assert chunks[0].finish_reason == "length"


async def test_leaving_frees_the_slot_within_one_step() -> None:
    runner = HeldRunner(num_slots=1)
    async with running(runner) as engine:
        async with aclosing(engine.generate(Request("r", (1,), 1000), SOON_S)) as stream:
            runner.let()
            await anext(stream)
            await runner.entered()
        assert engine.scheduler.slots.num_free == 1
        runner.open()
        assert tokens(await collect(engine, Request("next", (5,), 2))) == [5, 10]
    decodes = [
        step for step in runner.steps if isinstance(step, Decode) and step.sequences[0].request.max_tokens == 1000
    ]
    assert len(decodes) <= 1


async def test_full_queue_is_refused_before_the_first_chunk_and_says_when_to_return() -> None:
    runner = HeldRunner(num_slots=1)
    async with running(runner, queue_capacity=1) as engine:
        first = asyncio.create_task(collect(engine, Request("1", (1,), 1)))
        await runner.entered()
        second = asyncio.create_task(collect(engine, Request("2", (1,), 1)))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded) as refused:
            await collect(engine, Request("3", (1,), 1))
        assert refused.value.retry_after_s > 0
        runner.open()
        await asyncio.gather(first, second)


async def test_a_full_queue_compiles_no_grammar() -> None:
    class Compiling(HeldRunner):
        def prepare(self, grammar: Grammar) -> None:
            raise AssertionError("nobody will follow it")

    runner = Compiling(num_slots=1)
    async with running(runner, queue_capacity=1) as engine:
        crowd = [asyncio.create_task(collect(engine, Request("r", (1,), 1))) for _ in range(2)]
        await runner.entered()
        with pytest.raises(Overloaded):
            await collect(engine, Request("r", (1,), 1, grammar=Grammar("regex", ("a",))))
        runner.open()
        await asyncio.gather(*crowd)


async def test_time_to_return_grows_with_the_queue_and_falls_with_the_time_of_a_slot() -> None:
    runner = HeldRunner(num_slots=2)
    async with running(runner, queue_capacity=4) as engine:
        crowd = [asyncio.create_task(collect(engine, Request("r", (1,), 1))) for _ in range(6)]
        await runner.entered()
        assert (engine.scheduler.queue_depth, await refused_for_s(engine)) == (4, 4 / 2 * 1.0 / 2)
        runner.open()
        await asyncio.gather(*crowd)
        assert engine._retry_after_s() == 0
        assert engine._slot_s < 1


async def refused_for_s(engine: GenerationEngine) -> float:
    with pytest.raises(Overloaded) as refused:
        await collect(engine, Request("r", (1,), 1))
    return refused.value.retry_after_s


async def test_who_waits_in_the_queue_hears_that_the_engine_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.engine.engine.BEAT_S", 0.0)
    async with running(FaultyRunner(num_slots=1)) as engine:
        first = asyncio.create_task(collect(engine, Request("1", (3,), 100)))
        chunks = await collect(engine, Request("2", (3, 4), 5))
        await first
    assert not chunks[0].tokens
    assert tokens(chunks) == [7, 14, 28, 56, 112]


async def test_who_waits_for_a_device_that_does_nothing_hears_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.engine.engine.BEAT_S", 0.0)
    runner = HeldRunner(num_slots=1)
    async with running(runner) as engine, aclosing(engine.generate(Request("1", (3,), 1), SOON_S)) as stream:
        first = asyncio.ensure_future(anext(stream))
        await runner.entered()
        for _ in range(50):
            await asyncio.sleep(0)
        assert not first.done()
        runner.open()
        await first


async def test_deadline_ends_a_request_that_waits_for_the_device() -> None:
    runner = HeldRunner(num_slots=1)
    async with running(runner) as engine:
        with pytest.raises(DeadlineExceeded):
            await collect(engine, Request("r", (1,), 1), timeout_s=0.01)
        assert engine.scheduler.slots.num_free == 1
        assert engine.scheduler.queue_depth == 0


async def test_deadline_ends_an_answer_whose_reader_is_slower_than_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, runner = asyncio.get_running_loop(), HeldRunner(num_slots=1)
    now = loop.time
    async with running(runner) as engine, aclosing(engine.generate(Request("r", (1,), 500), SOON_S)) as stream:
        runner.let(1 + 2 * CHUNK_TOKENS)
        await anext(stream)
        for _ in range(2 + 2 * CHUNK_TOKENS):
            await runner.entered()
        monkeypatch.setattr(loop, "time", lambda: now() + 2 * SOON_S)
        with pytest.raises(DeadlineExceeded):
            await anext(stream)


async def test_failed_step_ends_its_sequences_and_the_loop_goes_on() -> None:
    runner = FaultyRunner()
    async with running(runner) as engine:
        runner.fault = ValueError("secret detail")
        with pytest.raises(InternalError) as failed:
            await collect(engine, Request("r", (1,), 3))
        assert "secret" not in failed.value.message
        runner.fault = None
        assert tokens(await collect(engine, Request("r", (1,), 3))) == [1, 2, 4]
        assert engine.scheduler.slots.num_free == len(engine.scheduler.slots)


@pytest.mark.parametrize(("fault", "times"), [(DeviceLost("gone"), 1), (ValueError("x"), MAX_FAILURES_IN_A_ROW)])
async def test_device_that_keeps_failing_is_given_up(fault: Exception, times: int) -> None:
    runner = FaultyRunner()
    runner.fault = fault
    async with running(runner) as engine:
        for _ in range(times):
            with pytest.raises((InternalError, EngineUnavailable)):
                await collect(engine, Request("r", (1,), 3))
        with pytest.raises(EngineUnavailable):
            await collect(engine, Request("r", (1,), 3))


async def test_device_that_does_not_come_back_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.engine.engine.LOST_AFTER_S", 0.01)
    lost = asyncio.Event()
    async with running(HeldRunner(), on_lost=lost.set) as engine:
        with pytest.raises(EngineUnavailable):
            await collect(engine, Request("r", (1,), 3))
        assert lost.is_set()


async def test_loop_that_ends_by_a_fault_leaves_nobody_waiting() -> None:
    lost = asyncio.Event()
    runner = FaultyRunner()
    runner.surplus = (Token(1),)
    async with running(runner, on_lost=lost.set) as engine:
        for _ in range(2):
            with pytest.raises(EngineUnavailable):
                await collect(engine, Request("r", (1,), 3))
        assert lost.is_set()


async def test_prompt_and_budget_beyond_the_context_are_refused() -> None:
    async with running(FaultyRunner(context_length=16)) as engine:
        with pytest.raises(ContextLengthExceeded):
            await collect(engine, Request("r", (1,) * 10, 7))
        assert len(tokens(await collect(engine, Request("r", (1,) * 10, 6)))) == 6


async def test_closing_ends_open_streams_with_an_error() -> None:
    runner = HeldRunner(num_slots=1)
    async with running(runner) as engine:
        open_stream = asyncio.create_task(collect(engine, Request("r", (1,), 5)))
        await runner.entered()
        closing = asyncio.create_task(engine.aclose())
        with pytest.raises(EngineUnavailable):
            await open_stream
        await closing


async def test_closing_takes_no_whole_answer_from_a_slow_reader() -> None:
    async def is_complete() -> bool:
        return engine.scheduler.slots.num_free == len(engine.scheduler.slots)

    async with running(FaultyRunner()) as engine, aclosing(engine.generate(Request("r", (3, 4), 40), SOON_S)) as stream:
        chunks = [await anext(stream)]
        await until(is_complete)
        await engine.aclose()
        chunks += [chunk async for chunk in stream]
    assert tokens(chunks) == sums((3, 4), 40)
    assert chunks[-1].finish_reason == "length"


async def test_who_comes_after_the_end_does_not_wait() -> None:
    async with running(FaultyRunner()) as engine:
        await engine.aclose()
        with pytest.raises(EngineUnavailable):
            await collect(engine, Request("r", (1,), 1), timeout_s=0.01)


async def test_every_chunk_says_what_its_sequence_has_cost_so_far() -> None:
    async with running(FaultyRunner(step_s=0.001)) as engine:
        chunks = await collect(engine, Request("r", (1,), 9))
    spent_ms = [chunk.accelerator_ms for chunk in chunks]
    assert spent_ms[0] >= 1
    assert spent_ms == sorted(spent_ms)
    assert spent_ms[-1] == pytest.approx(9)


async def test_accelerator_time_is_shared_by_the_sequences_of_a_step() -> None:
    async with running(FaultyRunner(num_slots=4, step_s=0.001)) as engine:
        answers = await asyncio.gather(*(collect(engine, Request("r", (1,), 5)) for _ in range(4)))
        total = sum(answer[-1].accelerator_ms for answer in answers)
        assert total == pytest.approx(engine.accelerator_s * 1000)
