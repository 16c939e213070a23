"""The product of a packed weight and columns: packs the columns, shares the outputs out, multiplies.

Weights lie as `[F / L, K, L]`, so that a tile reads them one after the other; columns
`[D, M]` become panels as wide as a tile. Results are columns again, `[F, M]`. Where weights
are bytes, columns become bytes too, by a step of their own, and results are scaled.

Letters: `F` outputs, `D` width in, `K` depth in elements of four bytes, `M` columns, `L`
outputs of a block.
"""

from dataclasses import dataclass

from llvmlite import ir

from app.kernels.code import F32, I8, I32, I64, PTR, VOID, Code, Function, Value, external
from app.kernels.pool import PIECE, Pool, pointers, split
from app.kernels.tiles import BYTES, FLOATS, TILE, Machine

# Bytes ahead of the own place in the weights: about what memory takes.
AHEAD = 8192
NUM_POINTERS, NUM_SIZES = 6, 7
# The largest byte, symmetric; what makes a signed byte an unsigned one; and the least that a column's largest may be.
LARGEST, OFFSET, LEAST = 127.0, 128, 1e-30


def write_product(
    module: ir.Module, machine: Machine, pool: Pool, name: str, tiles: ir.GlobalVariable, *, is_bytes: bool = False
) -> None:
    """Exports `name(outs, ins)`, an XLA custom call of columns `[D, M]` float32, with results `[F, M]` float32.

    `ins`: weights `[F / L, K, L]`, where `K` is `D`, or of bytes `[F / L, K, L, 4]`, where it is `D / 4`; columns;
    first sums: zeros `[L]`, or of bytes `[F / L, L]` int32; what outputs of bytes are multiplied with, `[F]`;
    `[F, K, D, M, pieces]` as `I64`.
    """
    multiply = _multiply(module, machine, f"{name}_piece", tiles, is_bytes=is_bytes)
    pack = (_pack_bytes if is_bytes else _pack)(module, machine, f"{name}_pack")
    code = Code(module, name, [PTR, PTR], is_exported=True)
    outs, ins = code.arguments
    out = code.result(outs)
    weights, x, first, scales, sizes = (ins.at(i, PTR).load(PTR, 8) for i in range(5))
    num_outputs, depth, width, num_columns, num_pieces = (sizes.at(i, I64).load(I64, 8) for i in range(5))
    num_tiles = (num_columns + machine.columns - 1) // machine.columns
    work = num_outputs * depth * num_columns
    panels, place = code.variable(x), code.room(I64, NUM_POINTERS + NUM_SIZES)
    num_blocks = (num_outputs + machine.block - 1) // machine.block
    size = split(code, num_blocks, num_pieces, work)
    numbers = [depth, width, num_columns, num_tiles, num_outputs, num_blocks, size]
    # One tile of floats is a panel as it is.
    is_packed = num_tiles.compare(">", 0 if is_bytes else 1)
    with code.when(is_packed):
        # A panel's numbers, and behind all panels each column's step.
        room = ((depth + 1) * num_columns * 4 + 63) & -64
        panels.value = code.call(external(module, "aligned_alloc", PTR, [I64, I64]), code.integer(64), room)
        pointers([weights, x, panels.value, first, scales, out, *numbers], place)
        code.call(pool.run, code.pointer(pack), place, num_tiles, work)
    pointers([weights, x, panels.value, first, scales, out, *numbers], place)
    code.call(pool.run, code.pointer(multiply), place, (num_blocks + size - 1) // size, work)
    with code.when(is_packed):
        code.call(external(module, "free", VOID, [PTR]), panels.value)
    code.end()


def write_rows(module: ir.Module, machine: Machine, name: str, *, is_bytes: bool) -> None:
    """Exports `name(outs, ins)`, an XLA custom call: rows of a packed weight by number, `[M, D]` float32.

    `ins`: weights and scales as a product has them; numbers `[M]` int32; `[K, D, M]` as `I64`.
    """
    block = machine.block
    code = Code(module, name, [PTR, PTR], is_exported=True)
    outs, ins = code.arguments
    out = code.result(outs)
    weights, scales, numbers, sizes = (ins.at(i, PTR).load(PTR, 8) for i in range(4))
    depth, width, count = (sizes.at(i, I64).load(I64, 8) for i in range(3))
    with code.loop(0, count) as i:
        number = numbers.at(i, I32).load(I32).cast("sext", I64)
        row = weights.at(number // block * block * depth + number % block)
        with code.loop(0, width) as d:
            if is_bytes:
                byte = row.at(d // 4 * block).at(d % 4, I8).load(I8, 1)
                value = byte.cast("sitofp", F32) * scales.at(number).load()
            else:
                value = row.at(d * block).load()
            out.at(i * width + d).store(value)
    code.end()


@dataclass(frozen=True, slots=True)
class _Job:
    """The arguments of a call, as its pieces read them."""

    weights: Value
    x: Value
    panels: Value
    first: Value
    scales: Value
    out: Value
    depth: Value
    width: Value
    num_columns: Value
    num_tiles: Value
    num_outputs: Value
    num_blocks: Value
    size: Value

    @classmethod
    def read(cls, place: Value) -> "_Job":
        return cls(
            *(place.at(i, PTR).load(PTR, 8) for i in range(NUM_POINTERS)),
            *(place.at(NUM_POINTERS + i, I64).load(I64, 8) for i in range(NUM_SIZES)),
        )

    def step(self, column: Value) -> Value:
        """Where a column of bytes has what they are multiplied with."""
        return self.panels.at(self.depth * self.num_columns + column)


def _pack(module: ir.Module, machine: Machine, name: str) -> Function:
    """A piece: one tile's columns as `[D, columns]`."""
    del machine
    code = Code(module, name, PIECE)
    job = _Job.read(code.arguments[0])
    start, count = _columns_of(code.arguments[1], job.num_columns, job.num_tiles)
    panel = job.panels.at(start * job.depth)
    with code.loop(0, job.depth) as k, code.loop(0, count) as j:
        panel.at(k * count + j).store(job.x.at(k * job.num_columns + start + j).load())
    return code.end()


def _pack_bytes(module: ir.Module, machine: Machine, name: str) -> Function:
    """A piece: one tile's columns as unsigned bytes `[D / 4, columns, 4]`, each by a step of its own."""
    code = Code(module, name, PIECE)
    job = _Job.read(code.arguments[0])
    start, count = _columns_of(code.arguments[1], job.num_columns, job.num_tiles)
    panel = job.panels.at(start * job.depth)
    numbers = job.x.at(start)
    largest, steps = code.room(F32, machine.columns), code.room(F32, machine.columns)
    with code.loop(0, count) as j:
        largest.at(j).store(code.constant(F32, LEAST))
    # Row by row, as the columns lie.
    with code.loop(0, job.width) as k, code.loop(0, count) as j:
        size = code.intrinsic("llvm.fabs.f32", F32, numbers.at(k * job.num_columns + j).load())
        largest.at(j).store(code.largest(size, largest.at(j).load()))
    with code.loop(0, count) as j:
        job.step(start + j).store(largest.at(j).load() / LARGEST)
        steps.at(j).store(code.constant(F32, LARGEST) / largest.at(j).load())
    with code.loop(0, job.width) as k, code.loop(0, count) as j:
        scaled = numbers.at(k * job.num_columns + j).load() * steps.at(j).load()
        rounded = code.intrinsic("llvm.rint.f32", F32, scaled).cast("fptosi", I32) + OFFSET
        panel.at((k // 4 * count + j) * 4 + k % 4, I8).store(rounded.cast("trunc", I8), 1)
    return code.end()


def _multiply(module: ir.Module, machine: Machine, name: str, tiles: ir.GlobalVariable, *, is_bytes: bool) -> Function:
    """A piece: some blocks of outputs, of all columns."""
    block, element = machine.block, BYTES if is_bytes else FLOATS
    code = Code(module, name, PIECE)
    place, piece = code.arguments
    job = _Job.read(place)
    depth, num_columns, num_tiles = job.depth, job.num_columns, job.num_tiles
    results = code.room(element, machine.columns * block)
    block_bytes = depth * (4 * block)
    with code.loop(piece * job.size, code.least(job.num_blocks, (piece + 1) * job.size)) as number:
        w = job.weights.at(number * depth * block)
        first = job.first.at(number * block) if is_bytes else job.first
        # With several tiles the next block is read while this one is multiplied; with one, a little ahead.
        is_one = num_tiles.compare("==", 1)
        ahead_step = is_one.select(code.integer(4 * block), code.integer(4 * block) // num_tiles)
        with code.loop(0, num_tiles) as tile:
            start, width = _columns_of(tile, num_columns, num_tiles)
            ahead = w.at(is_one.select(code.integer(AHEAD), block_bytes + block_bytes * tile // num_tiles), I8)
            function = code.pointer(tiles).at(width - 1, PTR).load(PTR, 8)
            panel = job.panels.at(start * depth)
            code.call_at(function, TILE, w, panel, depth, first, results, ahead, ahead_step, num_tiles)
            target = job.out.at(number * block * num_columns + start)
            height = code.least(job.num_outputs - number * block, code.integer(block))
            with code.loop(0, height) as f, code.loop(0, width) as j:
                result = results.at(j * block + f, element).load(element)
                if is_bytes:
                    scale = job.scales.at(number * block + f).load()
                    result = result.cast("sitofp", F32) * job.step(start + j).load() * scale
                target.at(f * num_columns + j).store(result)
    return code.end()


def _columns_of(tile: Value, num_columns: Value, num_tiles: Value) -> tuple[Value, Value]:
    """A tile's first column and how many it has: all about as many."""
    start = tile * num_columns // num_tiles
    return start, (tile + 1) * num_columns // num_tiles - start
