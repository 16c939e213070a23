"""Writes LLVM's intermediate language the way that one writes a loop: values with operators, loops with `with`.

`Code` is one function under construction. What is computed is what is written, in that
order: nothing here allows LLVM to reorder additions of floats, whatever it does for speed.

Letters: integers are 64 bits wide (`I64`) and indices count elements.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from llvmlite import ir
from llvmlite.ir.values import FormattedConstant

Type = Any
"""A type of LLVM's, as llvmlite has it; it has no types of its own that could be checked."""
Function = Any
"""A function of a module, as llvmlite has it."""
Handle = Any
"""Anything else of a module that has an address or a value, as llvmlite has it."""

I1, I8, I32, I64, F32, PTR, VOID = (
    ir.IntType(1),
    ir.IntType(8),
    ir.IntType(32),
    ir.IntType(64),
    ir.FloatType(),
    ir.PointerType(),
    ir.VoidType(),
)


# Bytes: what a caller has on the stack is no further away, and nothing else is as near.
CALLERS_FRAME = 4096


class Value:
    """A number, pointer or vector that the function computes; operators write the operation.

    A plain number beside it becomes a constant of the same type. Integers are signed.
    """

    def __init__(self, code: "Code", value: Handle) -> None:
        self.code = code
        self.value = value

    @property
    def type(self) -> Type:
        """As llvmlite names it."""
        return self.value.type

    def __add__(self, other: "Value | float") -> "Value":
        return self._binary("fadd" if self._is_float else "add", other)

    def __sub__(self, other: "Value | float") -> "Value":
        return self._binary("fsub" if self._is_float else "sub", other)

    def __mul__(self, other: "Value | float") -> "Value":
        return self._binary("fmul" if self._is_float else "mul", other)

    def __truediv__(self, other: "Value | float") -> "Value":
        return self._binary("fdiv", other)

    def __floordiv__(self, other: "Value | int") -> "Value":
        return self._binary("sdiv", other)

    def __mod__(self, other: "Value | int") -> "Value":
        return self._binary("srem", other)

    def __and__(self, other: "Value | int") -> "Value":
        return self._binary("and_", other)

    def __or__(self, other: "Value | int") -> "Value":
        return self._binary("or_", other)

    def __lshift__(self, other: "Value | int") -> "Value":
        return self._binary("shl", other)

    def __rshift__(self, other: "Value | int") -> "Value":
        return self._binary("lshr", other)

    def compare(self, relation: str, other: "Value | float") -> "Value":
        """A truth, or a vector of them, by `<`, `<=`, `==`, …."""
        builder = self.code.builder
        ordered = builder.fcmp_ordered if self._is_float else builder.icmp_signed
        return Value(self.code, ordered(relation, self.value, self._like(other)))

    def select(self, yes: "Value", no: "Value") -> "Value":
        """`yes` where this truth holds, else `no`."""
        return Value(self.code, self.code.builder.select(self.value, yes.value, no.value))

    def at(self, index: "Value | int", element: Type = F32) -> "Value":
        """The pointer to so many elements behind this one."""
        offset = index.value if isinstance(index, Value) else I64(index)
        return Value(self.code, self.code.builder.gep(self.value, [offset], source_etype=element))

    def load(self, element: Type = F32, align: int | None = 4) -> "Value":
        """What lies at this pointer."""
        return Value(self.code, self.code.builder.load(self.value, align=align, typ=element))

    def store(self, value: "Value", align: int | None = 4) -> None:
        """Put a value where this pointer points to."""
        self.code.builder.store(value.value, self.value, align=align)

    def load_atomic(self) -> "Value":
        """The `I64` at this pointer; what its writer wrote before is seen afterwards."""
        return Value(self.code, self.code.builder.load_atomic(self.value, "seq_cst", 8, typ=I64))

    def exchange(self, number: "Value") -> "Value":
        """Put an `I64` at this pointer, for all threads to see; gives the one before."""
        return Value(self.code, self.code.builder.atomic_rmw("xchg", self.value, number.value, "seq_cst"))

    def increase(self, number: "Value") -> "Value":
        """Add to the `I64` at this pointer, as one of many threads; gives the one before."""
        return Value(self.code, self.code.builder.atomic_rmw("add", self.value, number.value, "seq_cst"))

    def replace(self, old: "Value", new: "Value") -> "Value":
        """Put `new` in place of `old` at this pointer; whether `old` was there."""
        pair = self.code.builder.cmpxchg(self.value, old.value, new.value, "seq_cst")
        return Value(self.code, self.code.builder.extract_value(pair, 1))

    def splat(self, count: int) -> "Value":
        """A vector of so many equal numbers."""
        vector = ir.VectorType(self.type, count)
        first = self.code.builder.insert_element(ir.Constant(vector, ir.Undefined), self.value, I32(0))
        zeros = ir.Constant(ir.VectorType(I32, count), None)
        return Value(self.code, self.code.builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), zeros))

    def cast(self, operation: str, to: Type) -> "Value":
        """By one of LLVM's conversions: `bitcast`, `sitofp`, `inttoptr`, …."""
        return Value(self.code, getattr(self.code.builder, operation)(self.value, to))

    @property
    def _is_float(self) -> bool:
        return bool(getattr(self.type, "element", self.type) == F32)

    def _like(self, other: "Value | float") -> Handle:
        return other.value if isinstance(other, Value) else self.code.constant(self.type, other).value

    def _binary(self, operation: str, other: "Value | float") -> "Value":
        return Value(self.code, getattr(self.code.builder, operation)(self.value, self._like(other)))


class Variable:
    """A value that changes; LLVM keeps it in a register."""

    def __init__(self, code: "Code", initial: Value) -> None:
        with code.builder.goto_entry_block():
            self._place = _reserve(code, initial.type)
        self._type = initial.type
        self.value = initial

    @property
    def value(self) -> Value:
        """As it is here."""
        return self._place.load(self._type, align=None)

    @value.setter
    def value(self, value: Value) -> None:
        self._place.store(value, align=None)


class Code:
    """A function under construction.

    Args:
        module: gets the function.
        name: of the function.
        arguments: their types.
        is_exported: can be called from outside of the module.
    """

    def __init__(self, module: ir.Module, name: str, arguments: Sequence[Type], *, is_exported: bool = False) -> None:
        self.module = module
        self.function = ir.Function(module, ir.FunctionType(VOID, arguments), name)
        self.function.linkage = "external" if is_exported else "internal"
        self.builder = ir.IRBuilder(self.function.append_basic_block("entry"))
        self.arguments = [Value(self, argument) for argument in self.function.args]

    def constant(self, type_: Type, number: float) -> Value:
        """A number, or a vector of it."""
        if isinstance(type_, ir.VectorType):
            return Value(self, ir.Constant(type_, [number] * type_.count))
        return Value(self, ir.Constant(type_, number))

    def pointer(self, place: Handle) -> Value:
        """To a function or a global variable of the module."""
        return Value(self, address_of(place))

    def integer(self, number: int) -> Value:
        """An `I64`."""
        return self.constant(I64, number)

    def least(self, one: Value, other: Value) -> Value:
        """The smaller of two integers."""
        return one.compare("<", other).select(one, other)

    def largest(self, one: Value, other: Value) -> Value:
        """The larger of two integers or, element by element, of two vectors of floats."""
        return one.compare(">", other).select(one, other)

    def variable(self, initial: Value) -> Variable:
        """A value that changes."""
        return Variable(self, initial)

    def room(self, element: Type, count: int, align: int = 64) -> Value:
        """A pointer to so many elements that live as long as the call."""
        with self.builder.goto_entry_block():
            return _reserve(self, ir.ArrayType(element, count), align)

    @contextmanager
    def loop(self, start: Value | int, stop: Value | int, step: int = 1) -> Iterator[Value]:
        """`for i in range(start, stop, step)`."""
        first, last = (value if isinstance(value, Value) else self.integer(value) for value in (start, stop))
        i = self.variable(first)
        with self.repeat() as leave:
            leave(i.value.compare(">=", last))
            yield i.value
            i.value = i.value + step

    @contextmanager
    def repeat(self) -> Iterator[Callable[[Value], None]]:
        """`while True`; gives a function that writes `if condition: break`."""
        builder = self.builder
        head, after = builder.append_basic_block("loop"), builder.append_basic_block("after")
        builder.branch(head)
        builder.position_at_end(head)

        def leave(condition: Value) -> None:
            rest = builder.append_basic_block("body")
            builder.cbranch(condition.value, after, rest)
            builder.position_at_end(rest)

        yield leave
        builder.branch(head)
        builder.position_at_end(after)

    @contextmanager
    def when(self, condition: Value) -> Iterator[None]:
        """`if condition:`."""
        with self.builder.if_then(condition.value):
            yield

    def call(self, function: Function, *arguments: Value) -> Value:
        """Call a function of this module or one that `external` declared."""
        return Value(self, self.builder.call(function, [argument.value for argument in arguments]))

    def call_at(self, pointer: Value, types: Sequence[Type], *arguments: Value) -> None:
        """Call the function that lies at a pointer."""
        typed = ir.FunctionType(VOID, types)
        self.builder.call(_Pointed(pointer.value, typed), [argument.value for argument in arguments])

    def intrinsic(self, name: str, returns: Type, *arguments: Value) -> Value:
        """Call one of LLVM's own functions."""
        return self.call(external(self.module, name, returns, [argument.type for argument in arguments]), *arguments)

    def fma(self, a: Value, b: Value, c: Value) -> Value:
        """`a * b + c`, rounded once."""
        return self.intrinsic(f"llvm.fma.v{a.type.count}f32", a.type, a, b, c)

    def prefetch(self, pointer: Value) -> None:
        """Have memory read before it is needed; does not fault."""
        read, kept, data = (self.constant(I32, number) for number in (0, 2, 1))
        self.intrinsic("llvm.prefetch.p0", VOID, pointer, read, kept, data)

    def result(self, outs: Value) -> Value:
        """Where a custom call's result goes, by XLA's first argument.

        That should be the result itself. But in code that XLA has read from disk, whether it is a list of one result
        instead is left to chance (a field that is not initialised), and such a list lies on the caller's stack.
        """
        frame = self.intrinsic("llvm.frameaddress.p0", PTR, self.constant(I32, 0))
        distance = outs.cast("ptrtoint", I64) - frame.cast("ptrtoint", I64)
        is_list = distance.compare(">", 0) & distance.compare("<", CALLERS_FRAME)
        result = self.variable(outs)
        with self.when(is_list):
            result.value = outs.load(PTR, 8)
        return result.value

    def end(self) -> Function:
        """Return from the function; gives it."""
        self.builder.ret_void()
        return self.function


def address_of(place: Handle) -> Handle:
    """The constant pointer to a function or a global variable; llvmlite's own has the type of what it points to."""
    return FormattedConstant(PTR, place.get_reference())


def _reserve(code: Code, type_: Type, align: int | None = None) -> Value:
    place = code.builder.alloca(type_)
    place.type, place.align = PTR, align
    return Value(code, place)


class _Pointed:
    """A pointer that llvmlite calls like a function."""

    calling_convention = ""

    def __init__(self, pointer: Handle, function_type: ir.FunctionType) -> None:
        self.type, self.function_type, self.get_reference = pointer.type, function_type, pointer.get_reference


def external(module: ir.Module, name: str, returns: Type, arguments: Sequence[Type]) -> Function:
    """A function from outside of the module, declared once."""
    known = module.globals.get(name)
    return known or ir.Function(module, ir.FunctionType(returns, arguments), name)
