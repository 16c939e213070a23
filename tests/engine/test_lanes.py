import numpy as np
import pytest
import tensorflow as tf

from app.engine.lanes import Lanes
from app.modeling.cache import Block, Cache, Group, stretches

GROUPS, BLOCKS = (1, 4), (8, 16)
# Two prompts at a time, and the row for moves.
NUM_ROWS = 3


def cache(slots: tuple[int, ...]) -> Cache:
    """One number a position."""

    def block(held: range, reach: range) -> Block:
        return Block(reach, (tf.Variable(tf.zeros((len(held), len(reach)))),))

    return Cache(
        tuple(Group(held, tuple(block(held, reach) for reach in stretches(BLOCKS))) for held in stretches(slots))
    )


class Rows:
    """What a runner does, with a row of numbers for a prompt."""

    def __init__(self) -> None:
        self.slots, self.rows = cache(GROUPS), cache((NUM_ROWS,))
        self.lanes = Lanes(self.slots, self.rows)

    def read(self, slot: int, start: int, numbers: list[float]) -> None:
        """Read a part of a prompt."""
        [lane] = self.lanes.enter([slot], [start], [start + len(numbers)])
        write(self.rows, lane, start, numbers)

    def slot(self, slot: int) -> list[float]:
        group = self.slots.groups[self.slots.group_of(slot)]
        found = [block.variables[0][slot - group.slots.start].numpy() for block in group.blocks]
        return [float(number) for number in np.concatenate(found)]


def write(rows: Cache, row: int, start: int, numbers: list[float]) -> None:
    for position, number in enumerate(numbers, start):
        block = next(block for block in rows.groups[0].blocks if position in block.positions)
        block.variables[0][row, position - block.positions.start].assign(number)


@pytest.fixture
def rows() -> Rows:
    return Rows()


@pytest.mark.parametrize("slot", [0, 1, 3])
def test_a_complete_prompt_is_in_its_slot(rows: Rows, slot: int) -> None:
    rows.read(slot, 0, [1, 2, 3])
    rows.read(slot, 3, [4, 5, 6, 7, 8, 9])
    rows.lanes.store(slot)
    assert rows.slot(slot)[:9] == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert all(not any(rows.slot(other)) for other in {0, 1, 2, 3} - {slot})


def test_prompts_that_give_way_to_others_go_on_where_they_were(rows: Rows) -> None:
    for slot in range(4):
        rows.read(slot, 0, [slot + 1.0] * 5)
    for slot in range(4):
        rows.read(slot, 5, [slot + 10.0] * 5)
        rows.lanes.store(slot)
    for slot in range(4):
        assert rows.slot(slot)[:10] == [slot + 1.0] * 5 + [slot + 10.0] * 5


def test_prompts_of_one_call_have_lanes_of_their_own(rows: Rows) -> None:
    rows.read(3, 0, [1, 2])
    lanes = rows.lanes.enter([0, 3], [0, 2], [4, 6])
    assert len(set(lanes)) == 2


def test_a_prompt_begins_anew_where_another_was_given_up(rows: Rows) -> None:
    rows.read(2, 0, [7] * 12)
    rows.read(2, 0, [1, 2])
    rows.lanes.store(2)
    assert rows.slot(2)[:2] == [1, 2]


def test_what_moves_to_a_slot_is_not_overwritten_by_a_prompt_given_up_there(rows: Rows) -> None:
    rows.read(3, 0, [1, 2, 3])
    rows.lanes.store(3)
    rows.read(0, 0, [7, 7, 7])  # nobody goes on with it
    rows.lanes.move(3, 0, 3)
    for slot in (1, 2, 3):
        rows.read(slot, 0, [9])
    assert rows.slot(0)[:3] == [1, 2, 3]
