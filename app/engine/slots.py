"""The rows of the batch: which are free, and whose the others are.

A slot holds keys and values for a whole context, so a sequence that owns one can
run to its budget and is never preempted.
"""

from collections.abc import Iterator

from app.engine.sequence import Sequence


class Slots:
    """A fixed number of rows, the lowest free one first.

    Args:
        count: rows of the batch, at least 1.
    """

    def __init__(self, count: int) -> None:
        assert count >= 1
        self._owners: list[Sequence | None] = [None] * count

    def __len__(self) -> int:
        return len(self._owners)

    def __iter__(self) -> Iterator[Sequence]:
        """The owners, in the order of their slots."""
        return (owner for owner in self._owners if owner is not None)

    @property
    def num_free(self) -> int:
        """Rows that nobody owns."""
        return self._owners.count(None)

    @property
    def can_allocate(self) -> bool:
        """Whether a row is free."""
        return None in self._owners

    def allocate(self, sequence: Sequence) -> int:
        """Give the sequence a row; the caller has asked `can_allocate`."""
        assert sequence.slot is None
        slot = self._owners.index(None)
        self._owners[slot] = sequence
        sequence.slot = slot
        return slot

    def free_below(self, end: int) -> list[int]:
        """Rows before `end` that nobody owns, rising."""
        return [slot for slot, owner in enumerate(self._owners[:end]) if owner is None]

    def move(self, sequence: Sequence, target: int) -> None:
        """Give the sequence another row, which is free, for its own."""
        assert self._owners[target] is None
        self.release(sequence)
        self._owners[target] = sequence
        sequence.slot = target

    def release(self, sequence: Sequence) -> None:
        """Take the row back; harmless for a sequence that has none."""
        if sequence.slot is None:
            return
        assert self._owners[sequence.slot] is sequence
        self._owners[sequence.slot] = None
        sequence.slot = None
