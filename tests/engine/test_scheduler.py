import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.engine.scheduler import MAX_PASSED_OVER, Decode, Prefill, QueueFull, Scheduler, Step
from app.engine.sequence import Request, Sequence, State, Token


def make_sequence(prompt: int = 1, max_tokens: int = 4, ends: tuple[int, ...] = ()) -> Sequence:
    return Sequence(Request("r", tuple(range(1, prompt + 1)), max_tokens, end_token_ids=frozenset(ends)))


def answer(step: Step, token: int = 7) -> tuple[Token, ...]:
    if isinstance(step, Prefill) and not step.is_last:
        return ()
    return tuple(Token(token) for _ in step.sequences)


def run(scheduler: Scheduler, steps: int = 10_000) -> list[Step]:
    done: list[Step] = []
    while (step := scheduler.next_step()) is not None and len(done) < steps:
        scheduler.advance(step, answer(step))
        done.append(step)
    return done


def test_a_sequence_is_prefilled_then_decoded_to_its_budget() -> None:
    scheduler, sequence = Scheduler(2, 1), make_sequence(max_tokens=3)
    scheduler.enqueue(sequence)
    steps = run(scheduler)
    assert [type(step) for step in steps] == [Prefill, Decode, Decode]
    assert sequence.finish_reason == "length"
    assert [token.id for token in sequence.output] == [7, 7, 7]
    assert scheduler.slots.num_free == 2


def test_an_end_token_stops_and_is_not_delivered() -> None:
    scheduler, sequence = Scheduler(1, 1), make_sequence(ends=(9,))
    scheduler.enqueue(sequence)
    prefill = scheduler.next_step()
    assert prefill is not None
    scheduler.advance(prefill, (Token(5),))
    decode = scheduler.next_step()
    assert decode is not None
    scheduler.advance(decode, (Token(9),))
    assert (sequence.finish_reason, [t.id for t in sequence.output]) == ("stop", [5])


def test_a_budget_of_zero_only_reads_the_prompt() -> None:
    scheduler, sequence = Scheduler(1, 1), make_sequence(max_tokens=0)
    scheduler.enqueue(sequence)
    assert len(run(scheduler)) == 1
    assert (sequence.finish_reason, sequence.output) == ("length", [])


def test_chunks_end_at_the_same_places_whatever_the_load() -> None:
    def cuts(others: int) -> list[tuple[int, int]]:
        scheduler, sequence = Scheduler(4, 8, chunk=4, prefill_budget=4), make_sequence(prompt=10)
        for _ in range(others):
            scheduler.enqueue(make_sequence(prompt=3))
        scheduler.enqueue(sequence)
        steps = [s for s in run(scheduler) if isinstance(s, Prefill) and s.sequence is sequence]
        return [(s.start, s.end) for s in steps]

    assert cuts(0) == cuts(3) == [(0, 4), (4, 8), (8, 10)]


def test_a_short_prompt_waits_for_one_chunk_of_a_long_one_at_most() -> None:
    scheduler, long, short = Scheduler(2, 2, chunk=4), make_sequence(prompt=40), make_sequence(prompt=2)
    scheduler.enqueue(long)
    first = scheduler.next_step()
    assert first is not None
    scheduler.enqueue(short)
    scheduler.advance(first, answer(first))
    second = scheduler.next_step()
    assert second is not None
    assert second.sequences == (short,)


def test_a_long_prompt_is_not_passed_over_for_ever() -> None:
    scheduler, long = Scheduler(2, 100, chunk=4), make_sequence(prompt=9)
    scheduler.enqueue(long)
    for _ in range(20):
        scheduler.enqueue(make_sequence(prompt=1, max_tokens=1))
    order = [step.sequences[0] is long for step in run(scheduler, MAX_PASSED_OVER + 1)]
    assert order.index(True) <= MAX_PASSED_OVER


def test_decoding_rows_get_a_token_after_each_prefill_budget() -> None:
    scheduler = Scheduler(3, 3, chunk=4, prefill_budget=8)
    scheduler.enqueue(make_sequence(prompt=1, max_tokens=50))
    run(scheduler, 1)
    scheduler.enqueue(make_sequence(prompt=100))
    kinds = [type(step).__name__ for step in run(scheduler, 9)]
    longest = max(len(part) for part in "".join("p" if k == "Prefill" else "d" for k in kinds).split("d"))
    assert longest <= 2


def test_the_queue_is_bounded_beyond_the_free_slots() -> None:
    scheduler = Scheduler(num_slots=1, queue_capacity=2)
    for _ in range(3):
        scheduler.enqueue(make_sequence())
    with pytest.raises(QueueFull):
        scheduler.enqueue(make_sequence())


@pytest.mark.parametrize("steps_before", [0, 1, 2])
def test_abort_frees_the_slot_at_once(steps_before: int) -> None:
    scheduler, sequence = Scheduler(1, 1), make_sequence(max_tokens=9)
    scheduler.enqueue(sequence)
    run(scheduler, steps_before)
    scheduler.abort(sequence)
    scheduler.abort(sequence)
    assert scheduler.slots.num_free == 1
    assert scheduler.next_step() is None


def test_result_of_a_step_after_abort_is_passed_by() -> None:
    scheduler, aborted, other = Scheduler(2, 2), make_sequence(), make_sequence()
    scheduler.enqueue(aborted)
    scheduler.enqueue(other)
    run(scheduler, 2)
    step = scheduler.next_step()
    assert isinstance(step, Decode)
    scheduler.abort(aborted)
    before = len(aborted.output)
    scheduler.advance(step, answer(step))
    assert len(aborted.output) == before
    assert aborted.state is State.FINISHED


@settings(deadline=None)
@given(
    jobs=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 8), st.booleans()), min_size=1, max_size=25),
    num_slots=st.integers(1, 4),
    order=st.randoms(use_true_random=False),
)
def test_everybody_ends_with_the_answer_of_his_own_and_no_slot_leaks(
    jobs: list[tuple[int, int, bool]], num_slots: int, order: "object"
) -> None:
    scheduler = Scheduler(num_slots, 100, chunk=4, prefill_budget=8)
    sequences = [make_sequence(prompt, budget) for prompt, budget, _ in jobs]
    doomed = {s for s, (_, _, is_doomed) in zip(sequences, jobs, strict=True) if is_doomed}
    waiting, guard = list(sequences), 0
    while waiting or scheduler.queue_depth or [*scheduler.slots]:
        guard += 1
        assert guard < 5000
        if waiting and order.random() < 0.5:  # type: ignore[attr-defined]
            scheduler.enqueue(waiting.pop())
        step = scheduler.next_step()
        if step is None:
            continue
        if isinstance(step, Decode):
            assert len({row.slot for row in step.rows}) == len(step.rows)
        victim = step.sequences[0]
        if victim in doomed and order.random() < 0.3:  # type: ignore[attr-defined]
            scheduler.abort(victim)
        scheduler.advance(step, answer(step))
    assert scheduler.slots.num_free == num_slots
    for sequence, (_, budget, _) in zip(sequences, jobs, strict=True):
        assert sequence.state is State.FINISHED
        assert len(sequence.output) == budget or sequence in doomed
