"""The pool by itself, with pieces that can be counted, and under products that many threads ask for at once."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from llvmlite import ir

from app.kernels.code import I64, PTR, Code
from app.kernels.compiler import Kernels
from app.kernels.pool import LEAST_WORK, MOST_HELPERS, PIECE, Pool
from tests.kernels.calls import compiled, function_at, kernels_of, machine_here, product

pytestmark = pytest.mark.xdist_group("kernels")
NUM_CALLERS = 6


def counter(num_helpers: int, *, has_pause: bool = True) -> Kernels:
    """`count(place, pieces, work)`: each piece adds one to its own number at the place."""
    machine = machine_here()
    module = ir.Module("counter")
    pool = Pool(module, machine.pause if has_pause else None)
    piece = Code(module, "piece", PIECE)
    place, number = piece.arguments
    mine = place.at(number, I64)
    mine.store(mine.load(I64, 8) + 1, 8)
    function = piece.end()
    count = Code(module, "count", [PTR, I64, I64], is_exported=True)
    count.call(pool.run, count.pointer(function), *count.arguments)
    count.end()
    kernels = Kernels(machine, compiled(module, machine, ("add_helper", "help", "count")))
    kernels.add_helpers(num_helpers)
    return kernels


@pytest.mark.parametrize("num_helpers", [0, 1, 3])
@pytest.mark.parametrize("has_pause", [True, False])
@pytest.mark.parametrize("work", [0, LEAST_WORK - 1, LEAST_WORK])
def test_each_piece_is_done_once(num_helpers: int, has_pause: bool, work: int) -> None:
    count = function_at(counter(num_helpers, has_pause=has_pause).addresses["count"], 3)
    for num_pieces in (0, 1, 2, 5, 1000, 1000, 50_000):
        counts = np.zeros(num_pieces + 1, np.int64)
        count(counts.ctypes.data, num_pieces, work)
        assert counts.tolist() == [1] * num_pieces + [0]


def test_pieces_of_callers_at_the_same_time_do_not_mix() -> None:
    count = function_at(counter(2).addresses["count"], 3)

    def ask(num_pieces: int) -> bool:
        counts = np.zeros(num_pieces + 1, np.int64)
        for _ in range(500):
            count(counts.ctypes.data, num_pieces, LEAST_WORK)
        return counts.tolist() == [500] * num_pieces + [0]

    with ThreadPoolExecutor(NUM_CALLERS) as callers:
        assert all(callers.map(ask, range(2, 2 + 30 * NUM_CALLERS, 30)))


@pytest.mark.parametrize("num_helpers", [0, 1, 3])
def test_whoever_asks_at_the_same_time_gets_a_right_product(num_helpers: int) -> None:
    kernels = kernels_of("host", num_helpers)
    rng = np.random.default_rng(1)
    weight = rng.integers(-9, 10, (400, 100)).astype(np.float32)  # small whole numbers: exact in any order
    columns = [rng.integers(-9, 10, (100, 4 + 5 * i)).astype(np.float32) for i in range(NUM_CALLERS)]

    def ask(number: int) -> bool:
        expected = weight @ columns[number]
        return all(np.array_equal(product(kernels, weight, columns[number], 40), expected) for _ in range(50))

    with ThreadPoolExecutor(NUM_CALLERS) as callers:
        assert all(callers.map(ask, range(NUM_CALLERS)))


def test_helpers_that_fell_asleep_do_no_harm_when_they_wake() -> None:
    count = function_at(counter(2).addresses["count"], 3)
    rng = np.random.default_rng(2)
    one, other = rng.standard_normal((2, 500, 500))
    for _ in range(20):
        counts = np.zeros(65, np.int64)
        count(counts.ctypes.data, 64, LEAST_WORK)
        assert counts.tolist() == [1] * 64 + [0]
        one @ other  # takes longer than a helper looks out


def test_no_more_helpers_are_started_than_there_is_room_for() -> None:
    kernels = counter(0)
    kernels.num_helpers = MOST_HELPERS - 1
    kernels.add_helpers(0)
    kernels.add_helpers(-1)
    assert kernels.num_helpers == MOST_HELPERS - 1
