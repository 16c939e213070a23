"""Attention as the processor computes it, against that by the book in float64.

What is remembered lies in memory that begins as no numbers at all, and padding is none
either: whatever read where nothing was written would show in an answer.
"""

from collections.abc import Sequence

import numpy as np
import pytest
from llvmlite import ir

from app.kernels.attention import LEAST_EXPONENT, exponential
from app.kernels.code import F32, I64, PTR, Code
from app.kernels.compiler import Kernels
from tests.kernels.calls import MACHINES, Tokens, World, by_the_book, compiled, function_at, kernels_of, machine_here

pytestmark = pytest.mark.xdist_group("kernels")
GROUPED = (6, 3, 32)


@pytest.fixture(params=MACHINES)
def kernels(request: pytest.FixtureRequest) -> Kernels:
    return kernels_of(request.param)


def read(world: World, tokens: Tokens, ends: Sequence[int], slot: int = 2, padded: int | None = None) -> np.ndarray:
    """`[N, T, H]` of tokens that are read in parts up to these ends."""
    parts = []
    for start, end in zip((0, *ends), ends, strict=False):
        [part] = world.attend([(slot, start, end - start, tokens.part(start, end, padded))])
        parts.append(part[:, : end - start])
    return np.concatenate(parts, axis=1)


@pytest.mark.parametrize("heads", [(12, 12, 64), (4, 2, 8), (8, 2, 80), GROUPED, (14, 1, 16)])
@pytest.mark.parametrize("window", [0, 1, 7, 33])
def test_attention_is_that_by_the_book(kernels: Kernels, heads: tuple[int, int, int], window: int) -> None:
    world, tokens = World(kernels, heads, window=window), Tokens.some(heads, 60, seed=1)
    answer = read(world, tokens, (5, 6, 7, 32, 33, 60), padded=30)
    np.testing.assert_allclose(answer, by_the_book(tokens, window), rtol=1e-4, atol=1e-5)


def test_scores_of_any_size_are_compared(kernels: Kernels) -> None:
    tokens = Tokens.some(GROUPED, 20, seed=2)
    large = Tokens(tokens.q * np.float32(1000), tokens.k, tokens.v)
    np.testing.assert_allclose(read(World(kernels, GROUPED), large, (20,)), by_the_book(large), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("window", [0, 9])
def test_rows_of_one_call_are_each_answered_from_their_own_slots(kernels: Kernels, window: int) -> None:
    world = World(kernels, GROUPED, window=window)
    rows = [(slot, Tokens.some(GROUPED, 48, seed=slot)) for slot in (3, 0, 4)]
    lengths, starts = (8, 1, 5), [0, 0, 0]
    for _ in range(6):
        answers = world.attend(
            [
                (slot, start, length, tokens.part(start, start + length, 8))
                for (slot, tokens), start, length in zip(rows, starts, lengths, strict=True)
            ]
        )
        for i, (_, tokens) in enumerate(rows):
            end = starts[i] + lengths[i]
            expected = by_the_book(tokens.part(0, end), window)[:, starts[i] :]
            np.testing.assert_allclose(answers[i, :, : lengths[i]], expected, rtol=1e-4, atol=1e-5)
            assert not answers[i, :, lengths[i] :].any()
            starts[i] = end


@pytest.mark.parametrize("heads", [GROUPED, (8, 2, 80), (4, 4, 24)])
@pytest.mark.parametrize("window", [0, 11])
def test_an_answer_has_the_same_bits_wherever_a_prompt_was_cut(
    kernels: Kernels, heads: tuple[int, int, int], window: int
) -> None:
    tokens = Tokens.some(heads, 50, seed=3)
    whole = read(World(kernels, heads, window=window), tokens, (50,))
    for ends in (range(1, 51), (16, 32, 48, 50), (1, 2, 17, 50), (7, 49, 50)):
        assert read(World(kernels, heads, window=window), tokens, tuple(ends)).tobytes() == whole.tobytes()
    assert read(World(kernels, heads, window=window), tokens, (30, 50), padded=40).tobytes() == whole.tobytes()


def test_an_answer_has_the_same_bits_in_any_slot_and_company(kernels: Kernels) -> None:
    tokens = Tokens.some(GROUPED, 40, seed=4)
    whole = read(World(kernels, GROUPED), tokens, (40,))
    for slot, company in ((0, (3,)), (4, (0, 1, 2)), (1, (4, 0))):
        world = World(kernels, GROUPED)
        mates = [(mate, 2 * mate, 20 - mate, Tokens.some(GROUPED, 20, seed=mate)) for mate in company]
        for mate in company:
            world.attend([(mate, 0, 2 * mate, Tokens.some(GROUPED, 20, seed=9))])
        first = world.attend([*mates, (slot, 0, 20, tokens.part(0, 20))])
        second = world.attend([(slot, 20, 20, tokens.part(20, 40)), *mates])
        assert np.concatenate([first[-1], second[0]], axis=1).tobytes() == whole.tobytes()


def test_only_the_positions_of_real_tokens_are_written(kernels: Kernels) -> None:
    world = World(kernels, GROUPED)
    world.attend([(2, 3, 4, Tokens.some(GROUPED, 4, seed=5).part(0, 4, 9))], layer=1)
    written = ~np.isnan(world.memory)
    _, num_kv_heads, head_dim = GROUPED
    assert written.sum() == written[1, 2].sum() == 4 * num_kv_heads * 2 * head_dim


def test_what_lies_beyond_the_slot_is_not_written(kernels: Kernels) -> None:
    world, tokens = World(kernels, GROUPED), Tokens.some(GROUPED, 10, seed=6)
    read(world, Tokens.some(GROUPED, world.capacity - 3, seed=7), (world.capacity - 3,))
    before = np.isnan(world.memory)
    [answer] = world.attend([(2, world.capacity - 3, 10, tokens)])
    assert (before & ~np.isnan(world.memory)).sum() == 3 * 3 * 2 * 32
    assert np.isfinite(answer[:, :3]).all()
    assert answer[:, :3].any(axis=-1).all()
    assert not answer[:, 3:].any()


@pytest.mark.parametrize(("past_the_end", "length"), [(0, 1), (1, 5), (1000, 5), (-10, 0)])
def test_a_row_of_no_position_gets_zeros_and_writes_nothing(kernels: Kernels, past_the_end: int, length: int) -> None:
    world = World(kernels, GROUPED)
    tokens, mate = Tokens.some(GROUPED, 5, seed=8), Tokens.some(GROUPED, 5, seed=9)
    answers = world.attend([(1, world.capacity + past_the_end, length, tokens), (3, 0, 5, mate)])
    assert not answers[0].any()
    np.testing.assert_allclose(answers[1], by_the_book(mate), rtol=1e-4, atol=1e-5)
    assert np.isnan(world.memory[:, [0, 1, 2, 4]]).all()


def test_what_a_slots_last_owner_left_is_not_seen(kernels: Kernels) -> None:
    world, tokens = World(kernels, GROUPED), Tokens.some(GROUPED, 20, seed=10)
    fresh = read(World(kernels, GROUPED), tokens, (7, 20))
    read(world, Tokens.some(GROUPED, 60, seed=11), (60,))
    assert read(world, tokens, (7, 20)).tobytes() == fresh.tobytes()


@pytest.mark.parametrize("name", MACHINES)
def test_the_exponential_is_right_to_a_few_units_of_float32(name: str) -> None:
    machine = machine_here(name)
    module, vector = ir.Module("exponential"), ir.VectorType(F32, machine.block)
    code = Code(module, "raise_all", [PTR, I64], is_exported=True)
    place, count = code.arguments
    with code.loop(0, count, machine.block) as i:
        at = place.at(i)
        at.store(exponential(code, at.load(vector)))
    code.end()
    x = np.linspace(LEAST_EXPONENT, 0, 2**16, dtype=np.float32)
    y = np.append(x, np.full(machine.block, -1e30, np.float32))
    function_at(compiled(module, machine, ["raise_all"])["raise_all"], 2)(y.ctypes.data, y.size)
    np.testing.assert_allclose(y[: x.size], np.exp(x.astype(np.float64)), rtol=2e-7)
    assert (y[x.size - 1], y[x.size]) == (1, y[0])
