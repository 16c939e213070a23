"""Compiles the kernels for the processor at hand, and starts their threads, once in a process."""

import ctypes
import hashlib
import os
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

import llvmlite
import llvmlite.binding as llvm
from llvmlite import ir

from app.kernels.attention import write_attention
from app.kernels.pool import MOST_HELPERS, Pool
from app.kernels.products import write_product, write_rows
from app.kernels.tiles import BYTES, FLOATS, Machine, multiply_bytes, multiply_floats, tiles

PRODUCT, PRODUCT_OF_BYTES, ATTENTION = "tollgate_product", "tollgate_product_of_bytes", "tollgate_attention"
ROWS, ROWS_OF_BYTES = "tollgate_rows", "tollgate_rows_of_bytes"
CUSTOM_CALLS = (PRODUCT, PRODUCT_OF_BYTES, ATTENTION, ROWS, ROWS_OF_BYTES)
DIGEST_SIZE = 32
# By their numbers of arguments.
_EXPORTED = {"add_helper": 0, "help": 1, **dict.fromkeys(CUSTOM_CALLS, 2)}


class Kernels:
    """Machine code in memory, and the threads that help with it.

    Args:
        machine: what it was compiled for.
        addresses: of the exported functions by name.
    """

    def __init__(self, machine: Machine, addresses: Mapping[str, int]) -> None:
        self.machine = machine
        self.addresses = addresses
        self.num_helpers = 0

    def add_helpers(self, count: int) -> None:
        """Start threads, which end with the process."""
        count = min(count, MOST_HELPERS - self.num_helpers)
        add, help_ = (self.function(name) for name in ("add_helper", "help"))
        for _ in range(count):
            add()
            threading.Thread(target=help_, args=(self.num_helpers,), name="kernels", daemon=True).start()
            self.num_helpers += 1

    def function(self, name: str) -> Callable[..., None]:
        """To be called from Python, with integers or addresses; other threads go on meanwhile."""
        return ctypes.CFUNCTYPE(None, *[ctypes.c_uint64] * _EXPORTED[name])(self.addresses[name])


def machine_of(architecture: str, features: Mapping[str, bool]) -> Machine | None:
    """What a processor can do, by LLVM's names of its features; None if it has no fused multiply-add in vectors.

    Args:
        architecture: the first part of LLVM's target, such as `x86_64`.
        features: present or not.
    """
    names = ",".join(f"{'+' if present else '-'}{name}" for name, present in sorted(features.items()))
    if architecture != "x86_64":
        return None
    pause = "llvm.x86.sse2.pause"
    if features.get("avx512f") and features.get("avx512vl"):
        dot = "llvm.x86.avx512.vpdpbusd.512" if features.get("avx512vnni") else None
        # Half registers would be slower; some processors' descriptions prefer them.
        return Machine(16, 12, dot, pause, names + ",-prefer-256-bit")
    if features.get("avx2") and features.get("fma"):
        dot = "llvm.x86.avx512.vpdpbusd.256" if features.get("avxvnni") else None
        return Machine(8, 6, dot, pause, names)
    return None


def host() -> Machine | None:
    """What this processor can do."""
    return machine_of(llvm.get_process_triple().split("-")[0], dict(llvm.get_host_cpu_features()))


def compile_kernels(machine: Machine, folder: Path | None = None) -> Kernels:
    """The kernels as machine code, kept in `folder` for the next start.

    Args:
        machine: what `host` gave.
        folder: None: nowhere.
    """
    kept = None if folder is None else folder / f"kernels-{_key(machine)}.o"
    code = _read(kept) or _keep(kept, _machine_code(machine))
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _target_machine(machine))
    # Given as what a cache holds: a file of objects that is added loses its memory too early.
    engine.set_object_cache(getbuffer_func=lambda _: code)
    engine.finalize_object()
    addresses = {name: engine.get_function_address(name) for name in _EXPORTED}
    # Its memory stays: threads are in it until the process ends.
    engine.detach()
    return Kernels(machine, {name: address for name, address in addresses.items() if address})


def _module(machine: Machine) -> ir.Module:
    module = ir.Module("kernels")
    module.triple = llvm.get_process_triple()
    pool = Pool(module, machine.pause)
    make = partial(tiles, module, machine)
    floats = make("floats", multiply_floats, FLOATS)
    write_product(module, machine, pool, PRODUCT, floats)
    write_rows(module, machine, ROWS, is_bytes=False)
    write_rows(module, machine, ROWS_OF_BYTES, is_bytes=True)
    if machine.dot is not None:
        of_bytes = make("bytes", multiply_bytes(machine), BYTES)
        write_product(module, machine, pool, PRODUCT_OF_BYTES, of_bytes, is_bytes=True)
    write_attention(module, machine, pool, floats, make("by_block", multiply_floats, FLOATS, is_by_block=True))
    return module


def _machine_code(machine: Machine) -> bytes:
    target = _target_machine(machine)
    module = llvm.parse_assembly(str(_module(machine)))
    module.verify()
    # Optimised as for speed, which reorders no addition of floats that was not allowed to be.
    passes = llvm.create_pass_builder(target, llvm.create_pipeline_tuning_options(speed_level=2))
    passes.getModulePassManager().run(module, passes)
    code: bytes = target.emit_object(module)
    return code


def _target_machine(machine: Machine) -> llvm.TargetMachine:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_triple(llvm.get_process_triple())
    return target.create_target_machine(cpu=llvm.get_host_cpu_name(), features=machine.features, opt=3, jit=True)


def _key(machine: Machine) -> str:
    """Names what the machine code depends on: this package's text, LLVM and the processor."""
    sources = [path.read_text() for path in sorted(Path(__file__).parent.glob("*.py"))]
    text = "\n".join([*sources, llvmlite.__version__, llvm.get_host_cpu_name(), repr(machine)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _read(path: Path | None) -> bytes | None:
    """Machine code that was kept, unless it is damaged: nothing else would notice."""
    try:
        kept = b"" if path is None else path.read_bytes()
    except OSError:
        return None
    digest, code = kept[:DIGEST_SIZE], kept[DIGEST_SIZE:]
    return code if digest == hashlib.sha256(code).digest() else None


def _keep(path: Path | None, code: bytes) -> bytes:
    if path is not None:
        # Aside and renamed: two starts at once both write whole files.
        aside = path.with_suffix(f".{os.getpid()}")
        try:
            aside.write_bytes(hashlib.sha256(code).digest() + code)
            aside.replace(path)
        except OSError:  # the next start compiles again
            with suppress(OSError):
                aside.unlink(missing_ok=True)
    return code
