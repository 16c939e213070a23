"""Products as the processor computes them, against numpy's in float64 and in whole numbers."""

import numpy as np
import pytest

from app.kernels.compiler import Kernels
from tests.kernels.calls import MACHINES, kernels_of, product, product_of_bytes

pytestmark = pytest.mark.xdist_group("kernels")
SHAPES = [
    (1, 1, 1),
    (64, 8, 1),
    (70, 13, 5),
    (33, 768, 12),
    (31, 129, 13),
    (100, 7, 40),
    (257, 50, 136),
    (2000, 300, 3),
]


@pytest.fixture(params=MACHINES)
def kernels(request: pytest.FixtureRequest) -> Kernels:
    return kernels_of(request.param)


@pytest.fixture(params=MACHINES)
def kernels_of_bytes(request: pytest.FixtureRequest) -> Kernels:
    kernels = kernels_of(request.param)
    if kernels.machine.dot is None:
        pytest.skip("this processor has no products of bytes")
    return kernels


def some(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).standard_normal(shape, np.float32)


def some_bytes(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).integers(-128, 128, shape, np.int8)


@pytest.mark.parametrize(("num_outputs", "depth", "num_columns"), SHAPES)
def test_a_product_is_as_close_as_float32_allows(
    kernels: Kernels, num_outputs: int, depth: int, num_columns: int
) -> None:
    weight, x = some(num_outputs, depth), some(depth, num_columns)
    exact = weight.astype(np.float64) @ x
    most = depth * 2.0**-24 * (np.abs(weight) @ np.abs(x))  # each addition rounds once
    assert (np.abs(product(kernels, weight, x) - exact) <= most).all()


def test_a_column_has_the_same_bits_among_any_number_of_others(kernels: Kernels) -> None:
    weight, x = some(45, 101), some(101, 136)
    alone = np.concatenate([product(kernels, weight, x[:, i : i + 1].copy()) for i in range(136)], axis=1)
    for num_columns in (*range(1, 41), 136):
        together = product(kernels, weight, x[:, :num_columns].copy())
        assert together.tobytes() == alone[:, :num_columns].tobytes()


@pytest.mark.parametrize("num_pieces", [1, 2, 7, 1000])
def test_a_product_has_the_same_bits_in_any_number_of_pieces(kernels: Kernels, num_pieces: int) -> None:
    weight, x = some(600, 200), some(200, 40)
    assert product(kernels, weight, x, num_pieces).tobytes() == product(kernels, weight, x).tobytes()


@pytest.mark.parametrize(("num_outputs", "depth", "num_columns"), SHAPES)
def test_a_product_of_bytes_is_exact(kernels_of_bytes: Kernels, num_outputs: int, depth: int, num_columns: int) -> None:
    weight, x = some_bytes(num_outputs, depth), some_bytes(depth, num_columns)
    x[0] = 127  # a step of one, so that nothing is rounded
    scale = 2.0 ** np.arange(num_outputs, dtype=np.float32).clip(0, 9)
    expected = (weight.astype(np.int32) @ x.clip(-127).astype(np.int32)).astype(np.float32) * scale[:, np.newaxis]
    answer = product_of_bytes(kernels_of_bytes, weight, scale, x.clip(-127).astype(np.float32))
    assert np.array_equal(answer, expected)


def test_columns_become_bytes_by_their_own_largest(kernels_of_bytes: Kernels) -> None:
    weight, x = some_bytes(50, 90), some(90, 17) * 10.0 ** np.arange(-8, 9, dtype=np.float32)
    x[:, 3] = 0
    largest = np.maximum(np.abs(x).max(axis=0), np.float32(1e-30))
    rounded = np.rint(x * (np.float32(127) / largest)).astype(np.int32)
    scale = np.abs(some(50))
    expected = (weight.astype(np.int32) @ rounded).astype(np.float32) * (largest / np.float32(127)) * scale[:, None]
    assert np.array_equal(product_of_bytes(kernels_of_bytes, weight, scale, x), expected)


def test_a_column_of_bytes_has_the_same_bits_among_any_number_of_others(kernels_of_bytes: Kernels) -> None:
    weight, scale, x = some_bytes(45, 101), np.abs(some(45)), some(101, 40)
    columns = [product_of_bytes(kernels_of_bytes, weight, scale, x[:, i : i + 1].copy()) for i in range(40)]
    alone = np.concatenate(columns, axis=1)
    for num_columns in range(1, 41):
        together = product_of_bytes(kernels_of_bytes, weight, scale, x[:, :num_columns].copy())
        assert together.tobytes() == alone[:, :num_columns].tobytes()


@pytest.mark.parametrize("weight", [127, -127, -128])
@pytest.mark.parametrize("x", [127, -127])
def test_a_product_of_the_largest_bytes_is_exact(kernels_of_bytes: Kernels, weight: int, x: int) -> None:
    depth = 11_009
    columns, one = np.full((depth, 13), x, np.float32), np.ones(40, np.float32)
    answer = product_of_bytes(kernels_of_bytes, np.full((40, depth), weight, np.int8), one, columns)
    assert (answer == np.float32(weight * x * depth)).all()
