"""The compiled kernels, called from numpy as XLA calls them.

Letters as in `app/kernels`: `F` outputs, `K` depth, `M` columns, `L` outputs of a block,
`B` rows, `N` query heads, `G` key/value heads, `T` tokens, `H` head size.
"""

import ctypes
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import llvmlite.binding as llvm
import numpy as np
import pytest
from llvmlite import ir

from app.kernels import compiler
from app.kernels.compiler import (
    ATTENTION,
    PRODUCT,
    PRODUCT_OF_BYTES,
    Kernels,
    compile_kernels,
    host,
    machine_of,
)
from app.kernels.tiles import Machine

MACHINES = ("host", "avx2")
# One compiles, the others of this process read.
FOLDER = tempfile.TemporaryDirectory(prefix="kernels-")
NUM_PIECES = 16
BYTES_A_WORD = 4
OFFSET = 128
LINE_BYTES = 64


@cache
def kernels_of(name: str, num_helpers: int = 1) -> Kernels:
    """Compiled for this machine, or for a part of it."""
    kernels = compile_kernels(machine_here(name), Path(FOLDER.name))
    kernels.add_helpers(num_helpers)
    return kernels


def machine_here(name: str = "host") -> Machine:
    """What this machine can do, or would without vectors of 512 bits; skips where that is too little."""
    features = dict[str, bool](llvm.get_host_cpu_features())
    wide = ("avx512", "avx10")
    narrow = {feature: is_present and not feature.startswith(wide) for feature, is_present in features.items()}
    machine = host() if name == "host" else machine_of(llvm.get_process_triple().split("-")[0], narrow)
    if machine is None:
        pytest.skip("this processor has no vectors of fused multiply-adds")
    return machine


def compiled(module: ir.Module, machine: Machine, names: Sequence[str]) -> dict[str, int]:
    """Addresses of functions of a module of the test's own."""
    module.triple = llvm.get_process_triple()
    target = compiler._target_machine(machine)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(str(module)), target)
    engine.finalize_object()
    addresses = {name: engine.get_function_address(name) for name in names}
    engine.detach()
    return addresses


def function_at(address: int, num_arguments: int) -> Callable[..., None]:
    """To be called with integers or addresses."""
    return ctypes.CFUNCTYPE(None, *[ctypes.c_uint64] * num_arguments)(address)


def call(function: Callable[..., None], out: np.ndarray, *ins: np.ndarray) -> None:
    """A custom call of one result."""
    assert all(array.flags.c_contiguous for array in (out, *ins))
    addresses = (ctypes.c_void_p * len(ins))(*(array.ctypes.data for array in ins))
    function(out.ctypes.data, ctypes.addressof(addresses))


def aligned(shape: tuple[int, ...], fill: float) -> np.ndarray:
    """Float32 that begins with a line of the cache."""
    count = int(np.prod(shape))
    room = np.full(count + LINE_BYTES // 4, fill, np.float32)
    start = -room.ctypes.data % LINE_BYTES // 4
    return room[start : start + count].reshape(shape)


def product(kernels: Kernels, weight: np.ndarray, x: np.ndarray, num_pieces: int = NUM_PIECES) -> np.ndarray:
    """`[F, D]` by `[D, M]`, float32."""
    block = kernels.machine.block
    ins = (_blocks(weight, block), x, np.zeros(block, np.float32), np.zeros(1, np.float32))
    return _product(kernels.function(PRODUCT), ins, (*weight.shape, weight.shape[1], x.shape[1], num_pieces))


def product_of_bytes(kernels: Kernels, weight: np.ndarray, scale: np.ndarray, x: np.ndarray) -> np.ndarray:
    """`[F, D]` int8 by scales `[F]` with `[D, M]` float32 that becomes bytes."""
    (num_outputs, width), block = weight.shape, kernels.machine.block
    padded = np.pad(weight, [(0, -num_outputs % block), (0, -width % BYTES_A_WORD)])
    first = -OFFSET * padded.sum(axis=1, dtype=np.int32)
    words = np.ascontiguousarray(padded).view(np.int32)
    sizes = (num_outputs, words.shape[1], width, x.shape[1], NUM_PIECES)
    return _product(kernels.function(PRODUCT_OF_BYTES), (_blocks(words, block), x, first, scale), sizes)


def _product(function: Callable[..., None], ins: tuple[np.ndarray, ...], sizes: tuple[int, ...]) -> np.ndarray:
    """Of `[F, K, D, M, pieces]`; nothing is written behind the outputs."""
    out = np.full((sizes[0] + 1, sizes[3]), np.nan, np.float32)
    call(function, out, *ins, np.array(sizes))
    assert np.isnan(out[-1]).all()
    return out[:-1]


def _blocks(weight: np.ndarray, block: int) -> np.ndarray:
    """`[F, K]` to `[F / L, K, L]`."""
    padded = np.pad(weight, [(0, -len(weight) % block), (0, 0)])
    return np.ascontiguousarray(padded.reshape(-1, block, weight.shape[1]).swapaxes(1, 2))


@dataclass(frozen=True)
class Tokens:
    """Queries `[N, T, H]` of a row and its new keys and values `[G, T, H]`."""

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray

    @classmethod
    def some(cls, heads: tuple[int, int, int], num_tokens: int, seed: int) -> "Tokens":
        """Random ones, of `N, G, H`."""
        num_heads, num_kv_heads, head_dim = heads
        rng = np.random.default_rng(seed)
        return cls(
            *(rng.standard_normal((n, num_tokens, head_dim), np.float32) for n in (num_heads, *[num_kv_heads] * 2))
        )

    def part(self, start: int, end: int, padded: int | None = None) -> "Tokens":
        """Some of them, followed by what means nothing."""
        missing = (padded or end - start) - (end - start)
        padding = [(0, 0), (0, missing), (0, 0)]
        return Tokens(
            *(np.pad(x[:, start:end], padding, constant_values=np.nan) for x in (self.q, self.k, self.v)),
        )


class World:
    """Slots of two layers, in memory that holds no number yet.

    Args:
        kernels: that attend.
        heads: `N, G, H`.
        num_slots: that there are.
        num_blocks: of positions that a slot holds.
        window: how many positions a query sees; 0: all.
    """

    LAYERS = 2

    def __init__(
        self, kernels: Kernels, heads: tuple[int, int, int], *, num_slots: int = 5, num_blocks: int = 4, window: int = 0
    ) -> None:
        self.heads, self.window = heads, window
        self._function, block = kernels.function(ATTENTION), kernels.machine.block
        self._zeros = np.zeros(block, np.float32)
        _, num_kv_heads, head_dim = heads
        size = block * (head_dim + -(-head_dim // block) * block)
        self.capacity = num_blocks * block
        self.memory = aligned((self.LAYERS, num_slots, num_kv_heads, num_blocks, size), np.nan)

    def attend(self, rows: list[tuple[int, int, int, Tokens]], layer: int = 1) -> np.ndarray:
        """`[B, N, T, H]` of rows of slot, first position, number of real tokens and tokens."""
        num_heads, num_kv_heads, head_dim = self.heads
        num_tokens = rows[0][3].q.shape[1]
        places = np.array([row[:3] for row in rows], np.int32)
        q, k, v = (_columns([getattr(tokens, name) for *_, tokens in rows]) for name in "qkv")
        positions = np.concatenate([start + np.arange(num_tokens) for _, start, *_ in rows])
        turns = np.stack(turns_of(positions, head_dim)).swapaxes(1, 2).astype(np.float32).copy()
        sizes = [len(rows), num_heads, num_kv_heads, num_tokens, head_dim]
        sizes += [self.memory.shape[1], self.capacity, layer, self.window]
        address = np.array([self.memory.ctypes.data])
        scale = np.array([head_dim**-0.5], np.float32)
        out = np.full(q.shape, np.nan, np.float32)
        call(self._function, out, q, k, v, turns, places, address, self._zeros, scale, np.array(sizes))
        return out.reshape(num_heads, head_dim, len(rows), num_tokens).transpose(2, 0, 3, 1)


def by_the_book(tokens: Tokens, window: int = 0, start: int = 0) -> np.ndarray:
    """`[N, T, H]` in float64: each query attends to all keys up to its own, or to so many."""
    positions = start + np.arange(tokens.q.shape[1])
    shared = len(tokens.q) // len(tokens.k)
    q, k = (_turned(x.astype(np.float64), positions) for x in (tokens.q, tokens.k))
    k, v = (np.repeat(x, shared, axis=0) for x in (k, tokens.v.astype(np.float64)))
    scores = q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1])
    distance = positions[:, np.newaxis] - positions
    scores[:, (distance < 0) | (distance >= (window or np.inf))] = -np.inf
    shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
    answer: np.ndarray = shares / shares.sum(axis=-1, keepdims=True) @ v
    return answer


def turns_of(positions: np.ndarray, head_dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines `[M, H / 2]`."""
    angles = positions[:, np.newaxis] * 100.0 ** (-np.arange(head_dim // 2) / head_dim)
    return np.cos(angles), np.sin(angles)


def _turned(x: np.ndarray, positions: np.ndarray) -> np.ndarray:
    cos, sin = turns_of(positions, x.shape[-1])
    one, other = np.split(x, 2, axis=-1)
    return np.concatenate([one * cos - other * sin, other * cos + one * sin], axis=-1)


def _columns(rows: list[np.ndarray]) -> np.ndarray:
    """Rows of `[heads, T, H]` to `[heads * H, B * T]`."""
    together = np.stack(rows)
    num_rows, heads, num_tokens, head_dim = together.shape
    return np.ascontiguousarray(together.transpose(1, 3, 0, 2)).reshape(heads * head_dim, num_rows * num_tokens)
