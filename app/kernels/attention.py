"""Attention of some queries over what their sequences left in memory of our own, each as far as it goes.

A sequence's keys and values lie in a slot, once for each layer and key/value head, by
blocks of positions: the keys as `[H, L]`, so that a tile of scores reads positions as it
reads outputs of a weight, and behind them the values as `[H / L, L, L]`. They are read as
far as the sequence is long and no further, so no row waits for a longer one's memory. A
score's and a sum's order is that of the positions, whatever is computed beside it, so an
answer's bits depend neither on the other rows nor on where a prompt was cut.

Letters: `B` rows, `T` tokens, `M` columns `B * T`, `N` query heads, `G` key/value heads,
`H` head size, `C` positions that a slot holds, `L` positions or numbers of a block.

Sources: grouped queries, Ainslie et al. 2023 sec. 2; windows, Beltagy et al. 2020 sec.
3.1; turns, Su et al. 2021 sec. 3.4, half-split; the exponential is Taylor's after taking
out powers of two, with ln 2 in two parts as in Cody and Waite 1980, ch. 6.
"""

import math
from dataclasses import dataclass

from llvmlite import ir

from app.kernels.code import F32, I32, I64, PTR, VOID, Code, Function, Handle, Value, external
from app.kernels.pool import PIECE, Pool, pointers
from app.kernels.tiles import TILE, Machine

NUM_POINTERS, NUM_SIZES = 9, 9
LEAST = -3.0e38
# Below, the exponential is no normal number any more.
LEAST_EXPONENT = -87.0
LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440e-4
TAYLOR = tuple(1 / math.factorial(n) for n in range(7, -1, -1))


@dataclass(frozen=True, slots=True)
class _Job:
    """The arguments of a call, as its pieces read them."""

    q: Value
    k: Value
    v: Value
    turns: Value
    places: Value
    memory: Value
    zeros: Value
    scale: Value
    out: Value
    num_rows: Value
    num_heads: Value
    num_kv_heads: Value
    num_tokens: Value
    head_dim: Value
    num_slots: Value
    capacity: Value
    layer: Value
    window: Value

    @classmethod
    def read(cls, place: Value) -> "_Job":
        return cls(
            *(place.at(i, PTR).load(PTR, 8) for i in range(NUM_POINTERS)),
            *(place.at(i, I64).load(I64, 8) for i in range(NUM_POINTERS, NUM_POINTERS + NUM_SIZES)),
        )

    @property
    def num_columns(self) -> Value:
        return self.num_rows * self.num_tokens

    def place(self, row: Value) -> tuple[Value, Value, Value]:
        """A row's slot, first position, and number of real tokens, as far as the slot reaches."""
        at = self.places.at(row * 3, I32)
        slot, start, length = (at.at(i, I32).load(I32).cast("sext", I64) for i in range(3))
        code = row.code
        return slot, start, code.largest(code.least(length, self.capacity - start), code.integer(0))

    def turned(self, x: Value, head: Value, column: Value, h: Value) -> tuple[Value, Value]:
        """Numbers `h` and `h + H / 2` of a column's head in `[heads * H, M]`, turned to its position."""
        half = self.head_dim // 2
        at = x.at((head * self.head_dim + h) * self.num_columns + column)
        one, other = at.load(), at.at(half * self.num_columns).load()
        cos = self.turns.at(h * self.num_columns + column).load()
        sin = self.turns.at((half + h) * self.num_columns + column).load()
        return one * cos - other * sin, other * cos + one * sin

    def block_size(self, machine: Machine) -> Value:
        """Keys and values of a block of positions."""
        return (self.head_dim + self.num_parts(machine) * machine.block) * machine.block

    def num_parts(self, machine: Machine) -> Value:
        """Blocks of a value's numbers."""
        return (self.head_dim + machine.block - 1) // machine.block

    def head_of(self, machine: Machine, slot: Value, group: Value) -> Value:
        """Where a slot's keys and values of one head lie."""
        heads = self.num_slots * self.num_kv_heads
        number = self.layer * heads + slot * self.num_kv_heads + group
        return self.memory.at(number * (self.capacity // machine.block) * self.block_size(machine))


def write_attention(
    module: ir.Module, machine: Machine, pool: Pool, scores: list[Function], sums: list[Function]
) -> None:
    """Exports `tollgate_attention(outs, ins)`, an XLA custom call.

    `ins`: queries `[N * H, M]`, keys and values of the same tokens `[G * H, M]`; cosines and sines of their positions
    `[2, H / 2, M]`; a row's slot, first position and number of real tokens `[B, 3]` int32; the memory's address as
    `I64`; zeros `[L]`; what scores are multiplied with `[1]`; `[B, N, G, T, H, slots, C, layer, window or 0]` as `I64`.
    The result is `[N * H, M]`; zeros for what is no real token.
    """
    remember = _remember(module, machine)
    attend = _attend(module, machine, scores, sums)
    code = Code(module, "tollgate_attention", [PTR, PTR], is_exported=True)
    outs, ins = code.arguments
    out = code.result(outs)
    q, k, v, turns, places, address, zeros, scale, sizes = (ins.at(i, PTR).load(PTR, 8) for i in range(9))
    memory = address.load(I64, 8).cast("inttoptr", PTR)
    numbers = [sizes.at(i, I64).load(I64, 8) for i in range(NUM_SIZES)]
    place = code.room(I64, NUM_POINTERS + NUM_SIZES)
    pointers([q, k, v, turns, places, memory, zeros, scale, out, *numbers], place)
    job = _Job.read(place)
    heads = job.num_rows * job.num_kv_heads
    # At most: how far sequences go is not known yet.
    work = job.num_columns * job.num_heads * job.head_dim * job.capacity
    code.call(pool.run, code.pointer(remember), place, heads, work)
    code.call(pool.run, code.pointer(attend), place, heads * _num_tiles(job, machine), work)
    code.end()


def _remember(module: ir.Module, machine: Machine) -> Function:
    """A piece: puts one head's new keys and values of a row where they belong."""
    code = Code(module, "remember", PIECE)
    place, piece = code.arguments
    job = _Job.read(place)
    block = machine.block
    row, group = piece // job.num_kv_heads, piece % job.num_kv_heads
    slot, start, length = job.place(row)
    head, half = job.head_of(machine, slot, group), job.head_dim // 2
    with code.loop(0, length) as t:
        position, column = start + t, row * job.num_tokens + t
        keys = head.at(position // block * job.block_size(machine))
        values = keys.at(job.head_dim * block + position % block * block)
        with code.loop(0, half) as h:
            one, other = job.turned(job.k, group, column, h)
            key = keys.at(h * block + position % block)
            key.store(one)
            key.at(half * block).store(other)
        with code.loop(0, job.head_dim) as h:
            value = job.v.at((group * job.head_dim + h) * job.num_columns + column).load()
            values.at(h // block * block * block + h % block).store(value)
    return code.end()


def _attend(module: ir.Module, machine: Machine, scores: Handle, sums: Handle) -> Function:
    """A piece: a tile of the queries that one key/value head of a row has."""
    code = Code(module, "attend", PIECE)
    place, piece = code.arguments
    job = _Job.read(place)
    queries = _Queries.of(code, machine, job, piece)
    head_dim, block = job.head_dim, machine.block
    with code.loop(queries.width, queries.padded_width) as j, code.loop(0, head_dim) as h:
        queries.result(j, h).store(code.constant(F32, 0.0))
    width, num_blocks = queries.width, queries.num_blocks
    with code.when(width.compare(">", 0)):
        size = ((num_blocks * block + head_dim) * width * 4 + 63) & -64
        shares = code.call(external(module, "aligned_alloc", PTR, [I64, I64]), code.integer(64), size)
        panel = shares.at(num_blocks * width * block)
        _turn_queries(code, job, queries, panel)
        tile, unused = code.pointer(scores).at(width - 1, PTR).load(PTR, 8), code.integer(0)
        with code.loop(0, num_blocks) as c:
            keys, results = queries.keys.at(c * queries.block_size), shares.at(c * width * block)
            # Nothing is read ahead: the processor foresees what there is, and more of it took longer.
            code.call_at(tile, TILE, keys, panel, head_dim, job.zeros, results, keys, unused, unused)
        scales = code.room(F32, machine.columns)
        with code.loop(0, width) as j:
            total = _shares(code, machine, queries, shares.at(j * block), j)
            scales.at(j).store(code.constant(F32, 1.0) / total)
        _add_values(code, machine, queries, code.pointer(sums), shares, scales)
        code.call(external(module, "free", VOID, [PTR]), shares)
    return code.end()


@dataclass(frozen=True, slots=True)
class _Queries:
    """The queries of a piece: those of its row that share a head's keys, the tokens' one after the other.

    Attributes:
        first: the number of the first among all those of its row and head.
        width: how many there are of real tokens.
        padded_width: with those of tokens that are none.
        shared: query heads that share a key/value head.
        start: the position of the row's first token.
        num_blocks: of keys from the first that any of these sees to the last.
        first_position: of the first block.
        num_positions: from there to the last that any of these sees.
        keys: of the first block; each block's values lie behind its keys.
        block_size: from block to block.
    """

    job: _Job
    row: Value
    group: Value
    shared: Value
    first: Value
    width: Value
    padded_width: Value
    start: Value
    num_blocks: Value
    first_position: Value
    num_positions: Value
    keys: Value
    block_size: Value

    @classmethod
    def of(cls, code: Code, machine: Machine, job: _Job, piece: Value) -> "_Queries":
        num_tiles = _num_tiles(job, machine)
        tile, head = piece % num_tiles, piece // num_tiles
        row, group = head // job.num_kv_heads, head % job.num_kv_heads
        slot, start, length = job.place(row)
        shared = job.num_heads // job.num_kv_heads
        first, end = (t * job.num_tokens * shared // num_tiles for t in (tile, tile + 1))
        real = code.largest(code.least(end, length * shared), first)
        last = start + (real - 1) // shared
        furthest = code.largest(start + first // shared - job.window + 1, code.integer(0))
        first_block = job.window.compare(">", 0).select(furthest // machine.block, code.integer(0))
        first_position, size = first_block * machine.block, job.block_size(machine)
        return cls(
            job=job,
            row=row,
            group=group,
            shared=shared,
            first=first,
            width=real - first,
            padded_width=end - first,
            start=start,
            num_blocks=last // machine.block + 1 - first_block,
            first_position=first_position,
            num_positions=last + 1 - first_position,
            keys=job.head_of(machine, slot, group).at(first_block * size),
            block_size=size,
        )

    def position(self, j: Value) -> Value:
        """Of query `j` of these."""
        return self.start + (self.first + j) // self.shared

    def place(self, j: Value) -> tuple[Value, Value]:
        """Head and column of query `j` of these."""
        number = self.first + j
        return self.group * self.shared + number % self.shared, self.row * self.job.num_tokens + number // self.shared

    def result(self, j: Value, h: Value) -> Value:
        """Where number `h` of the answer to query `j` belongs."""
        head, column = self.place(j)
        return self.job.out.at((head * self.job.head_dim + h) * self.job.num_columns + column)


def _turn_queries(code: Code, job: _Job, queries: _Queries, panel: Value) -> None:
    """Put the queries side by side, `[H, width]`, turned and scaled."""
    half, scale, width = job.head_dim // 2, job.scale.load(), queries.width
    with code.loop(0, half) as h, code.loop(0, width) as j:
        one, other = job.turned(job.q, *queries.place(j), h)
        panel.at(h * width + j).store(one * scale)
        panel.at((half + h) * width + j).store(other * scale)


def _shares(code: Code, machine: Machine, queries: _Queries, scores: Value, j: Value) -> Value:
    """Query `j`'s scores become each key's share up to a factor, in place, and 0 where it is not seen; gives their sum.

    `scores` are blocks of `[L]`, as many blocks apart as there are queries.
    """
    block, width, window = machine.block, queries.width, queries.job.window
    floats, ints = ir.VectorType(F32, block), ir.VectorType(I32, block)
    position = queries.position(j)
    low = window.compare(">", 0).select(position - window, code.integer(-1))
    first, low, high = (number.cast("trunc", I32) for number in (queries.first_position, low, position))
    lanes = Value(code, ir.Constant(ints, list(range(block))))
    least = code.constant(floats, LEAST)

    def seen(c: Value) -> tuple[Value, Value, Value]:
        positions = (first + (c * block).cast("trunc", I32)).splat(block) + lanes
        is_seen = positions.compare("<=", high.splat(block)) & positions.compare(">", low.splat(block))
        at = scores.at(c * width * block)
        return at, is_seen, is_seen.select(at.load(floats), least)

    largest = code.variable(least)
    with code.loop(0, queries.num_blocks) as c:
        largest.value = code.largest(seen(c)[2], largest.value)
    top = code.intrinsic(f"llvm.vector.reduce.fmax.v{block}f32", F32, largest.value).splat(block)
    sums = code.variable(code.constant(floats, 0.0))
    with code.loop(0, queries.num_blocks) as c:
        at, is_seen, score = seen(c)
        share = is_seen.select(exponential(code, score - top), code.constant(floats, 0.0))
        at.store(share)
        sums.value = sums.value + share
    return code.intrinsic(f"llvm.vector.reduce.fadd.v{block}f32", F32, code.constant(F32, 0.0), sums.value)


def _add_values(code: Code, machine: Machine, queries: _Queries, tiles: Value, shares: Value, scales: Value) -> None:
    """The values by their shares, added up and scaled, as results."""
    job, block, width = queries.job, machine.block, queries.width
    tile, results = tiles.at(width - 1, PTR).load(PTR, 8), code.room(F32, machine.columns * block)
    values, unused = queries.keys.at(job.head_dim * block), code.integer(0)
    with code.loop(0, job.num_parts(machine)) as part:
        v, depth = values.at(part * block * block), queries.num_positions
        code.call_at(tile, TILE, v, shares, depth, job.zeros, results, v, unused, queries.block_size)
        count = code.least(job.head_dim - part * block, code.integer(block))
        with code.loop(0, width) as j, code.loop(0, count) as h:
            queries.result(j, part * block + h).store(results.at(j * block + h).load() * scales.at(j).load())


def exponential(code: Code, x: Value) -> Value:
    """`e ** x` of a vector of floats that are at most 0; below e ** -87 about that."""
    count = x.type.count
    ints = ir.VectorType(I32, count)
    x = code.largest(x, code.constant(x.type, LEAST_EXPONENT))
    power = code.intrinsic(f"llvm.rint.v{count}f32", x.type, x * (1 / math.log(2)))
    rest = code.fma(power, code.constant(x.type, -LN2_HIGH), x)
    rest = code.fma(power, code.constant(x.type, -LN2_LOW), rest)
    sum_ = code.constant(x.type, TAYLOR[0])
    for coefficient in TAYLOR[1:]:
        sum_ = code.fma(sum_, rest, code.constant(x.type, coefficient))
    two_to_power = ((power.cast("fptosi", ints) + 127) << 23).cast("bitcast", x.type)
    return sum_ * two_to_power


def _num_tiles(job: _Job, machine: Machine) -> Value:
    return (job.num_tokens * job.num_heads // job.num_kv_heads + machine.columns - 1) // machine.columns
