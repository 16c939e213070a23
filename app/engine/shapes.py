"""How much a runner computes in one call: numbers that are compiled once, and which of them a call takes.

Plain Python: the scheduler cuts its steps by them, the runner compiles them.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Shapes:
    """The sizes of one runner's calls, each rising.

    Attributes:
        rows: of a decode call, which covers the first slots; the last one covers all.
        parts: of a prefill call, prompts that are read side by side.
        lengths: of a part in tokens, padded; the last one is where prompts are cut.
        num_blocks: parts of prompts that the prefix cache holds, each of the last length; 0: none.
    """

    rows: tuple[int, ...]
    parts: tuple[int, ...] = (1,)
    lengths: tuple[int, ...] = (256,)
    num_blocks: int = 0

    @property
    def num_slots(self) -> int:
        """Sequences that are decoded together."""
        return self.rows[-1]

    @property
    def chunk(self) -> int:
        """Prompts are cut at multiples of it."""
        return self.lengths[-1]

    def row_bucket(self, num_rows: int) -> int:
        """The smallest decode call for so many slots."""
        return next(rows for rows in self.rows if rows >= num_rows)

    def length_bucket(self, num_tokens: int) -> int:
        """How far a part of at most a chunk is padded."""
        return next(length for length in self.lengths if length >= num_tokens)

    def num_parts(self, available: int) -> int:
        """How many of at least one parts go together."""
        return max(parts for parts in self.parts if parts <= available)
