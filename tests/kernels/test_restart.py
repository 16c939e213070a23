"""A program with kernels that XLA reads from disk: it holds their names, and is handed their results otherwise."""

import subprocess
import sys
from pathlib import Path

import pytest

from app.kernels.compiler import host

START = """
import sys
from pathlib import Path
from app.engine.device import align_function_numbers, start_tensorflow
folder = start_tensorflow(Path(sys.argv[1]))
import numpy as np
import tensorflow as tf
from app.kernels import ops
kernels = ops.start(folder, 2)
rng = np.random.default_rng(1)
weight = ops.pack(kernels, rng.standard_normal((48, 32), np.float32))
of_bytes = ops.pack(kernels, rng.integers(-128, 128, (32, 48), np.int8), np.ones(32, np.float32))
memory = ops.Memory(kernels, 1, 2, 16, 2, 64)
turns = np.stack([np.ones((8, 13)), np.zeros((8, 13))]).astype(np.float32)
def graph(x, turns, places):
    y = memory.attend(x, x, x, turns, places, 0, None)
    y = tf.nn.silu(ops.product(weight, y))
    if of_bytes is not None:
        y = ops.product(of_bytes, y) + tf.transpose(ops.rows(of_bytes, tf.range(13)))[:32]
    return y
specs = [tf.TensorSpec(shape) for shape in ((32, 13), (2, 8, 13))] + [tf.TensorSpec((1, 3), tf.int32)]
align_function_numbers()
run = tf.function(graph, input_signature=specs, autograph=False, jit_compile=True)
for start in (0, 13, 26):
    x = rng.standard_normal((32, 13), np.float32)
    print(run(tf.constant(x), tf.constant(turns), tf.constant([[1, start, 13]])).numpy().tobytes().hex())
"""


def start(folder: Path) -> str:
    """What a process of its own computes."""
    root = Path(__file__).parents[2]
    ended = subprocess.run([sys.executable, "-c", START, str(folder)], cwd=root, check=True, capture_output=True)
    return ended.stdout.decode()


def files(folder: Path) -> dict[Path, int]:
    """What is kept, and since when."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_a_restart_computes_the_same_bits_with_what_was_compiled(tmp_path: Path) -> None:
    if host() is None:
        pytest.skip("this processor has no vectors of fused multiply-adds")
    compiled, kept = start(tmp_path), files(tmp_path)
    assert any("xla_compile_cache" in path.name for path in kept)
    assert len(set(compiled.split())) == 3
    for _ in range(2):  # XLA may make one of two programs, by chance
        assert start(tmp_path) == compiled
        assert kept.items() <= files(tmp_path).items()
