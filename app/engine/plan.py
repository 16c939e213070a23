"""Chooses the shapes that a decoder's calls have on a device, and how far each product is padded.

Plain Python: what it goes by are the numbers of columns of which XLA's products agree
(`widths.py`), or that there are kernels, whose products agree for any.

A CPU reads prompts in short parts that let others in between, and in longer ones, of which
some compute up to twice as many operations a second, where that delays nobody (`scheduler.py`);
an accelerator wants long ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from app.engine.shapes import Shapes

SMALLEST_CONTEXT = 256
# A larger call is worth compiling from this ratio on; a step of a small model takes about
# the same time for 4 columns as for 16, so there it would only make the start longer.
LEAST_GROWTH, LEAST_GROWTH_OF_SMALL = 2, 4
CPU_CHUNKS, CPU_SHORT = (24, 16, 32), 8
# Where bits allow: as long as a newcomer can wait for, and what takes least time by the token.
CPU_LONGER, CPU_LONGEST = 48, 136
CPU_PARTS = (5, 4, 3)
# Prompts side by side gain little unless many wait, and cost as many functions to compile.
LEAST_SLOTS_FOR_PARTS = 24
ACCELERATOR_LENGTHS = (32, 128)
# With kernels any number of columns agrees, and none is quicker by the column than its neighbours.
ANY_WIDTH = range(1, 4097)
KERNEL_CHUNK, KERNEL_LENGTHS = 32, (8, 32, 128)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is compiled.

    Attributes:
        groups: how many slots lie before the end of each group that is kept apart, rising.
        columns: of the products of a decode call, by its rows.
        contexts: lengths of cache that a call may read, rising.
        widths: numbers of columns that agree, rising; none where that is unknown.
    """

    shapes: Shapes
    groups: tuple[int, ...]
    columns: dict[int, int]
    contexts: tuple[int, ...]
    widths: Sequence[int]

    def context(self, length: int) -> int:
        """The shortest that holds so many positions, or the longest of all."""
        return next((context for context in self.contexts if context >= length), self.contexts[-1])

    def padded(self, num_columns: int) -> int:
        """The next number of columns that agrees with the others."""
        return next((width for width in self.widths if width >= num_columns), num_columns)


def make_plan(
    num_slots: int,
    context_length: int,
    widths: Sequence[int],
    *,
    is_small: bool = False,
    is_recurrent: bool = False,
    is_accelerator: bool = False,
    has_kernels: bool = False,
) -> Plan:
    """The shapes of a model of this context.

    Args:
        num_slots: sequences decoded together.
        context_length: tokens of prompt and output together.
        widths: numbers of columns that agree; none: every call has all rows.
        is_small: a quick start is worth more than a call of just the right size.
        is_recurrent: what is remembered has no length, parts side by side would be
            products of as many columns, which need not agree, and long ones gain nothing.
        is_accelerator: calls should be large.
        has_kernels: a call reads each row's keys as far as they go, and its columns may be any number.
    """
    if has_kernels:
        widths = ANY_WIDTH
    columns = _columns(num_slots, widths, is_small=is_small)
    rows = tuple(columns)
    chunk, lengths, parts = _prompt_shapes(widths, is_accelerator=is_accelerator, has_kernels=has_kernels)
    if is_small:
        lengths = (chunk,)
    most = chunk if is_recurrent else max(chunk, context_length)
    lengths = tuple(length for length in lengths if length <= most)
    if is_recurrent or num_slots < LEAST_SLOTS_FOR_PARTS:
        parts = (1,)
    contexts = (context_length,) if is_recurrent or has_kernels else context_buckets(context_length)
    shapes = Shapes(rows, parts, lengths, chunk)
    return Plan(shapes, (num_slots,) if is_accelerator else rows, columns, contexts, widths)


def context_buckets(context_length: int) -> tuple[int, ...]:
    """Lengths of cache that a call may read: doubling up to the whole context."""
    buckets = []
    length = SMALLEST_CONTEXT
    while length < context_length:
        buckets.append(length)
        length *= 2
    return (*buckets, context_length)


def _columns(num_slots: int, widths: Sequence[int], *, is_small: bool) -> dict[int, int]:
    """Columns by rows, rising, each call so many times as large as the one before."""
    least_growth = LEAST_GROWTH_OF_SMALL if is_small else LEAST_GROWTH
    # Attention has as many rows as there are, whatever the products have: one caller alone is the commonest.
    chosen = {1: widths[0]} if widths and num_slots > 1 and not is_small else dict[int, int]()
    for width in widths:
        rows = min(width, num_slots)
        if rows == num_slots or width >= least_growth * max(chosen.values(), default=0):
            chosen[rows] = width
        if rows == num_slots:
            return chosen
    return {num_slots: num_slots}


def _prompt_shapes(
    widths: Sequence[int], *, is_accelerator: bool, has_kernels: bool
) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    """Where prompts are cut, and lengths and numbers of parts; one part a call where nothing is known."""
    if is_accelerator:
        return ACCELERATOR_LENGTHS[-1], ACCELERATOR_LENGTHS, (1,)
    if has_kernels:
        return KERNEL_CHUNK, KERNEL_LENGTHS, (1, CPU_PARTS[0])
    chunk = next((chunk for chunk in CPU_CHUNKS if chunk in widths), CPU_CHUNKS[0])
    short = (CPU_SHORT, chunk) if CPU_SHORT in widths else (chunk,)
    together = [parts for parts in CPU_PARTS if all(parts * length in widths for length in short)]
    longer = {max([chunk, *(w for w in widths if w <= most)]) for most in (CPU_LONGER, CPU_LONGEST)}
    return chunk, tuple(sorted({*short, *longer})), (1, *together[:1])
