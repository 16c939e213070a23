"""How much a runner computes in one call: numbers that are compiled once, and which of them a call takes.

Plain Python: the scheduler cuts its steps by them, the runner compiles them.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Shapes:
    """The sizes of one runner's calls, each rising.

    Attributes:
        rows: of a decode call, which covers the first slots; the last one covers all.
        parts: of a prefill call, prompts that are read side by side, each up to a chunk of them.
        lengths: of a part in tokens, padded; `chunk` is one of them.
        chunk: tokens of a block of the prefix cache. Prompts are cut at multiples of it,
            unless there are longer lengths: then their bits do not depend on where they are cut.
        num_blocks: blocks that the prefix cache holds; 0: none.
    """

    rows: tuple[int, ...]
    parts: tuple[int, ...] = (1,)
    lengths: tuple[int, ...] = (256,)
    chunk: int = 256
    num_blocks: int = 0

    @property
    def num_slots(self) -> int:
        """Sequences that are decoded together."""
        return self.rows[-1]

    @property
    def prefills(self) -> tuple[tuple[int, int], ...]:
        """Every prefill call, as (parts, length)."""
        return tuple(
            (parts, length) for parts in self.parts for length in self.lengths if parts == 1 or length <= self.chunk
        )

    @property
    def longest(self) -> int:
        """Tokens of a part while other prompts wait, at most."""
        return self.lengths[-1]

    @property
    def longest_alone(self) -> int:
        """Tokens of one of several parts of a lone prompt, at most: whoever comes next waits for its end."""
        return max([self.chunk, *self.lengths[:-1]])

    def row_bucket(self, num_rows: int) -> int:
        """The smallest decode call for so many slots."""
        return next(rows for rows in self.rows if rows >= num_rows)

    def length_bucket(self, num_tokens: int) -> int:
        """How far a part is padded."""
        return next(length for length in self.lengths if length >= num_tokens)

    def part_length(self, num_tokens: int) -> int:
        """How long a part should be of a prompt with so many tokens left.

        The next length that holds them, unless a shorter one and a chunk hold them too: that costs less than padding.
        """
        length = self.length_bucket(min(num_tokens, self.longest))
        shorter = max((other for other in self.lengths if other < length), default=length)
        return shorter if length > self.chunk and num_tokens <= shorter + self.chunk else length

    def num_parts(self, available: int) -> int:
        """How many of at least one parts go together."""
        return max(parts for parts in self.parts if parts <= available)
