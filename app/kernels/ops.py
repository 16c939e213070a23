"""The kernels as TensorFlow operations, for functions that XLA compiles for a processor.

XLA finds a custom call by its name, among those that were registered. TensorFlow's Python
package has no way to register one, but its library exports XLA's registry, and `ctypes`
reaches it. So `start` looks whether all that is there, registers the kernels, and lets
XLA compile a product and compare it; where anything is missing, the products and the attention
that XLA has of its own serve as well.

Letters: `F` outputs, `D` width in, `M` columns, `L` outputs of a block; for the rest see
`attention.py`.
"""

import ctypes
import math
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import tensorflow as tf
from tensorflow.compiler.tf2xla.ops import gen_xla_ops

from app.kernels.compiler import (
    ATTENTION,
    CUSTOM_CALLS,
    PRODUCT,
    PRODUCT_OF_BYTES,
    ROWS,
    ROWS_OF_BYTES,
    Kernels,
    compile_kernels,
    host,
)
from app.kernels.products import OFFSET
from app.telemetry import get_logger

log = get_logger(__name__)

LIBRARY = "libtensorflow_cc.so.2"
REGISTRY = "_ZN3xla24CustomCallTargetRegistry6GlobalEv"
REGISTER = "_ZN3xla24CustomCallTargetRegistry8RegisterERKNSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEEPvS8_"
PLATFORM = "Host"
# Microseconds that a control group gets, or "max", and in which time, microseconds.
CPU_TIME = Path("/sys/fs/cgroup/cpu.max")
PIECES_A_THREAD = 8
BYTES_A_WORD = 4
# Floats of a line of the processor's cache.
LINE = 16

_lock = threading.Lock()
_first: "list[Started | None]" = []


@dataclass(frozen=True)
class Started:
    """The kernels of this process.

    Attributes:
        kernels: compiled and registered.
        num_threads: that share a product.
    """

    kernels: Kernels
    num_threads: int


@dataclass(frozen=True, slots=True)
class Packed:
    """A weight as the kernels read it.

    Attributes:
        blocks: `[F / L, D, L]` float32, or `[F / L, D / 4, L, 4]` int8.
        first: where a block's sums begin: `[L]` zeros for all, or of bytes `[F / L, L]` int32.
        scale: what outputs of bytes are multiplied with, `[F]`.
        shape: `(F, D)`.
        num_pieces: into which the outputs are cut, to be shared by threads.
    """

    blocks: tf.Tensor
    first: tf.Tensor
    scale: tf.Tensor
    shape: tuple[int, int]
    num_pieces: int

    @property
    def is_bytes(self) -> bool:
        """Whether it was rounded."""
        return bool(self.blocks.dtype == tf.int8)


def start(folder: Path | None, num_threads: int) -> Started | None:
    """Compile the kernels, start their threads, and make them known to XLA; the first call in a process does.

    Args:
        folder: where machine code is kept for the next start.
        num_threads: that work on one product, with the one that asks for it; 0: one per core.

    Returns:
        What the first call gave; None where they cannot be used.
    """
    with _lock:
        # XLA takes one address for each name, and ends a process that brings another.
        if not _first:
            _first.append(_start(folder, num_threads))
        return _first[0]


def pack(started: Started, weight: np.ndarray, scale: np.ndarray | None = None) -> Packed | None:
    """A weight as a product's kernel reads it; None where there is no such kernel.

    Args:
        started: the kernels.
        weight: `[F, D]` float32 or int8.
        scale: `[F]` float32, what outputs of int8 are multiplied with.
    """
    machine = started.kernels.machine
    num_outputs, width = weight.shape
    num_blocks = -(-num_outputs // machine.block)
    shape: tuple[int, ...]
    if weight.dtype == np.int8:
        if machine.dot is None:
            return None
        words = -(-width // BYTES_A_WORD)
        padded = np.zeros((num_blocks * machine.block, words * BYTES_A_WORD), np.int8)
        padded[:num_outputs, :width] = weight
        shape = (num_blocks, machine.block, words, BYTES_A_WORD)
        first = -OFFSET * padded.sum(axis=1, dtype=np.int32).reshape(num_blocks, machine.block)
    else:
        padded = np.zeros((num_blocks * machine.block, width), np.float32)
        padded[:num_outputs] = weight
        shape = (num_blocks, machine.block, width)
        first = np.zeros(machine.block, np.float32)
    blocks = np.ascontiguousarray(padded.reshape(shape).swapaxes(1, 2))
    scales = np.zeros(1, np.float32) if scale is None else scale
    num_pieces = PIECES_A_THREAD * started.num_threads
    return Packed(tf.constant(blocks), tf.constant(first), tf.constant(scales), (num_outputs, width), num_pieces)


def product(weight: Packed, x: tf.Tensor) -> tf.Tensor:
    """`[D, M]` to `[F, M]`, float32; of bytes, `x` is rounded to bytes by each column's largest, and outputs scaled."""
    (num_outputs, width), num_columns = weight.shape, x.shape[1]
    numbers = [num_outputs, weight.blocks.shape[1], width, num_columns, weight.num_pieces]
    operands = [weight.blocks, x, weight.first, weight.scale, tf.constant(numbers, tf.int64)]
    name = PRODUCT_OF_BYTES if weight.is_bytes else PRODUCT
    return gen_xla_ops.xla_custom_call(operands, name, "", tf.float32, [num_outputs, num_columns])


def rows(weight: Packed, ids: tf.Tensor) -> tf.Tensor:
    """Rows `[..., D]` float32 of a weight by number `[...]` int32, of static shape; of bytes, scaled."""
    width, count = weight.shape[1], math.prod(ids.shape)
    sizes = tf.constant([weight.blocks.shape[1], width, count], tf.int64)
    operands = [weight.blocks, weight.scale, tf.reshape(ids, [count]), sizes]
    name = ROWS_OF_BYTES if weight.is_bytes else ROWS
    return gen_xla_ops.xla_custom_call(operands, name, "", tf.float32, [*ids.shape, width])


class Memory:
    """Keys and values of sequences, outside of TensorFlow, where the kernels read and write them in place.

    Args:
        started: the kernels.
        num_layers: of the model.
        num_heads: that have keys and values, `G`.
        head_dim: `H`.
        num_slots: sequences that it can hold.
        context_length: positions that it holds of each, at least.
    """

    def __init__(
        self, started: Started, num_layers: int, num_heads: int, head_dim: int, num_slots: int, context_length: int
    ) -> None:
        self.num_slots = num_slots
        self._block = started.kernels.machine.block
        num_blocks, num_parts = -(-context_length // self._block), -(-head_dim // self._block)
        size = self._block * (head_dim + num_parts * self._block)
        self._capacity = num_blocks * self._block
        self._blocks = _aligned((num_layers, num_slots, num_heads, num_blocks, size))
        # A variable, since TensorFlow writes a small constant into what is compiled and kept on disk.
        self._address = tf.Variable([self._blocks.ctypes.data], dtype=tf.int64, trainable=False)
        self._zeros, self._scale = tf.zeros(self._block), tf.constant([head_dim**-0.5])

    def bytes_of(self, num_positions: int) -> int:
        """What so many positions of one slot take."""
        return self._blocks.nbytes // (self.num_slots * self._capacity) * num_positions

    def room_for(self, count: int, num_positions: int) -> np.ndarray:
        """For so many pieces of so many positions, which begin and end with a block."""
        num_layers, _, num_heads, _, size = self._blocks.shape
        return _aligned((count, num_layers, num_heads, num_positions // self._block, size))

    def positions(self, slot: int, start: int, num_positions: int) -> np.ndarray:
        """Some positions of a slot, of the shape of a piece that `room_for` made; to be read or overwritten."""
        first = start // self._block
        return self._blocks[:, slot, :, first : first + num_positions // self._block]

    def attend(
        self,
        q: tf.Tensor,
        k: tf.Tensor,
        v: tf.Tensor,
        turns: tf.Tensor,
        places: tf.Tensor,
        layer: int,
        window: int | None,
    ) -> tf.Tensor:
        """Remember new keys and values, and attend to all that a query sees.

        Args:
            q: `[N * H, M]`, not yet turned to their positions.
            k: `[G * H, M]`, as `q`.
            v: as `k`.
            turns: `[2, H / 2, M]`, cosines and sines of the tokens' positions.
            places: `[B, 3]` int32: a row's slot, the position of its first token, and how many of
                its tokens are real; what the others become is zeros.
            layer: whose.
            window: how many positions a query sees, its own with them; None: all before it.

        Returns:
            `[N * H, M]`.
        """
        num_rows, (_, num_slots, num_kv_heads, _, _) = places.shape[0], self._blocks.shape
        head_dim, num_tokens = k.shape[0] // num_kv_heads, k.shape[1] // num_rows
        sizes = [num_rows, q.shape[0] // head_dim, num_kv_heads, num_tokens, head_dim]
        sizes += [num_slots, self._capacity, layer, window or 0]
        fixed = [self._address.value(), self._zeros, self._scale, tf.constant(sizes, tf.int64)]
        return gen_xla_ops.xla_custom_call([q, k, v, turns, places, *fixed], ATTENTION, "", tf.float32, q.shape)


def _aligned(shape: tuple[int, ...]) -> np.ndarray:
    """Zeros that begin with a line of the processor's cache; written, so that memory is there or missing at once."""
    count = math.prod(shape)
    room = np.full(count + LINE, 0, np.float32)
    start = -room.ctypes.data % (4 * LINE) // 4
    return room[start : start + count].reshape(shape)


def _start(folder: Path | None, num_threads: int) -> Started | None:
    try:
        machine = host()
        if machine is None:
            log.info("kernels.absent", reason="this processor has no vectors of fused multiply-adds")
            return None
        kernels = compile_kernels(machine, folder)
        _register(kernels)
        started = Started(kernels, num_threads or _num_cores())
        kernels.add_helpers(started.num_threads - 1)
        _prove(started)
    except (OSError, AttributeError, RuntimeError, ValueError, tf.errors.OpError) as error:
        # A library without these symbols, a processor that LLVM does not know, another XLA: there is a way without.
        log.warning("kernels.absent", reason=f"{type(error).__name__}: {error}")
        return None
    return started


def _num_cores() -> int:
    """How many cores this process may use, by its affinity and by the time that its container gets."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = CPU_TIME.read_text().split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))


def _register(kernels: Kernels) -> None:
    """Make the exported functions known to XLA under their names."""
    library = ctypes.CDLL(str(Path(tf.__file__).parent / LIBRARY))
    registry, register = getattr(library, REGISTRY), getattr(library, REGISTER)
    registry.restype, register.argtypes = ctypes.c_void_p, [ctypes.c_void_p] * 4
    for name in CUSTOM_CALLS:
        if name in kernels.addresses:
            texts = _CppString(name), _CppString(PLATFORM)
            register(registry(), ctypes.addressof(texts[0]), kernels.addresses[name], ctypes.addressof(texts[1]))


class _CppString(ctypes.Structure):
    """A `std::string` as libstdc++ lays it out, for as long as a call that copies it takes."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("length", ctypes.c_size_t),
        ("capacity", ctypes.c_size_t),
        ("rest", ctypes.c_size_t),
    )

    def __init__(self, text: str) -> None:
        self._text = ctypes.create_string_buffer(text.encode())
        super().__init__(ctypes.addressof(self._text), len(text), len(text), 0)


def _prove(started: Started) -> None:
    """Raise unless XLA calls each product and gets what numpy gets."""
    weight = (np.arange(70 * 12) % 13 - 6).reshape(70, 12)
    x = (np.arange(12 * 14) % 11 - 5).reshape(12, 14)
    floats = pack(started, weight.astype(np.float32))
    assert floats is not None
    _compare(partial(product, floats), x.astype(np.float32), weight @ x)
    of_bytes = pack(started, weight.astype(np.int8), np.ones(70, np.float32))
    if of_bytes is not None:
        x[0] = 127  # so that nothing is rounded
        _compare(partial(product, of_bytes), x.astype(np.float32), weight @ x)


def _compare(graph: Callable[[tf.Tensor], tf.Tensor], x: np.ndarray, expected: np.ndarray) -> None:
    """Small whole numbers are exact in any order."""
    with tf.init_scope():  # whoever starts the kernels may be making a graph
        found = tf.function(graph, jit_compile=True, autograph=False)(tf.constant(x)).numpy()
    if not np.array_equal(found, expected):
        raise ValueError("a product came out wrong")
