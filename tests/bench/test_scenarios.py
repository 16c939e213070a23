from collections.abc import Iterator
from itertools import islice
from typing import cast

import pytest

from app.bench import scenarios
from app.bench.scenarios import Against, InBatches, Rounds
from app.bench.sides import Ours
from app.bench.workload import Lengths, Prompt, prompts
from tests.bench.fake_sides import FakeSide

ONCE = Rounds(1)


def draw(low: int = 8, high: int = 8) -> Iterator[Prompt]:
    return prompts(1, Lengths.of(4), Lengths(low, high), 100)


def test_throughput_is_ours_over_theirs() -> None:
    pair = Against(FakeSide("we", 0.01), FakeSide("they", 0.02), {4: 1.5})
    (finding,) = scenarios.throughput([pair], 4, draw(), ONCE)
    assert finding.ours == pytest.approx(400)
    assert finding.other == pytest.approx(200)
    assert finding.figure == pytest.approx(2.0)
    assert finding.verdict == "met"


def test_within_a_round_all_get_the_same_prompts_and_no_round_repeats_one() -> None:
    ours, theirs = FakeSide("we"), FakeSide("they")
    list(scenarios.throughput([Against(ours, theirs, {})], 3, draw(), Rounds(2)))
    assert ours.batches == theirs.batches
    seen = [prompt.tokens for batch in ours.batches for prompt in batch]
    assert len(set(seen)) == len(seen) == 9  # a warm-up and two rounds


def test_one_side_against_several_is_measured_once_a_round() -> None:
    ours = FakeSide("we")
    found = [*scenarios.throughput([Against(ours, FakeSide(n), {}) for n in ("a", "b")], 2, draw(), ONCE)]
    assert len(found) == 2
    assert len(ours.batches) == 2


def test_who_compiles_by_shape_is_not_asked_for_a_shorter_batch() -> None:
    theirs = FakeSide("they", warms_up=False)
    list(scenarios.throughput([Against(FakeSide("we"), theirs, {})], 2, draw(16, 16), ONCE))
    assert [prompt.max_tokens for batch in theirs.batches for prompt in batch] == [16, 16]


@pytest.mark.parametrize("fails_at", [0, 1, 2])
def test_a_peer_that_fails_leaves_the_others_in(fails_at: int) -> None:
    broken, good = FakeSide("broken", fails_at=fails_at), FakeSide("good")
    ours = FakeSide("we")
    pairs = [Against(ours, broken, {}), Against(ours, good, {})]
    failed, fine = scenarios.throughput(pairs, 2, draw(), Rounds(2))
    assert failed.failure == "broken ended"
    assert fine.figure == pytest.approx(1.0)
    assert len(broken.batches) == fails_at + 1


def test_no_round_begins_after_the_time_of_a_case_but_one_always_does() -> None:
    assert [*Rounds(5, 0.0)] == [0]
    assert [*Rounds(3, 60.0)] == [0, 1, 2]


def test_agreement_counts_equal_tokens_and_asks_it_of_exact_peers_only() -> None:
    ours = FakeSide("we")
    pairs = [
        Against(ours, FakeSide("same"), {}),
        Against(ours, FakeSide("other", wrong=1), {}),
        Against(ours, FakeSide("rounded", wrong=1), {}, is_exact=False),
        Against(ours, FakeSide("gone", fails_at=0), {}),
    ]
    same, other, rounded, gone = scenarios.agreement(pairs, draw())
    assert (same.figure, same.verdict) == (1.0, "met")
    assert (other.figure, other.verdict) == (0.0, "missed")
    assert rounded.verdict == ""
    assert gone.verdict == "failed"


def test_a_static_batch_lasts_as_long_as_its_longest_answer() -> None:
    requests = [Prompt((1,), 10), Prompt((1,), 1), Prompt((1,), 2), Prompt((1,), 4)]
    batch = scenarios.static_batches(FakeSide("they", 1.0), requests, 2)
    assert batch.seconds == 14
    assert [len(row) for row in batch.tokens] == [10, 1, 2, 4]


def test_mixed_lengths_ask_ours_at_once_and_the_others_in_batches() -> None:
    ours, theirs = FakeSide("we"), FakeSide("they")
    pairs = [Against(ours, theirs, {2: 3.0}), Against(ours, InBatches("we in batches", ours), {})]
    requests = draw(2, 9)
    first, second = scenarios.mixed_lengths(pairs, lambda: [*islice(requests, 6)], 2, ONCE)
    assert {len(batch) for batch in theirs.batches} == {2}
    assert {len(batch) for batch in ours.batches} == {2, 6}
    assert first.figure == pytest.approx(second.figure)
    assert first.figure > 1
    assert (first.target, second.target) == (3.0, None)


def test_a_later_first_token_is_counted_in_decode_steps() -> None:
    (finding,) = scenarios.first_token(
        cast("Ours", FakeSide("we", 0.01)), lambda n, m: next(prompts(n, Lengths.of(n), Lengths.of(m), 9)), ONCE
    )
    assert finding.figure == pytest.approx(3.0)
    assert finding.verdict == "missed"
