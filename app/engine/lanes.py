"""Rows in which prompts are read, apart from the slots in which answers grow.

Any prompt may be read next, whatever slot it has, but a compiled call knows its
variables and copies what it reads a part of (`modeling/cache.py`). So prompts are read
in a few lanes, which lie together, and a prompt goes to its slot once, when it is
complete. A lane that is needed for another prompt is copied to its slot first, and
back when its turn comes again.

Copies are compiled too, one for each group and block: once a plain operation has
gathered from a variable or scattered into it, TensorFlow copies all of it at each read.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from app.engine.device import align_function_numbers
from app.modeling.cache import Block, Cache


class Lanes:
    """Which prompt is in which lane, and the copies between lanes and slots.

    Args:
        slots: where answers grow.
        lanes: the same blocks in one group; its last row serves for moves.
    """

    def __init__(self, slots: Cache, lanes: Cache) -> None:
        self._slots = slots
        [group] = lanes.groups
        self._spare = group.slots[-1]
        self._free = list(group.slots[:-1])
        # Slot to lane and known positions, the one that was used longest ago first.
        self._entered: OrderedDict[int, tuple[int, int]] = OrderedDict()
        self._stores = [_copies(group.blocks, theirs.blocks) for theirs in slots.groups]
        self._loads = [_copies(theirs.blocks, group.blocks) for theirs in slots.groups]

    def enter(self, slots: Sequence[int], starts: Sequence[int], ends: Sequence[int]) -> list[int]:
        """The lanes of these slots' prompts, `starts` positions of each read already and `ends` soon; all different.

        There must be as many lanes.
        """
        for slot, start in zip(slots, starts, strict=True):
            if start == 0:  # whoever had the slot before may have left a lane
                self._leave(slot)
        for slot in slots:
            if slot in self._entered:
                self._entered.move_to_end(slot)
        return [self._enter(*place) for place in zip(slots, starts, ends, strict=True)]

    def store(self, slot: int) -> None:
        """Copy a complete prompt to its slot; its lane is free then."""
        lane, end = self._entered[slot]
        self._copy(self._stores, slot, lane, end)
        self._leave(slot)

    def move(self, source: int, target: int, end: int) -> None:
        """Copy `end` positions of one slot to another, which nobody owns."""
        self._leave(target)
        self._copy(self._loads, source, self._spare, end)
        self._copy(self._stores, target, self._spare, end)

    def warm_up(self) -> None:
        """Run each copy once, on slots that nobody owns yet."""
        for group in self._slots.groups:
            self.move(group.slots[0], group.slots[0], self._slots.context_length)

    def _enter(self, slot: int, start: int, end: int) -> int:
        lane = self._entered[slot][0] if slot in self._entered else self._take(slot, start)
        self._entered[slot] = lane, end
        return lane

    def _take(self, slot: int, start: int) -> int:
        """A lane for a slot that has none, with what the slot knows already."""
        if not self._free:
            other = next(iter(self._entered))
            self.store(other)
        lane = self._free.pop()
        if start > 0:
            self._copy(self._loads, slot, lane, start)
        return lane

    def _leave(self, slot: int) -> None:
        if slot in self._entered:
            self._free.append(self._entered.pop(slot)[0])

    def _copy(self, copies: list[list[tuple[range, Any]]], slot: int, lane: int, end: int) -> None:
        """Copy the blocks that hold the first `end` positions, between a slot and a lane."""
        number = self._slots.group_of(slot)
        row = slot - self._slots.groups[number].slots.start
        pair = (lane, row) if copies is self._stores else (row, lane)
        for positions, copy in copies[number]:
            if positions.start < end:
                copy(*map(tf.constant, pair))


def _copies(sources: Sequence[Block], targets: Sequence[Block]) -> list[tuple[range, Any]]:
    """For each block a function of a row of the one and a row of the other."""
    return [(source.positions, _copy_of(source, target)) for source, target in zip(sources, targets, strict=True)]


def _copy_of(source: Block, target: Block) -> Any:  # noqa: ANN401 - TensorFlow has no types
    def copy(read: tf.Tensor, written: tf.Tensor) -> None:
        for theirs, ours in zip(source.variables, target.variables, strict=True):
            # Gathered: for a slice XLA would compile anew for each value of its start.
            ours.scatter_nd_update([[written]], tf.gather(theirs.value(), [read]))

    align_function_numbers()
    row = tf.TensorSpec((), tf.int32)
    return tf.function(copy, autograph=False, jit_compile=True).get_concrete_function(row, row)
