from hypothesis import given
from hypothesis import strategies as st

from app.engine import grid


@given(st.integers(1, 4096))
def test_every_text_has_a_bucket_and_the_longest_needs_no_padding(max_length: int) -> None:
    buckets = grid.length_buckets(max_length)
    assert list(buckets) == sorted(set(buckets))
    assert buckets[-1] == max_length


@given(st.integers(1, 4096))
def test_one_text_alone_is_always_a_batch(length: int) -> None:
    assert grid.batch_sizes(length)[0] == 1


@given(st.integers(1, 4096), st.integers(1, 500))
def test_what_is_taken_is_there_and_fills_its_shape(length: int, num_waiting: int) -> None:
    sizes = grid.batch_sizes(length)
    taken = grid.num_to_take(num_waiting, sizes)
    shape = next(size for size in sizes if size >= taken)
    assert 1 <= taken <= num_waiting
    assert 4 * taken >= 3 * shape


def test_seven_go_as_eight_and_five_as_four_and_one() -> None:
    sizes = grid.batch_sizes(128)
    assert sizes == (1, 2, 4, 8, 16)
    assert [grid.num_to_take(waiting, sizes) for waiting in (7, 5, 1, 40)] == [7, 4, 1, 16]
