"""Both stores do the same with sequences, each in its own memory.

All that is remembered of a block of positions is one number here, so that it can be read back.
"""

from collections.abc import Callable
from typing import Protocol

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from app.engine.stores import MemoryStore, Store, VariableStore
from app.kernels.ops import Memory
from app.modeling.cache import Block, Cache, Group, stretches
from tests.kernels.started import started

pytestmark = pytest.mark.xdist_group("kernels")
NUM_SLOTS, NUM_LANES, BLOCK_TOKENS, NUM_BLOCKS = 4, 3, 32, 3
NUM_LAYERS, HEADS, HEAD_DIM = 2, 2, 32
KEPT_BYTES = NUM_LAYERS * 2 * HEADS * HEAD_DIM * BLOCK_TOKENS * 4


class World(Protocol):
    """A store, and what compiled calls do with its memory."""

    store: Store

    def write(self, lane: int, number: int, value: float) -> None:
        """A prompt's block."""

    def read(self, place: int, count: int) -> list[float]:
        """An answer's first blocks."""


class Variables:
    def __init__(self, cache_bytes: int) -> None:
        self._answers, self._prompts = _cache((1, NUM_SLOTS)), _cache((NUM_LANES,))
        self.store: Store = VariableStore(self._answers, self._prompts, BLOCK_TOKENS, cache_bytes)

    def write(self, lane: int, number: int, value: float) -> None:
        for variable in self._prompts.groups[0].blocks[0].variables:
            part = variable[lane, :, BLOCK_TOKENS * number : BLOCK_TOKENS * (number + 1)]
            part.assign(tf.fill((HEADS, BLOCK_TOKENS, HEAD_DIM), float(value)))

    def read(self, place: int, count: int) -> list[float]:
        group = self._answers.groups[self._answers.group_of(place)]
        found = np.stack([variable.numpy()[place - group.slots.start] for variable in group.blocks[0].variables])
        return [_one(found[:, :, BLOCK_TOKENS * i : BLOCK_TOKENS * (i + 1)]) for i in range(count)]


class InMemory:
    def __init__(self, cache_bytes: int) -> None:
        self._memory = Memory(started(), NUM_LAYERS, HEADS, HEAD_DIM, NUM_SLOTS, NUM_BLOCKS * BLOCK_TOKENS)
        self.store: Store = MemoryStore(self._memory, BLOCK_TOKENS, cache_bytes)

    def write(self, lane: int, number: int, value: float) -> None:
        self._block(lane, number)[:] = value

    def read(self, place: int, count: int) -> list[float]:
        return [_one(self._block(place, number)) for number in range(count)]

    def _block(self, place: int, number: int) -> np.ndarray:
        return self._memory.positions(place, BLOCK_TOKENS * number, BLOCK_TOKENS)


def _cache(slots: tuple[int, ...]) -> Cache:
    def block(held: range) -> Block:
        shape = (len(held), HEADS, NUM_BLOCKS * BLOCK_TOKENS, HEAD_DIM)
        return Block(range(shape[2]), tuple(tf.Variable(tf.zeros(shape)) for _ in range(2 * NUM_LAYERS)))

    return Cache(tuple(Group(held, (block(held),)) for held in stretches(slots)))


def _one(numbers: np.ndarray) -> float:
    [number] = np.unique(numbers).tolist()
    return float(number)


@pytest.fixture(params=[Variables, InMemory])
def make(request: pytest.FixtureRequest) -> Callable[[int], World]:
    made: Callable[[int], World] = request.param
    return made


def prompt(world: World, slot: int, values: list[float], start: int = 0) -> int:
    """Read a part of a prompt; where."""
    ends = BLOCK_TOKENS * (start + len(values))
    [lane] = world.store.enter([slot], [BLOCK_TOKENS * start], [ends])
    for number, value in enumerate(values, start):
        world.write(lane, number, value)
    return lane


def answer(world: World, slot: int, count: int = NUM_BLOCKS) -> list[float]:
    """What a call that goes on with a slot's sequence finds."""
    return world.read(int(world.store.rows(NUM_SLOTS, {slot})[slot]), count)


def test_an_answer_goes_on_where_its_prompt_was_read(make: Callable[[int], World]) -> None:
    world = make(0)
    for slot in range(2):
        prompt(world, slot, [slot + 1.0])
    for slot in range(2):
        prompt(world, slot, [slot + 3.0, slot + 5.0], start=1)
        world.store.complete(slot)
    assert [answer(world, slot) for slot in range(2)] == [[1, 3, 5], [2, 4, 6]]


def test_prompts_of_one_call_have_places_of_their_own(make: Callable[[int], World]) -> None:
    assert len(set(make(0).store.enter([3, 1], [0, 0], [8, 8]))) == 2


def test_a_sequence_that_moved_stays_as_it_is_whoever_gets_its_slot(make: Callable[[int], World]) -> None:
    world = make(0)
    prompt(world, 3, [1, 2, 3])
    world.store.complete(3)
    world.store.move(3, 0, BLOCK_TOKENS * NUM_BLOCKS)
    prompt(world, 3, [7, 8, 9])
    world.store.complete(3)
    assert answer(world, 0) == [1, 2, 3]
    world.store.move(0, 2, BLOCK_TOKENS * NUM_BLOCKS)
    world.store.move(3, 0, BLOCK_TOKENS * NUM_BLOCKS)
    assert (answer(world, 2), answer(world, 0)) == ([1, 2, 3], [7, 8, 9])


def test_kept_blocks_are_restored_to_any_slot_in_any_order(make: Callable[[int], World]) -> None:
    world = make(5 * KEPT_BYTES)
    lane = prompt(world, 1, [1, 2, 3])
    world.store.keep(lane, 0, (4,))
    world.store.keep(lane, 1, (0, 2))
    prompt(world, 1, [7, 8, 9])
    world.store.complete(1)
    [lane] = world.store.enter([2], [0], [3 * BLOCK_TOKENS])
    world.store.restore(lane, (2, 4, 0))
    world.store.complete(2)
    assert (answer(world, 2), answer(world, 1)) == ([3, 1, 2], [7, 8, 9])


@pytest.mark.parametrize(("cache_bytes", "expected"), [(0, 0), (KEPT_BYTES - 1, 0), (3 * KEPT_BYTES + 5, 3)])
def test_as_many_blocks_are_kept_as_there_are_bytes_for(
    make: Callable[[int], World], cache_bytes: int, expected: int
) -> None:
    assert make(cache_bytes).store.num_blocks == expected


def test_nothing_is_traced_after_warm_up(make: Callable[[int], World]) -> None:
    world = make(5 * KEPT_BYTES)
    world.store.warm_up()
    before = world.store.num_traces
    world.store.keep(prompt(world, 1, [1, 2]), 0, (4, 1))
    [lane] = world.store.enter([0], [0], [BLOCK_TOKENS])
    world.store.restore(lane, (4,))
    world.store.complete(0)
    world.store.move(0, 3, BLOCK_TOKENS)
    assert world.store.num_traces == before
    assert answer(world, 3, 1) == [1]


def test_without_kernels_a_row_is_its_slot() -> None:
    assert Variables(0).store.rows(3, {1}).tolist() == [0, 1, 2]


def test_in_memory_whoever_is_not_live_is_nowhere() -> None:
    store = InMemory(0).store
    store.move(2, 0, 1)
    assert store.rows(NUM_SLOTS, {0, 3}).tolist() == [2, -1, -1, 3]
    assert store.rows(1, {0, 3}).tolist() == [2]
    assert store.rows(2, ()).tolist() == [-1, -1]


@given(moves=st.lists(st.tuples(st.integers(0, NUM_SLOTS - 1), st.integers(0, NUM_SLOTS - 1)), max_size=20))
def test_in_memory_no_two_slots_are_ever_in_one_place(moves: list[tuple[int, int]]) -> None:
    store = InMemory(0).store
    for source, target in moves:
        before = store.rows(NUM_SLOTS, range(NUM_SLOTS))
        store.move(source, target, 1)
        after = store.rows(NUM_SLOTS, range(NUM_SLOTS))
        assert after[target] == before[source]
        assert sorted(after) == list(range(NUM_SLOTS))
