"""The kernels as XLA's custom calls, and what happens where they cannot be."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from structlog.testing import capture_logs

from app.kernels import ops
from tests.kernels.calls import FOLDER, Tokens, by_the_book, turns_of
from tests.kernels.started import NUM_THREADS, started

pytestmark = pytest.mark.xdist_group("kernels")
HEADS = (4, 2, 8)


def some_bytes(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).integers(-128, 128, shape, np.int8)


def some_whole(*shape: int) -> np.ndarray:
    """Small whole numbers, whose products are exact in any order."""
    return np.random.default_rng(shape).integers(-9, 10, shape).astype(np.float32)


def packed(weight: np.ndarray) -> ops.Packed:
    scale = np.arange(1, len(weight) + 1, dtype=np.float32) if weight.dtype == np.int8 else None
    packed = ops.pack(started(), weight, scale)
    if packed is None:
        pytest.skip("this processor has no products of bytes")
    return packed


def compiled(graph: Callable[..., tf.Tensor]) -> Callable[..., tf.Tensor]:
    function: Callable[..., tf.Tensor] = tf.function(graph, autograph=False, jit_compile=True)
    return function


def test_a_start_has_the_threads_that_were_asked_for() -> None:
    assert started().num_threads == NUM_THREADS
    assert started().kernels.num_helpers == NUM_THREADS - 1


@pytest.mark.parametrize(
    ("granted", "cores"),
    [("max 100000", 8), ("250000 100000", 2), ("50000 100000", 1), ("6400000 100000", 8), ("", 8)],
)
def test_threads_are_as_many_as_cores_or_as_a_container_gets_time_for(
    granted: str, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "cpu.max"
    monkeypatch.setattr(ops, "CPU_TIME", file)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert ops._num_cores() == 8  # no control groups here
    file.write_text(granted)
    assert ops._num_cores() == cores


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LIBRARY", "libabsent.so"),
        ("REGISTRY", "_ZN6absent"),
        ("REGISTER", "_ZN6absent"),
        ("host", lambda: None),
        ("product", lambda weight, x: tf.zeros((weight.shape[0], x.shape[1]))),
    ],
)
def test_a_start_without_what_it_needs_gives_no_kernels_and_says_so(
    name: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ops, name, value)
    if name == "product":  # XLA knows the others of this process already
        monkeypatch.setattr(ops, "_register", lambda _: None)
    with capture_logs() as logs:
        assert ops._start(Path(FOLDER.name), 1) is None
    assert [log["event"] for log in logs] == ["kernels.absent"]
    assert logs[0]["reason"]


@pytest.mark.parametrize("num_columns", [1, 7, 13, 40])
def test_a_product_is_numpys(num_columns: int) -> None:
    weight, x = some_whole(70, 9), some_whole(9, num_columns)
    multiply = compiled(partial(ops.product, packed(weight)))
    assert np.array_equal(multiply(tf.constant(x)).numpy(), weight @ x)


@pytest.mark.parametrize("depth", [1, 8, 9, 11, 130])
@pytest.mark.parametrize("num_columns", [1, 13])
def test_a_product_of_bytes_is_numpys_by_its_scale(depth: int, num_columns: int) -> None:
    weight, x = some_bytes(70, depth), some_whole(depth, num_columns)
    x[0] = 127  # a step of one, so that nothing is rounded
    multiply = compiled(partial(ops.product, packed(weight)))
    assert np.array_equal(multiply(tf.constant(x)).numpy(), weight @ x * np.arange(1, 71)[:, np.newaxis])


@pytest.mark.parametrize("make", [some_whole, some_bytes])
@pytest.mark.parametrize("shape", [(70, 9), (64, 8), (1, 1), (33, 10)])
def test_rows_of_a_packed_weight_are_those_of_the_weight(
    make: Callable[..., np.ndarray], shape: tuple[int, int]
) -> None:
    weight = make(*shape)
    scale = np.arange(1, len(weight) + 1)[:, np.newaxis] if weight.dtype == np.int8 else 1
    ids = np.random.default_rng(3).integers(0, shape[0], (2, 3)).astype(np.int32)
    find = compiled(partial(ops.rows, packed(weight)))
    for some in (ids, ids[0]):
        assert np.array_equal(find(tf.constant(some)).numpy(), (weight * scale)[some])


def memory(num_slots: int = 3, context_length: int = 50) -> ops.Memory:
    _, num_kv_heads, head_dim = HEADS
    return ops.Memory(started(), 2, num_kv_heads, head_dim, num_slots, context_length)


def attend(memory: ops.Memory, tokens: Tokens, slot: int, start: int) -> np.ndarray:
    """`[N, T, H]` of all these tokens."""
    num_heads, num_tokens, head_dim = tokens.q.shape
    positions = start + np.arange(num_tokens)
    turns = np.stack(turns_of(positions, head_dim)).swapaxes(1, 2).astype(np.float32)
    graph = compiled(lambda q, k, v, turns, places: memory.attend(q, k, v, turns, places, 1, None))
    columns = [tf.constant(x.swapaxes(1, 2).reshape(-1, num_tokens)) for x in (tokens.q, tokens.k, tokens.v)]
    answer = graph(*columns, tf.constant(turns), tf.constant([[slot, start, num_tokens]])).numpy()
    return np.asarray(answer.reshape(num_heads, head_dim, num_tokens).swapaxes(1, 2))


def test_attention_in_memory_is_that_by_the_book() -> None:
    tokens, kept = Tokens.some(HEADS, 50, seed=1), memory()
    answer = [attend(kept, tokens.part(start, end), 2, start) for start, end in ((0, 31), (31, 32), (32, 50))]
    np.testing.assert_allclose(np.concatenate(answer, axis=1), by_the_book(tokens), rtol=1e-4, atol=1e-5)


def test_what_was_copied_out_of_a_slot_is_remembered_in_another() -> None:
    block = started().kernels.machine.block
    tokens, kept = Tokens.some(HEADS, 50, seed=2), memory()
    attend(kept, tokens.part(0, block + 5), 2, 0)
    expected = attend(kept, tokens.part(block, 50), 2, block)
    room = kept.room_for(3, block)
    room[1] = kept.positions(2, 0, block)
    kept.positions(0, 0, block)[:] = room[1]
    assert attend(kept, tokens.part(block, 50), 0, block).tobytes() == expected.tobytes()
    assert not room[[0, 2]].any()


def test_positions_take_as_many_bytes_as_their_room() -> None:
    block, kept = started().kernels.machine.block, memory()
    assert kept.bytes_of(2 * block) == kept.room_for(1, 2 * block).nbytes
    assert kept.bytes_of(block) >= 2 * 2 * 2 * 8 * block * 4
    assert kept.room_for(0, block).nbytes == 0
