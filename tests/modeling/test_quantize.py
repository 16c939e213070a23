import numpy as np
import pytest
import tensorflow as tf

from app.modeling.linear import LARGEST, LARGEST_SUM, PIECE, first_only, linear
from app.modeling.quantize import to_bytes


@pytest.mark.parametrize("width", [7, 768, PIECE, PIECE + 1, 5000])
@pytest.mark.parametrize("is_even", [False, True])  # the worst case: every weight is as large as the largest
def test_the_first_column_is_the_same_bit_for_bit_by_itself(width: int, is_even: bool) -> None:
    rng = np.random.default_rng(width)
    weight = np.full((24, width), 0.3, np.float32) if is_even else rng.standard_normal((24, width), np.float32)
    stored, scale = to_bytes(weight)
    weights = {"w.weight": tf.constant(stored), "w.scale": tf.constant(scale)}
    product = tf.function(lambda x: linear(weights, "w", x), jit_compile=True)
    of_first = tf.function(lambda x: linear(first_only(weights), "w", x)[:, 0], jit_compile=True)
    x = np.abs(rng.standard_normal((width, 4), np.float32)) if is_even else rng.standard_normal((width, 4), np.float32)

    together = product(tf.constant(x)).numpy()

    for column in range(4):
        moved = np.roll(x, -column, axis=1)
        assert of_first(tf.constant(moved)).numpy().tobytes() == together[:, column].tobytes()


@pytest.mark.parametrize("width", [768, PIECE, 3 * PIECE])
def test_rows_of_large_weights_get_a_scale_that_keeps_their_sums_exact(width: int) -> None:
    stored, scale = to_bytes(np.full((2, width), -0.5, np.float32))

    sums = np.abs(stored.astype(np.int64)).reshape(2, -1, min(width, PIECE)).sum(axis=-1)
    assert sums.max() <= LARGEST_SUM
    np.testing.assert_allclose(stored * scale[:, np.newaxis], -0.5, rtol=1 / LARGEST)


def test_ordinary_rows_use_the_whole_range() -> None:
    weight = np.random.default_rng(0).standard_normal((16, PIECE), np.float32)

    stored, scale = to_bytes(weight)

    assert (np.abs(stored).max(axis=1) == LARGEST).all()
    assert np.abs(stored * scale[:, np.newaxis] - weight).max() <= scale.max() * 0.501
