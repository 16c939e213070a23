from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.engine.scheduler import MAX_PASSED_OVER, Decode, Prefill, Restore, Scheduler, Step
from app.engine.sequence import Request, Sampling, Sequence, State, Token
from app.engine.shapes import Shapes
from app.engine.stub import StubRunner


def make_scheduler(
    num_slots: int = 2,
    queue_capacity: int = 100,
    *,
    chunk: int = 256,
    long: tuple[int, ...] = (),
    parts: tuple[int, ...] = (1,),
    prefill_budget: int = 512,
    num_blocks: int = 0,
) -> Scheduler:
    rows = tuple(sorted({min(2**i, num_slots) for i in range(8)}))
    shapes = Shapes(rows, parts, (chunk // 2, chunk, *long), chunk, num_blocks)
    return Scheduler(shapes, queue_capacity, prefill_budget)


def make_sequence(prompt: int = 1, max_tokens: int = 4, ends: tuple[int, ...] = (), salt: str = "") -> Sequence:
    return Sequence(
        Request("r", tuple(range(1, prompt + 1)), max_tokens, end_token_ids=frozenset(ends), cache_salt=salt)
    )


def answer(step: Step, token: int = 7) -> tuple[tuple[Token, ...], ...]:
    if isinstance(step, Restore):
        return ((),)
    if isinstance(step, Prefill):
        return tuple((Token(token),) if part.is_last else () for part in step.parts)
    return ((Token(token),) * step.num_steps,) * len(step.rows)


def run(scheduler: Scheduler, steps: int = 10_000, max_steps: int = 1) -> list[Step]:
    done: list[Step] = []
    while len(done) < steps and (step := scheduler.next_step(max_steps)) is not None:
        scheduler.advance(step, answer(step))
        done.append(step)
    return done


def begin(scheduler: Scheduler, *sequences: Sequence) -> None:
    """Enqueue and read their prompts."""
    for sequence in sequences:
        scheduler.enqueue(sequence)
    while any(sequence.state is not State.DECODING for sequence in sequences):
        run(scheduler, 1)


def test_a_sequence_is_prefilled_then_decoded_to_its_budget() -> None:
    scheduler, sequence = make_scheduler(2, 1), make_sequence(max_tokens=3)
    scheduler.enqueue(sequence)
    steps = run(scheduler)
    assert [type(step) for step in steps] == [Prefill, Decode, Decode]
    assert sequence.finish_reason == "length"
    assert [token.id for token in sequence.output] == [7, 7, 7]
    assert scheduler.slots.num_free == 2


def test_an_end_token_stops_and_is_not_delivered() -> None:
    scheduler, sequence = make_scheduler(1, 1), make_sequence(ends=(9,))
    scheduler.enqueue(sequence)
    prefill = scheduler.next_step()
    assert prefill is not None
    scheduler.advance(prefill, ((Token(5),),))
    decode = scheduler.next_step()
    assert decode is not None
    scheduler.advance(decode, ((Token(9),),))
    assert (sequence.finish_reason, [t.id for t in sequence.output]) == ("stop", [5])


def test_a_budget_of_zero_only_reads_the_prompt() -> None:
    scheduler, sequence = make_scheduler(1, 1), make_sequence(max_tokens=0)
    scheduler.enqueue(sequence)
    assert len(run(scheduler)) == 1
    assert (sequence.finish_reason, sequence.output) == ("length", [])


def test_chunks_end_at_the_same_places_whatever_the_load() -> None:
    def cuts(others: int) -> list[tuple[int, int]]:
        scheduler, sequence = make_scheduler(4, 8, chunk=4, prefill_budget=4), make_sequence(prompt=10)
        for _ in range(others):
            scheduler.enqueue(make_sequence(prompt=3))
        scheduler.enqueue(sequence)
        parts = [part for step in run(scheduler) if isinstance(step, Prefill) for part in step.parts]
        return [(part.start, part.end) for part in parts if part.sequence is sequence]

    assert cuts(0) == cuts(3) == [(0, 4), (4, 8), (8, 10)]


def parts_of(steps: list[Step]) -> list[tuple[Sequence, int, int]]:
    """Whose prompt was read from where to where, in order."""
    return [(part.sequence, part.start, part.end) for step in steps if isinstance(step, Prefill) for part in step.parts]


def test_a_lone_prompt_that_fits_a_call_is_read_in_one_and_a_longer_one_in_parts_a_size_shorter() -> None:
    scheduler = make_scheduler(2, chunk=4, long=(12, 20))
    for prompt, expected in (
        (20, [(0, 20)]),
        (13, [(0, 12), (12, 13)]),  # padding to 20 would cost more than another chunk
        (17, [(0, 17)]),
        (40, [(0, 12), (12, 24), (24, 36), (36, 40)]),
        (7, [(0, 4), (4, 7)]),
    ):
        scheduler.enqueue(make_sequence(prompt, 1))
        assert [(start, end) for _, start, end in parts_of(run(scheduler))] == expected


@pytest.mark.parametrize("num_slots", [1, 2])
def test_prompts_are_read_in_the_longest_parts_while_others_wait(num_slots: int) -> None:
    scheduler, one, two = make_scheduler(num_slots, chunk=4, long=(12, 20)), make_sequence(40, 1), make_sequence(40, 1)
    scheduler.enqueue(one)
    scheduler.enqueue(two)
    parts = parts_of(run(scheduler))
    assert [part for part in parts if part[0] is one] == [(one, 0, 20), (one, 20, 40)]
    assert next(part for part in parts if part[0] is two) == (two, 0, 12)  # alone again


def test_a_scored_prompt_is_read_by_chunks() -> None:
    scheduler = make_scheduler(2, chunk=4, long=(12, 20))
    sequence = Sequence(Request("r", (1,) * 14, 0, prompt_logprobs=True, logprobs=0))
    scheduler.enqueue(sequence)
    assert [end for _, _, end in parts_of(run(scheduler))] == [4, 8, 12, 14]


def test_only_parts_of_up_to_a_chunk_go_side_by_side() -> None:
    scheduler = make_scheduler(4, chunk=4, long=(12, 20), parts=(1, 2))
    for prompt in (20, 3, 20, 4):
        scheduler.enqueue(make_sequence(prompt, 1))
    steps = [step for step in run(scheduler) if isinstance(step, Prefill)]
    assert [[part.end - part.start for part in step.parts] for step in steps] == [[3, 4], [20], [20]]


@pytest.mark.parametrize("long", [(), (12, 20)])
def test_a_short_prompt_waits_for_one_part_of_a_long_one_at_most(long: tuple[int, ...]) -> None:
    scheduler = make_scheduler(2, 2, chunk=4, long=long)
    other, short = make_sequence(prompt=60), make_sequence(prompt=2)
    scheduler.enqueue(other)
    first = scheduler.next_step()
    assert first is not None
    scheduler.enqueue(short)
    scheduler.advance(first, answer(first))
    second = scheduler.next_step()
    assert second is not None
    assert second.sequences == (short,)


def test_a_long_prompt_is_not_passed_over_for_ever() -> None:
    scheduler, long = make_scheduler(2, 100, chunk=4), make_sequence(prompt=9)
    scheduler.enqueue(long)
    for _ in range(20):
        scheduler.enqueue(make_sequence(prompt=1, max_tokens=1))
    order = [step.sequences[0] is long for step in run(scheduler, MAX_PASSED_OVER + 1)]
    assert order.index(True) <= MAX_PASSED_OVER


def test_decoding_rows_get_a_token_after_each_prefill_budget() -> None:
    scheduler = make_scheduler(3, 3, chunk=4, prefill_budget=8)
    scheduler.enqueue(make_sequence(prompt=1, max_tokens=50))
    run(scheduler, 1)
    scheduler.enqueue(make_sequence(prompt=100))
    kinds = [type(step).__name__ for step in run(scheduler, 9)]
    longest = max(len(part) for part in "".join("p" if k == "Prefill" else "d" for k in kinds).split("d"))
    assert longest <= 2


def test_the_queue_is_bounded_beyond_the_free_slots() -> None:
    scheduler = make_scheduler(num_slots=1, queue_capacity=2)
    for _ in range(3):
        assert scheduler.can_enqueue
        scheduler.enqueue(make_sequence())
    assert not scheduler.can_enqueue


@pytest.mark.parametrize("steps_before", [0, 1, 2])
def test_abort_frees_the_slot_at_once(steps_before: int) -> None:
    scheduler, sequence = make_scheduler(1, 1), make_sequence(max_tokens=9)
    scheduler.enqueue(sequence)
    run(scheduler, steps_before)
    scheduler.abort(sequence)
    scheduler.abort(sequence)
    assert scheduler.slots.num_free == 1
    assert scheduler.next_step() is None


def test_result_of_a_step_after_abort_is_passed_by() -> None:
    scheduler, aborted, other = make_scheduler(2, 2), make_sequence(), make_sequence()
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


def test_several_steps_are_taken_at_once_while_nobody_waits_and_none_beyond_the_longest_budget() -> None:
    scheduler, short, long = make_scheduler(2), make_sequence(max_tokens=3), make_sequence(max_tokens=14)
    begin(scheduler, short, long)
    counts = [step.num_steps for step in run(scheduler, max_steps=100) if isinstance(step, Decode)]
    assert counts == [8, 5]
    assert (len(short.output), len(long.output)) == (3, 14)


def test_what_is_sampled_behind_an_end_is_not_delivered() -> None:
    scheduler, sequence = make_scheduler(1), make_sequence(max_tokens=100, ends=(9,))
    begin(scheduler, sequence)
    step = scheduler.next_step(max_steps=4)
    assert isinstance(step, Decode)
    scheduler.advance(step, ((Token(5), Token(9), Token(6), Token(6)),))
    assert (sequence.finish_reason, [t.id for t in sequence.output]) == ("stop", [7, 5])


def test_one_step_at_a_time_while_somebody_waits_or_the_host_decides() -> None:
    scheduler = make_scheduler(1)
    begin(scheduler, make_sequence(max_tokens=50))
    scheduler.enqueue(make_sequence())
    step = scheduler.next_step(max_steps=8)
    assert isinstance(step, Decode)
    assert step.num_steps == 1

    scheduler = make_scheduler(1)
    begin(scheduler, Sequence(Request("r", (1,), 50, Sampling(presence_penalty=1.0))))
    step = scheduler.next_step(max_steps=8)
    assert isinstance(step, Decode)
    assert step.num_steps == 1


def test_rows_move_up_where_that_makes_the_call_smaller() -> None:
    scheduler = make_scheduler(8)
    sequences = [make_sequence(max_tokens=50) for _ in range(8)]
    begin(scheduler, *sequences)
    for sequence in sequences[:6]:
        scheduler.abort(sequence)
    step = scheduler.next_step()
    assert isinstance(step, Decode)
    assert step.moves == ((6, 0), (7, 1))
    assert [row.slot for row in step.rows] == [0, 1]
    scheduler.advance(step, answer(step))
    again = scheduler.next_step()
    assert isinstance(again, Decode)
    assert again.moves == ()


def test_rows_stay_where_no_smaller_call_would_hold_them() -> None:
    scheduler = make_scheduler(8)
    sequences = [make_sequence(max_tokens=50) for _ in range(6)]
    begin(scheduler, *sequences)
    scheduler.abort(sequences[0])
    step = scheduler.next_step()
    assert isinstance(step, Decode)
    assert (step.moves, [row.slot for row in step.rows]) == ((), [1, 2, 3, 4, 5])


def test_parts_of_one_padded_length_go_together() -> None:
    scheduler = make_scheduler(4, chunk=8, parts=(1, 3))
    sequences = [make_sequence(prompt) for prompt in (8, 2, 7, 20)]
    for sequence in sequences:
        scheduler.enqueue(sequence)
    first, second = scheduler.next_step(), None
    assert isinstance(first, Prefill)
    assert [part.sequence for part in first.parts] == [sequences[1]]
    scheduler.advance(first, answer(first))
    second = scheduler.next_step()
    assert isinstance(second, Prefill)
    assert {id(part.sequence) for part in second.parts} == {id(sequences[i]) for i in (0, 2, 3)}


def test_a_scored_prompt_goes_alone() -> None:
    scheduler = make_scheduler(3, parts=(1, 3))
    scored = Sequence(Request("r", (1, 2), 1, logprobs=0, prompt_logprobs=True))
    for sequence in (scored, make_sequence(2), make_sequence(2)):
        scheduler.enqueue(sequence)
    assert all(len(step.sequences) == 1 for step in run(scheduler, 3))


def test_a_known_beginning_is_copied_and_not_read_again() -> None:
    scheduler = make_scheduler(2, chunk=4, num_blocks=8)
    first, second = make_sequence(11, 1, salt="a"), make_sequence(11, 1, salt="a")
    scheduler.enqueue(first)
    assert [type(step) for step in run(scheduler)] == [Prefill] * 3
    scheduler.enqueue(second)
    steps = run(scheduler)
    assert [type(step) for step in steps] == [Restore, Prefill]
    assert isinstance(steps[1], Prefill)
    assert (steps[1].parts[0].start, steps[1].parts[0].end) == (8, 11)
    assert (first.cached_tokens, second.cached_tokens, scheduler.cached_tokens) == (0, 8, 8)


@pytest.mark.parametrize("other", ["b", ""])
def test_no_beginning_is_shared_between_salts_or_without_one(other: str) -> None:
    scheduler = make_scheduler(2, chunk=4, num_blocks=8)
    for salt in ("a", other, other):
        scheduler.enqueue(make_sequence(11, 1, salt=salt))
        run(scheduler)
    assert scheduler.cached_tokens == (8 if other else 0)


def test_a_scored_prompt_is_read_whole() -> None:
    scheduler = make_scheduler(2, chunk=4, num_blocks=8)
    for _ in range(2):
        request = Request("r", tuple(range(1, 10)), 1, logprobs=0, prompt_logprobs=True, cache_salt="a")
        scheduler.enqueue(Sequence(request))
        run(scheduler)
    assert scheduler.cached_tokens == 0


def test_a_failed_step_leaves_nothing_in_the_prefix_cache() -> None:
    scheduler = make_scheduler(2, chunk=4, num_blocks=8)
    doomed = make_sequence(4, 1, salt="a")
    scheduler.enqueue(doomed)
    step = scheduler.next_step()
    assert step is not None
    scheduler.fail(step)
    assert doomed.state is State.FINISHED
    scheduler.enqueue(make_sequence(9, 1, salt="a"))
    run(scheduler)
    assert scheduler.cached_tokens == 0


@settings(deadline=None)
@given(
    jobs=st.lists(
        st.tuples(st.integers(1, 30), st.integers(1, 20), st.booleans(), st.sampled_from(("", "a", "b"))),
        min_size=1,
        max_size=25,
    ),
    num_slots=st.integers(1, 9),
    max_steps=st.integers(1, 9),
    order=st.randoms(use_true_random=False),
)
def test_everybody_ends_with_the_answer_of_his_own_and_no_slot_leaks(
    jobs: list[tuple[int, int, bool, str]], num_slots: int, max_steps: int, order: Random
) -> None:
    scheduler = make_scheduler(num_slots, chunk=4, parts=(1, 2), prefill_budget=8, num_blocks=5)
    sequences = [make_sequence(prompt, budget, salt=salt) for prompt, budget, _, salt in jobs]
    doomed = {s for s, job in zip(sequences, jobs, strict=True) if job[2]}
    waiting, guard = list(sequences), 0
    while waiting or scheduler.queue_depth or [*scheduler.slots]:
        guard += 1
        assert guard < 5000
        if waiting and order.random() < 0.5:
            scheduler.enqueue(waiting.pop())
        step = scheduler.next_step(max_steps)
        if step is None:
            continue
        if isinstance(step, Decode):
            assert len({row.slot for row in step.rows}) == len(step.rows)
            assert not {target for _, target in step.moves} & {source for source, _ in step.moves}
        victim = step.sequences[0]
        if victim in doomed and order.random() < 0.3:
            scheduler.abort(victim)
        scheduler.advance(step, answer(step))
    assert scheduler.slots.num_free == num_slots
    for sequence, job in zip(sequences, jobs, strict=True):
        assert sequence.state is State.FINISHED
        assert len(sequence.output) == job[1] or sequence in doomed


@settings(deadline=None)
@given(
    jobs=st.lists(
        st.tuples(st.integers(1, 30), st.integers(1, 20), st.sampled_from(("", "a", "b"))), min_size=1, max_size=25
    ),
    num_slots=st.integers(1, 9),
    long=st.sampled_from(((), (12,), (12, 20))),
    order=st.randoms(use_true_random=False),
)
def test_answers_are_those_computed_by_hand_whoever_leaves_and_whatever_fails(
    jobs: list[tuple[int, int, str]], num_slots: int, long: tuple[int, ...], order: Random
) -> None:
    """On the device that keeps sums, with moves, aborts under way, copies from the prefix cache, and failures."""
    runner = StubRunner(num_slots, vocab_size=97)
    runner.shapes = replace(runner.shapes, lengths=(4, *long), chunk=4, num_blocks=5)
    scheduler = Scheduler(runner.shapes, 100, prefill_budget=8)
    waiting = [make_sequence(prompt, budget, salt=salt) for prompt, budget, salt in jobs]
    sequences, gone = [*waiting], set[Sequence]()
    while waiting or scheduler.queue_depth or [*scheduler.slots]:
        if waiting and order.random() < 0.5:
            scheduler.enqueue(waiting.pop())
        step = scheduler.next_step(max_steps=9)
        if step is None:
            continue
        if order.random() < 0.05:
            victim = order.choice(sequences)
            if victim not in waiting and victim.is_live:
                scheduler.abort(victim)
                gone.add(victim)
        if order.random() < 0.03:
            scheduler.fail(step)
            gone.update(step.sequences)
        else:
            scheduler.advance(step, runner.run(step).tokens)
    assert scheduler.slots.num_free == num_slots
    for sequence in set(sequences) - gone:
        known = [*sequence.request.prompt]
        for token in sequence.output:
            assert token.id == sum(known) % 97
            known.append(token.id)
        assert len(sequence.output) == sequence.request.max_tokens
