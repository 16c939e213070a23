"""Which processors have kernels, and what is kept of them for the next start."""

from collections.abc import Callable
from pathlib import Path

import llvmlite.binding as llvm
import numpy as np
import pytest

from app.kernels import compiler
from app.kernels.compiler import PRODUCT_OF_BYTES, Kernels, compile_kernels, host, machine_of
from app.kernels.tiles import Machine
from tests.kernels.calls import machine_here, product

pytestmark = pytest.mark.xdist_group("kernels")
AVX2 = {"sse2": True, "avx": True, "avx2": True, "fma": True}
AVX512 = {**AVX2, "avx512f": True, "avx512vl": True}


@pytest.fixture
def machine() -> Machine:
    return machine_here()


def is_right(kernels: Kernels) -> bool:
    weight, x = np.full((3, 2), 2, np.float32), np.full((2, 5), 3, np.float32)
    return bool((product(kernels, weight, x) == 12).all())


def test_this_processor_has_kernels_if_it_says_that_it_multiplies_and_adds_at_once() -> None:
    path = Path("/proc/cpuinfo")
    flags = path.read_text().partition("flags")[2].partition("\n")[0].split() if path.exists() else []
    if not {"avx2", "fma"} <= set(flags):
        pytest.skip("this processor does not say so")
    assert host() is not None


@pytest.mark.parametrize(
    ("features", "lanes", "dot"),
    [
        (AVX2, 8, None),
        ({**AVX2, "avx512f": True}, 8, None),
        ({**AVX2, "avxvnni": True}, 8, "llvm.x86.avx512.vpdpbusd.256"),
        (AVX512, 16, None),
        ({**AVX512, "avx512vnni": True, "avxvnni": True}, 16, "llvm.x86.avx512.vpdpbusd.512"),
    ],
)
def test_a_machine_has_the_widest_vectors_of_its_processor(
    features: dict[str, bool], lanes: int, dot: str | None
) -> None:
    machine = machine_of("x86_64", features)
    assert machine is not None
    assert (machine.lanes, machine.block, machine.dot) == (lanes, 2 * lanes, dot)


@pytest.mark.parametrize("missing", ["fma", "avx2"])
def test_a_processor_without_vectors_of_multiply_adds_has_no_kernels(missing: str) -> None:
    assert machine_of("x86_64", {**AVX2, missing: False}) is None
    assert machine_of("x86_64", {name: True for name in AVX2 if name != missing}) is None


def test_another_architecture_has_no_kernels() -> None:
    assert machine_of("aarch64", AVX512) is None


def test_features_are_named_as_present_or_absent() -> None:
    machine = machine_of("x86_64", {**AVX2, "avx512f": False})
    assert machine is not None
    assert machine.features == "+avx,+avx2,-avx512f,+fma,+sse2"


def test_a_processor_without_products_of_bytes_has_the_other_kernels(tmp_path: Path) -> None:
    without = ("avx512", "avx10", "avxvnni")
    features = dict[str, bool](llvm.get_host_cpu_features())
    narrow = {feature: is_present and not feature.startswith(without) for feature, is_present in features.items()}
    machine = machine_of(llvm.get_process_triple().split("-")[0], narrow)
    if machine is None:
        pytest.skip("this processor has no vectors of fused multiply-adds")
    kernels = compile_kernels(machine, tmp_path)
    assert PRODUCT_OF_BYTES not in kernels.addresses
    assert is_right(kernels)


def test_the_second_start_reads_what_the_first_compiled(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = compile_kernels(machine, tmp_path)
    [file] = tmp_path.iterdir()
    written = file.stat()
    # Nothing can be compiled any more.
    monkeypatch.setattr(compiler, "_machine_code", None)
    second = compile_kernels(machine, tmp_path)
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (written.st_ino, written.st_mtime_ns)
    assert first.addresses.keys() == second.addresses.keys()
    assert is_right(first)
    assert is_right(second)


def test_machines_do_not_read_each_others_code(machine: Machine) -> None:
    narrow = machine_of("x86_64", AVX2)
    assert narrow is not None
    assert compiler._key(machine) == compiler._key(machine_here())
    assert compiler._key(machine) != compiler._key(narrow)


def test_a_folder_that_cannot_be_written_to_costs_a_compilation_only(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert is_right(compile_kernels(machine, tmp_path / "file" / "folder"))


@pytest.mark.parametrize("damage", [lambda _: b"", lambda code: code[:5000], lambda code: code[:-1] + b"?"])
def test_a_damaged_file_is_written_anew(damage: Callable[[bytes], bytes], machine: Machine, tmp_path: Path) -> None:
    compile_kernels(machine, tmp_path)
    [file] = tmp_path.iterdir()
    code = file.read_bytes()
    file.write_bytes(damage(code))
    assert is_right(compile_kernels(machine, tmp_path))
    assert file.read_bytes() == code
