import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.engine.prefixes import Prefixes


def test_only_whole_blocks_are_known_and_the_last_token_is_left_to_read() -> None:
    prefixes = Prefixes(8, block_tokens=4)
    assert prefixes.keep("a", tuple(range(9)))[0] == 0
    assert len(prefixes.match("a", tuple(range(9)))) == 2
    assert len(prefixes.match("a", tuple(range(8)))) == 1
    assert len(prefixes.match("a", (*range(4), 99, 98, 97, 96, 95))) == 1


def test_equal_tokens_after_another_beginning_are_another_block() -> None:
    prefixes = Prefixes(8, block_tokens=2)
    prefixes.keep("a", (1, 2, 7, 7))
    assert prefixes.match("a", (3, 4, 7, 7, 0)) == ()


@pytest.mark.parametrize("salt", ["b", ""])
def test_another_salt_knows_nothing(salt: str) -> None:
    prefixes = Prefixes(8, block_tokens=2)
    prefixes.keep("a", (1, 2, 3, 4))
    assert prefixes.match(salt, (1, 2, 3, 4, 5)) == ()


def test_what_was_used_longest_ago_goes_first_and_of_one_prompt_its_end() -> None:
    prefixes = Prefixes(4, block_tokens=1)
    prefixes.keep("a", (1, 2))
    prefixes.keep("a", (5, 6))
    prefixes.match("a", (1, 2, 3))
    first, places = prefixes.keep("a", (8,))
    assert (first, len(places)) == (0, 1)
    assert len(prefixes.match("a", (5, 6, 0))) == 1
    assert len(prefixes.match("a", (1, 2, 0))) == 2


def test_a_prompt_longer_than_the_cache_keeps_its_beginning() -> None:
    prefixes = Prefixes(3, block_tokens=1)
    first, places = prefixes.keep("a", tuple(range(10)))
    assert (first, len(places), len(set(places))) == (0, 3, 3)
    assert prefixes.match("a", tuple(range(10))) == places


def test_without_room_nothing_is_kept() -> None:
    assert Prefixes(0, block_tokens=1).keep("a", (1, 2)) == (0, ())


def test_clear_forgets_everything_and_leaks_no_place() -> None:
    prefixes = Prefixes(3, block_tokens=1)
    prefixes.keep("a", (1, 2, 3))
    prefixes.clear()
    assert prefixes.match("a", (1, 2, 3, 4)) == ()
    assert len(prefixes.keep("a", (4, 5, 6))[1]) == 3


@given(st.integers(1, 6), st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), max_size=30))
def test_a_place_always_holds_the_block_that_it_is_matched_for(num_blocks: int, prompts: list[list[int]]) -> None:
    """The device half is a list of the beginnings that were copied there."""
    prefixes, device = Prefixes(num_blocks, block_tokens=2), dict[int, tuple[int, ...]]()
    for given_prompt in prompts:
        prompt = tuple(given_prompt)
        for number, place in enumerate(prefixes.match("a", prompt), 1):
            assert device[place] == prompt[: 2 * number]
        first, places = prefixes.keep("a", prompt)
        for number, place in enumerate(places, first + 1):
            assert place < num_blocks
            device[place] = prompt[: 2 * number]
        assert len(prefixes) <= num_blocks
