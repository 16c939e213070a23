from itertools import islice, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.bench.workload import Lengths, poisson_arrivals, prompts
from app.errors import ConfigError


@pytest.mark.parametrize(("text", "low", "high"), [("128", 128, 128), ("16:512", 16, 512)])
def test_a_length_is_a_number_or_a_range(text: str, low: int, high: int) -> None:
    assert Lengths.parse(text) == Lengths(low, high)


@pytest.mark.parametrize("text", ["", "x", "-1", "0", "5:", "5:4", "1:2:3", "1.5", "²"])
def test_what_is_no_length_is_refused(text: str) -> None:
    if text == "5:":  # a range without an end is its beginning
        assert Lengths.parse(text) == Lengths(5, 5)
        return
    with pytest.raises(ConfigError):
        Lengths.parse(text)


@given(seed=st.integers(0, 2**32), low=st.integers(1, 40), more=st.integers(0, 40), prefix=st.integers(0, 50))
def test_prompts_are_of_the_lengths_asked_and_repeat_with_the_seed(seed: int, low: int, more: int, prefix: int) -> None:
    lengths = Lengths(low, low + more)
    drawn = list(islice(prompts(seed, lengths, Lengths(1, 9), 50, prefix), 5))
    assert drawn == list(islice(prompts(seed, lengths, Lengths(1, 9), 50, prefix), 5))
    for prompt in drawn:
        assert lengths.low <= len(prompt.tokens) <= lengths.high
        assert max(prompt.tokens) < 50
        assert 1 <= prompt.max_tokens <= 9


def test_prompts_share_exactly_the_prefix_that_was_asked_for() -> None:
    first, second = islice(prompts(1, Lengths(30, 30), Lengths(1, 1), 10_000, 12), 2)
    assert first.tokens[:12] == second.tokens[:12]
    assert first.tokens[12:] != second.tokens[12:]


def test_arrivals_rise_come_at_the_rate_and_repeat_with_the_seed() -> None:
    times = list(islice(poisson_arrivals(7, rate=50.0), 20_000))
    assert times == list(islice(poisson_arrivals(7, rate=50.0), 20_000))
    gaps = [later - sooner for sooner, later in pairwise(times)]
    mean = sum(gaps) / len(gaps)
    assert min(gaps) >= 0
    assert mean == pytest.approx(1 / 50, rel=0.03)
    # Of a Poisson process the gaps deviate from their mean by the mean itself.
    assert (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5 == pytest.approx(mean, rel=0.05)
