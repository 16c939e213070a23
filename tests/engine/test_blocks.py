import numpy as np
import pytest
import tensorflow as tf

from app.engine.blocks import BlockPool, block_bytes
from app.modeling.cache import Block, Cache, Group, stretches

NUM_LANES, HEADS, HEAD_SIZE = 3, 2, 4
# A block of tokens may lie in two blocks of positions.
STRETCHES, BLOCK_TOKENS = (8, 20), 3


@pytest.fixture
def lanes() -> Cache:
    def block(reach: range) -> Block:
        shape = (NUM_LANES, HEADS, len(reach), HEAD_SIZE)
        return Block(reach, tuple(tf.Variable(tf.zeros(shape)) for _ in range(2)))

    return Cache((Group(range(NUM_LANES), tuple(map(block, stretches(STRETCHES)))),))


def write(lanes: Cache, lane: int, numbers: np.ndarray) -> None:
    """Put `[2, G, positions, H]` where a lane begins."""
    for block in lanes.groups[0].blocks:
        part = numbers[:, :, block.positions.start : block.positions.stop]
        for variable, values in zip(block.variables, part, strict=True):
            variable[lane, :, : values.shape[1]].assign(values)


def read(lanes: Cache, lane: int, count: int) -> np.ndarray:
    blocks = lanes.groups[0].blocks
    found = [np.concatenate([block.variables[i][lane].numpy() for block in blocks], axis=1) for i in range(2)]
    return np.stack(found)[:, :, :count]


def test_what_was_kept_is_restored_to_another_lane_and_nothing_else_changes(lanes: Cache) -> None:
    pool = BlockPool(lanes, 7, BLOCK_TOKENS)
    numbers = np.random.default_rng(1).standard_normal((2, HEADS, 15, HEAD_SIZE)).astype(np.float32)
    write(lanes, 1, numbers)
    pool.keep(1, 0, (6, 0))
    pool.keep(1, 2, (3, 1, 4))
    pool.restore(2, (6, 0, 3, 1))
    assert np.array_equal(read(lanes, 2, 12), numbers[:, :, :12])
    assert not read(lanes, 2, 20)[:, :, 12:].any()
    assert np.array_equal(read(lanes, 1, 15), numbers)
    assert not read(lanes, 0, 20).any()


def test_copies_of_any_length_need_no_graph_of_their_own(lanes: Cache) -> None:
    pool = BlockPool(lanes, 7, BLOCK_TOKENS)
    assert pool.num_traces == 2
    pool.warm_up()
    pool.keep(1, 1, (2, 3, 4))
    pool.restore(2, (5, 6))
    assert pool.num_traces == 2


def test_a_block_takes_what_its_positions_take_in_one_lane(lanes: Cache) -> None:
    assert block_bytes(lanes, BLOCK_TOKENS) == 2 * HEADS * HEAD_SIZE * BLOCK_TOKENS * 4
