"""Where a decoder's sequences are remembered between calls, behind one interface.

With kernels (`app/kernels`) keys and values lie in memory of our own: prompts are read where
their answers will grow, a sequence moves by a change of one number, and what a call reads
follows from the sequences and not from its shape. Without, they lie in TensorFlow's
variables (`modeling/cache.py`), with lanes for prompts and copies between them.
"""

from collections.abc import Collection, Sequence
from typing import Protocol

import numpy as np

from app.engine.blocks import BlockPool, block_bytes
from app.engine.lanes import Lanes
from app.kernels.ops import Memory
from app.modeling.cache import Cache


class Store(Protocol):
    """What the runner does with sequences.

    Attributes:
        prompts: what calls that read prompts get.
        answers: what decode calls get.
        num_blocks: of prompts' beginnings that can be kept.
    """

    prompts: Cache | Memory
    answers: Cache | Memory
    num_blocks: int

    @property
    def num_traces(self) -> int:
        """How often a graph was made."""

    def warm_up(self) -> None:
        """Do everything once, while no sequence is there."""

    def enter(self, slots: Sequence[int], starts: Sequence[int], ends: Sequence[int]) -> list[int]:
        """Where in `prompts` these slots' prompts are read, `starts` positions of each read already and `ends` soon."""

    def complete(self, slot: int) -> None:
        """A slot's prompt has been read."""

    def move(self, source: int, target: int, end: int) -> None:
        """Take `end` positions of one slot to another, which nobody owns; then nobody owns the first."""

    def rows(self, count: int, live: Collection[int]) -> np.ndarray:
        """Where in `answers` the first slots' sequences are, `[count]` int32; -1: nowhere, for one that is not live."""

    def restore(self, lane: int, places: tuple[int, ...]) -> None:
        """Copy kept blocks to the beginning of a prompt, in order."""

    def keep(self, lane: int, first: int, places: tuple[int, ...]) -> None:
        """Copy a prompt's blocks from number `first` on to these places."""


class VariableStore:
    """In TensorFlow's variables.

    Args:
        answers: of all slots.
        prompts: the same blocks in one group.
        block_tokens: of a block that is kept.
        cache_bytes: for kept blocks; 0: none are.
    """

    def __init__(self, answers: Cache, prompts: Cache, block_tokens: int, cache_bytes: int) -> None:
        self.answers: Cache | Memory = answers
        self.prompts: Cache | Memory = prompts
        self._lanes = Lanes(answers, prompts)
        self.num_blocks = cache_bytes // block_bytes(prompts, block_tokens)
        self._pool = BlockPool(prompts, self.num_blocks, block_tokens) if self.num_blocks else None
        self.enter, self.complete, self.move = self._lanes.enter, self._lanes.store, self._lanes.move

    @property
    def num_traces(self) -> int:
        """As `Store`."""
        return 0 if self._pool is None else self._pool.num_traces

    def warm_up(self) -> None:
        """As `Store`."""
        self._lanes.warm_up()
        if self._pool is not None:
            self._pool.warm_up()

    def rows(self, count: int, live: Collection[int]) -> np.ndarray:
        """A row's slot is its number; one that is not live writes where it does no harm."""
        del live
        return np.arange(count, dtype=np.int32)

    def restore(self, lane: int, places: tuple[int, ...]) -> None:
        """As `Store`."""
        assert self._pool is not None
        self._pool.restore(lane, places)

    def keep(self, lane: int, first: int, places: tuple[int, ...]) -> None:
        """As `Store`."""
        assert self._pool is not None
        self._pool.keep(lane, first, places)


class MemoryStore:
    """In memory of our own.

    Args:
        memory: of all slots.
        block_tokens: of a block that is kept; a multiple of the memory's.
        cache_bytes: for kept blocks; 0: none are.
    """

    num_traces = 0

    def __init__(self, memory: Memory, block_tokens: int, cache_bytes: int) -> None:
        self.answers: Cache | Memory = memory
        self.prompts: Cache | Memory = memory
        self._memory = memory
        self._block_tokens = block_tokens
        self.num_blocks = cache_bytes // memory.bytes_of(block_tokens)
        self._pool = memory.room_for(self.num_blocks, block_tokens)
        self._place_of = list(range(memory.num_slots))

    def warm_up(self) -> None:
        """Nothing has to be made."""

    def enter(self, slots: Sequence[int], starts: Sequence[int], ends: Sequence[int]) -> list[int]:
        """As `Store`."""
        del starts, ends
        return [self._place_of[slot] for slot in slots]

    def complete(self, slot: int) -> None:
        """A prompt is where its answer will be."""

    def move(self, source: int, target: int, end: int) -> None:
        """As `Store`."""
        del end
        places = self._place_of
        places[source], places[target] = places[target], places[source]

    def rows(self, count: int, live: Collection[int]) -> np.ndarray:
        """As `Store`."""
        return np.array([self._place_of[slot] if slot in live else -1 for slot in range(count)], np.int32)

    def restore(self, lane: int, places: tuple[int, ...]) -> None:
        """As `Store`."""
        for number, place in enumerate(places):
            self._positions(lane, number)[:] = self._pool[place]

    def keep(self, lane: int, first: int, places: tuple[int, ...]) -> None:
        """As `Store`."""
        for number, place in enumerate(places, first):
            self._pool[place] = self._positions(lane, number)

    def _positions(self, place: int, number: int) -> np.ndarray:
        return self._memory.positions(place, number * self._block_tokens, self._block_tokens)
