"""Which shapes an encoder's batches have: a few lengths, and for each a few numbers of texts.

A text's padded length depends on the text alone, and only texts of one length go
together. So no padding beyond a bucket's is computed, and a text's bits are the
same whoever its batch mates are. Plain Python; the runner compiles the grid.
"""

from collections.abc import Sequence

# Steps of at most a half: a text is padded by a sixth on average. Lengths beyond double.
LENGTHS = (16, 32, 64, 96, 128, 192, 256, 384, 512)
# Batches of more gain nothing on a CPU (docs/experiments.md); they only make others wait.
MAX_TOKENS = 2048
MAX_BATCH = 32


def length_buckets(max_length: int) -> tuple[int, ...]:
    """The padded lengths, rising; the last one is the longest text that the model reads."""
    buckets = [*LENGTHS]
    while buckets[-1] < max_length:
        buckets.append(2 * buckets[-1])
    return (*(length for length in buckets if length < max_length), max_length)


def batch_sizes(length: int) -> tuple[int, ...]:
    """The numbers of texts of one padded length that are computed together, rising."""
    largest = max(1, min(MAX_BATCH, MAX_TOKENS // length))
    return tuple(2**i for i in range(largest.bit_length()))


def num_to_take(num_waiting: int, sizes: Sequence[int]) -> int:
    """How many of at least one waiting texts go next: a size, or what fills three quarters of one."""
    above = [size for size in sizes if size >= num_waiting]
    if above and 4 * num_waiting >= 3 * above[0]:
        return num_waiting
    return max(size for size in sizes if size <= num_waiting)
