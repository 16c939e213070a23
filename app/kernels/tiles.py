"""The innermost loop of everything: a few columns by a block of outputs, each sum one chain in one order.

A tile is up to `Machine.columns` columns by `Machine.block` outputs, whose sums stay in
registers over the whole depth; so many that the chains of multiply-adds hide each
other's latency, and each number that is read serves several of them. A sum's order does
not depend on the tile's width, so a column's bits are the same however many there are.

Letters: `M` columns of a tile, `K` depth, `L` outputs of a block.
"""

from collections.abc import Callable
from dataclasses import dataclass

from llvmlite import ir

from app.kernels.code import F32, I8, I32, I64, PTR, Code, Function, Type, Value, address_of

TILE = (PTR, PTR, I64, PTR, PTR, PTR, I64, I64)
"""A tile's arguments: weights `[K, L]`, activations, `K`, first sums `[L]`, results `[M, L]`; what to read ahead, from
where on and how many bytes each step; and, for tiles that read by block, how many elements it is from the weights of
`L` steps to those of the next."""
UNROLL = 4


@dataclass(frozen=True, slots=True)
class Machine:
    """What the processor can do.

    Attributes:
        lanes: floats of a vector register.
        columns: of the widest tile.
        dot: LLVM's name for four products of bytes a lane, added to its sum; None where there is none.
        pause: LLVM's name for what a waiting thread does; None where there is none.
        features: as LLVM names them.
    """

    lanes: int
    columns: int
    dot: str | None
    pause: str | None
    features: str

    @property
    def block(self) -> int:
        """Outputs of a tile, two registers of them."""
        return 2 * self.lanes


Step = Callable[[Code, Value, Value, Value], Value]
"""Adds one step's products to the sums, from a vector of weights and one activation."""


def multiply_floats(code: Code, weights: Value, x: Value, sums: Value) -> Value:
    """One fused multiply-add a lane."""
    return code.fma(weights, x.splat(weights.type.count), sums)


def multiply_bytes(machine: Machine) -> Step:
    """Four products of an unsigned and a signed byte a lane, which are exact."""
    half = ir.VectorType(I32, machine.lanes)

    def step(code: Code, weights: Value, x: Value, sums: Value) -> Value:
        assert machine.dot is not None
        both = []
        for first in (0, machine.lanes):
            parts = [_part(code, vector, first, machine.lanes) for vector in (sums, weights)]
            both.append(code.intrinsic(machine.dot, half, parts[0], x.splat(machine.lanes), parts[1]))
        return _together(code, both[0], both[1])

    return step


def tiles(
    module: ir.Module, machine: Machine, name: str, step: Step, element: Type, *, is_by_block: bool = False
) -> ir.GlobalVariable:
    """A table of tiles of one column, two columns, ….

    Args:
        module: gets them.
        machine: they are for it.
        name: of all of them.
        step: the arithmetic.
        element: of weights, activations and sums, four bytes long.
        is_by_block: activations are `[K / L, M, L]`; else `[K, M]`.
    """
    functions = [
        _tile(module, machine, f"{name}_{width}", step, element, width, is_by_block=is_by_block)
        for width in range(1, machine.columns + 1)
    ]
    type_ = ir.ArrayType(PTR, len(functions))
    table = ir.GlobalVariable(module, type_, name)
    table.linkage, table.global_constant = "internal", True
    table.initializer = ir.Constant(type_, [address_of(function) for function in functions])
    return table


def _tile(
    module: ir.Module, machine: Machine, name: str, step: Step, element: Type, width: int, *, is_by_block: bool
) -> Function:
    code = Code(module, name, TILE)
    weights, x, depth, first, results, ahead, ahead_step, block_step = code.arguments
    block = machine.block
    vector = ir.VectorType(element, block)
    sums = [code.variable(first.load(vector)) for _ in range(width)]
    w, ahead_at = code.variable(weights), code.variable(ahead)

    def steps(x: Value, count: int) -> None:
        for i in range(count):
            row = w.value.at(i * block, element).load(vector)
            code.prefetch(ahead_at.value)
            ahead_at.value = ahead_at.value.at(ahead_step, I8)
            for j in range(width):
                place = j * block + i if is_by_block else i * width + j
                sums[j].value = step(code, row, x.at(place, element).load(element), sums[j].value)
        w.value = w.value.at(count * block, element)

    x_step = 1 if is_by_block else width
    if is_by_block:
        with code.loop(0, depth, block) as start:
            x_block = x.at(start * width, element)
            w.value = weights.at(start // block * block_step, element)
            count = code.least(depth - start, code.integer(block))
            _unrolled(code, count, lambda i, n: steps(x_block.at(i * x_step, element), n))
    else:
        _unrolled(code, depth, lambda i, n: steps(x.at(i * x_step, element), n))
    for j in range(width):
        results.at(j * block, element).store(sums[j].value)
    return code.end()


def _unrolled(code: Code, count: Value, body: Callable[[Value, int], None]) -> None:
    """The body for several steps at once, and then for the rest one after the other."""
    most = count - count % UNROLL
    with code.loop(0, most, UNROLL) as i:
        body(i, UNROLL)
    with code.loop(most, count) as i:
        body(i, 1)


def _part(code: Code, vector: Value, first: int, count: int) -> Value:
    which = ir.Constant(ir.VectorType(I32, count), list(range(first, first + count)))
    nothing = ir.Constant(vector.type, ir.Undefined)
    return Value(code, code.builder.shuffle_vector(vector.value, nothing, which))


def _together(code: Code, one: Value, other: Value) -> Value:
    which = ir.Constant(ir.VectorType(I32, 2 * one.type.count), list(range(2 * one.type.count)))
    return Value(code, code.builder.shuffle_vector(one.value, other.value, which))


FLOATS, BYTES = F32, I32
"""What the elements of the two kinds of tiles are; four bytes are one element."""
