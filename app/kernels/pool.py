"""Spreads the pieces of a job over threads, without XLA's help.

XLA on a CPU gives a custom call one thread. Here the caller and helpers, which were
started once, take a job's pieces by their number until none is left. A helper that has
nothing to do looks out for a while and then sleeps. Somebody who calls while the
helpers are busy for another does all pieces alone, so nobody waits for a thread.

What is shared is one number, the ticket, of the job's number, its pieces, and the next
piece; whoever has put the next number into it owns the piece, and until that piece is
done the job is not over, so what was read of the job is true.
"""

from collections.abc import Sequence

from llvmlite import ir

from app.kernels.code import I1, I8, I32, I64, PTR, Code, Function, Handle, Type, Value, external

PIECE = (PTR, I64)
"""What does a piece of a job: a function of the job's arguments and the piece's number."""
PIECE_BITS = 20
MOST_PIECES = 1 << PIECE_BITS
MOST_HELPERS = 255
# So often does an idle helper look out before it sleeps; about a millisecond, since XLA's operations come in between.
LOOKS = 20_000
# So often does a caller look whether its helpers are done before it leaves its core to others: they may need it.
PATIENCE = 2000
# A job of fewer multiplications is not worth to be shared out; one piece may have as few.
LEAST_WORK = 1 << 16
SEMAPHORE_BYTES = 64
LINE = 8
"""Numbers of a cache line, so that threads do not disturb each other."""


class Pool:
    """The functions that share out work, in a module under construction.

    Attributes:
        run: `(function of PIECE, arguments, number of pieces, about how many multiplications all of them are)`; all
            are done when it returns.
    """

    def __init__(self, module: ir.Module, pause: str | None) -> None:
        self._module = module
        self._pause_intrinsic = pause
        self._lock, self._ticket, self._done = (_line(module, name) for name in ("lock", "ticket", "done"))
        self._job = _line(module, "job")
        self._num_helpers = _line(module, "num_helpers")
        self._asleep = _shared(module, "asleep", ir.ArrayType(I64, MOST_HELPERS * LINE))
        self._semaphores = _shared(module, "semaphores", ir.ArrayType(I8, MOST_HELPERS * SEMAPHORE_BYTES))
        self._add_helper()
        self._help()
        self.run = self._run()

    def _add_helper(self) -> None:
        """`add_helper()`: before a thread is started for it."""
        code = Code(self._module, "add_helper", [], is_exported=True)
        number = self._at(code, self._num_helpers).load(I64, 8)
        start = external(self._module, "sem_init", I32, [PTR, I32, I32])
        code.call(start, self._semaphore(code, number), code.constant(I32, 0), code.constant(I32, 0))
        self._at(code, self._num_helpers).exchange(number + 1)
        code.end()

    def _help(self) -> None:
        """`help(number)`: what a helper's thread does, and never returns from."""
        code = Code(self._module, "help", [I64], is_exported=True)
        [number] = code.arguments
        looks = code.variable(code.integer(0))
        with code.repeat() as leave:
            leave(code.constant(I64, 0).compare("==", 1))
            took = self._take(code)
            looks.value = took.select(code.integer(0), looks.value + 1)
            with code.when(looks.value.compare(">", LOOKS)):
                self._sleep(code, number)
                looks.value = code.integer(0)
            with code.when(looks.value.compare(">", 0)):
                self._pause(code)
        code.end()

    def _sleep(self, code: Code, number: Value) -> None:
        asleep = self._at(code, self._asleep).at(number * LINE, I64)
        asleep.exchange(code.integer(1))
        # Looked at once more: a job that came before the line above wakes nobody.
        has_work = self._has_piece(code, self._at(code, self._ticket).load_atomic())
        is_woken = code.variable(code.integer(1))
        with code.when(has_work):
            is_woken.value = code.integer(1) - asleep.exchange(code.integer(0))
        with code.when(is_woken.value.compare("==", 1)):
            wait = external(self._module, "sem_wait", I32, [PTR])
            code.call(wait, self._semaphore(code, number))

    def _run(self) -> Function:
        code = Code(self._module, "run", [PTR, PTR, I64, I64])
        function, arguments, count, work = code.arguments
        is_shared = code.variable(code.constant(I1, 0))
        has_helpers = self._at(code, self._num_helpers).load(I64, 8).compare(">", 0)
        can_be_shared = count.compare(">", 1) & count.compare("<", MOST_PIECES)
        with code.when(can_be_shared & work.compare(">=", LEAST_WORK) & has_helpers):
            is_shared.value = self._at(code, self._lock).replace(code.integer(0), code.integer(1))
        with code.when(is_shared.value.compare("==", 0)), code.loop(0, count) as piece:
            code.call_at(function, PIECE, arguments, piece)
        with code.when(is_shared.value):
            self._share(code, function, arguments, count)
        return code.end()

    def _share(self, code: Code, function: Value, arguments: Value, count: Value) -> None:
        self._at(code, self._job).store(function, 8)
        self._at(code, self._job).at(1, PTR).store(arguments, 8)
        self._at(code, self._done).exchange(code.integer(0))
        ticket = self._at(code, self._ticket)
        number = (ticket.load_atomic() >> 2 * PIECE_BITS) + 1
        ticket.exchange((number << 2 * PIECE_BITS) | (count << PIECE_BITS))
        wake = external(self._module, "sem_post", I32, [PTR])
        with code.loop(0, self._at(code, self._num_helpers).load(I64, 8)) as helper:
            asleep = self._at(code, self._asleep).at(helper * LINE, I64)
            with code.when(asleep.replace(code.integer(1), code.integer(0))):
                code.call(wake, self._semaphore(code, helper))
        looks = code.variable(code.integer(0))
        with code.repeat() as leave:
            leave(self._at(code, self._done).load_atomic().compare("==", count))
            with code.when(self._take(code).compare("==", 0)):
                self._pause(code)
                looks.value = looks.value + 1
            with code.when(looks.value.compare(">", PATIENCE)):
                code.call(external(self._module, "sched_yield", I32, []))
        self._at(code, self._lock).exchange(code.integer(0))

    def _take(self, code: Code) -> Value:
        """Do the next piece, if there is one and no other thread was quicker; whether it was done."""
        took, ticket = code.variable(code.constant(I1, 0)), self._at(code, self._ticket).load_atomic()
        with code.when(self._has_piece(code, ticket)):
            took.value = self._at(code, self._ticket).replace(ticket, ticket + 1)
        with code.when(took.value):
            function = self._at(code, self._job).load(PTR, 8)
            arguments = self._at(code, self._job).at(1, PTR).load(PTR, 8)
            code.call_at(function, PIECE, arguments, ticket & (MOST_PIECES - 1))
            self._at(code, self._done).increase(code.integer(1))
        return took.value

    def _has_piece(self, code: Code, ticket: Value) -> Value:
        return (ticket & (MOST_PIECES - 1)).compare("<", (ticket >> PIECE_BITS) & (MOST_PIECES - 1))

    def _pause(self, code: Code) -> None:
        if self._pause_intrinsic is None:
            code.call(external(self._module, "sched_yield", I32, []))
        else:
            code.intrinsic(self._pause_intrinsic, ir.VoidType())

    def _semaphore(self, code: Code, number: Value) -> Value:
        return self._at(code, self._semaphores).at(number * SEMAPHORE_BYTES, I8)

    def _at(self, code: Code, place: Handle) -> Value:
        return code.pointer(place)


def split(code: Code, count: Value, num_pieces: Value, work: Value) -> Value:
    """How many of `count` are in a piece, so that there are so many pieces, or fewer if there is little work."""
    num_pieces = code.largest(code.least(num_pieces, work // LEAST_WORK), code.integer(1))
    return code.largest((count + num_pieces - 1) // num_pieces, code.integer(1))


def pointers(values: Sequence[Value], place: Value) -> None:
    """Put a job's arguments, `I64` or pointers, one after the other."""
    for i, value in enumerate(values):
        place.at(i, I64).store(value, 8)


def _line(module: ir.Module, name: str) -> Function:
    return _shared(module, name, ir.ArrayType(I64, LINE))


def _shared(module: ir.Module, name: str, type_: Type) -> Function:
    variable = ir.GlobalVariable(module, type_, name)
    variable.linkage, variable.align = "internal", 64
    variable.initializer = ir.Constant(type_, None)
    return variable
