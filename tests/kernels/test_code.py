"""What the other files are written in, where XLA or numpy would not show a mistake."""

import numpy as np
import pytest
from llvmlite import ir

from app.kernels.code import F32, I64, PTR, Code
from tests.kernels.calls import compiled, function_at, machine_here

pytestmark = pytest.mark.xdist_group("kernels")


def test_a_result_is_found_by_its_address_and_by_a_list_on_the_callers_stack() -> None:
    machine = machine_here()
    module = ir.Module("results")
    callee = Code(module, "callee", [PTR], is_exported=True)
    callee.result(*callee.arguments).store(callee.constant(F32, 42.0))
    function = callee.end()
    caller = Code(module, "caller", [PTR, I64], is_exported=True)
    out, num_bytes = caller.arguments
    outs = caller.room(PTR, 1)
    # What else a caller may have on its stack, below and above.
    caller.room(I64, 100).store(num_bytes, 8)
    outs.store(out, 8)
    caller.call(function, outs)
    caller.end()
    addresses = compiled(module, machine, ("callee", "caller"))
    out_of_list, direct = np.zeros(4, np.float32), np.zeros(4, np.float32)
    function_at(addresses["callee"], 1)(direct.ctypes.data)
    function_at(addresses["caller"], 2)(out_of_list.ctypes.data, 0)
    assert direct.tolist() == out_of_list.tolist() == [42, 0, 0, 0]


def test_loops_and_integers_count_as_in_python() -> None:
    machine = machine_here()
    module = ir.Module("counting")
    code = Code(module, "count", [PTR, I64, I64], is_exported=True)
    out, start, stop = code.arguments
    total = code.variable(code.integer(0))
    with code.loop(start, stop, 3) as i, code.when((i % 2).compare("==", 0)):
        total.value = total.value + code.least(code.largest(i * i - 5, code.integer(0)), code.integer(400)) // 3
    out.store(total.value, 8)
    code.end()
    out_of, count = np.zeros(1, np.int64), function_at(compiled(module, machine, ["count"])["count"], 3)
    for first, last in ((0, 50), (7, 8), (8, 7), (3, 3)):
        count(out_of.ctypes.data, first, last)
        assert out_of[0] == sum(min(max(i * i - 5, 0), 400) // 3 for i in range(first, last, 3) if i % 2 == 0)
