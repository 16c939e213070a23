"""What sequences leave behind between steps, in variables that are updated in place.

XLA on a CPU copies whatever part of a variable a call reads, which takes longer than
the reading itself. So slots lie apart in groups and positions in blocks, and a call
takes the first groups and the first blocks as they are. A block is computed by
itself, whatever is read beside it, so a row's bits do not depend on how many slots
or positions a call covers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import tensorflow as tf


@dataclass(frozen=True, slots=True)
class Block:
    """A stretch of positions of a group's slots.

    Attributes:
        positions: those that it holds.
        variables: the family's own; the first axis of each is the group's slots.
    """

    positions: range
    variables: tuple[tf.Variable, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """Slots that lie together, and all their positions in order."""

    slots: range
    blocks: tuple[Block, ...]

    def read(self, context: int) -> tuple[Block, ...]:
        """The blocks that hold the first `context` positions."""
        return tuple(block for block in self.blocks if block.positions.start < context)


@dataclass(frozen=True, slots=True)
class Cache:
    """All slots, in order of their groups."""

    groups: tuple[Group, ...]

    @property
    def num_slots(self) -> int:
        """Sequences that it can hold."""
        return self.groups[-1].slots.stop

    @property
    def context_length(self) -> int:
        """Positions that it holds of each."""
        return self.groups[0].blocks[-1].positions.stop

    @property
    def nbytes(self) -> int:
        """Device memory that all of it takes, bytes."""
        variables = [v for group in self.groups for block in group.blocks for v in block.variables]
        return sum(v.dtype.size * v.shape.num_elements() for v in variables)

    def group_of(self, slot: int) -> int:
        """The number of the group that has this slot."""
        return next(number for number, group in enumerate(self.groups) if slot in group.slots)


def stretches(ends: Sequence[int]) -> tuple[range, ...]:
    """Ranges from 0 on that end at these rising numbers."""
    return tuple(range(start, end) for start, end in pairwise((0, *ends)))
