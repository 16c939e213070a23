from collections import Counter

import numpy as np
import pytest
import tensorflow as tf

from app.engine import sampler
from app.engine.sequence import Sampling

VOCAB = 12
LOGITS = np.array([2.0, 1.5, 1.0, 0.5, 0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, 1.25], np.float32)

compiled = tf.function(
    lambda logits, bias, floats, ints, positions: sampler.sample(logits, bias, sampler.Rows(floats, ints, positions)),
    jit_compile=True,
    autograph=False,
)


BATCH = 64  # with 1, the only sizes that are compiled here


def draw(samplings: list[Sampling], positions: list[int], logprobs: int | None = None) -> np.ndarray:
    """Packed draws of rows that all have LOGITS; more than one row goes in whole batches."""
    rows = [sampler.row_parameters(sampling, logprobs) for sampling in samplings]
    size = 1 if len(rows) == 1 else BATCH
    spare = -len(rows) % size
    rows, positions = rows + [sampler.row_parameters(Sampling(), None)] * spare, positions + [0] * spare
    parts = [_draw(rows[i : i + size], positions[i : i + size]) for i in range(0, len(rows), size)]
    return np.concatenate(parts)[: len(samplings)]


def _draw(rows: list[tuple[list[float], list[int]]], positions: list[int]) -> np.ndarray:
    logits = np.tile(LOGITS, (len(rows), 1))
    floats, ints = (np.array([row[i] for row in rows], kind) for i, kind in enumerate((np.float32, np.int32)))
    packed: np.ndarray = compiled(logits, np.zeros_like(logits), floats, ints, np.array(positions, np.int32)).numpy()
    return packed


def draw_many(sampling: Sampling, count: int = 512) -> Counter[int]:
    return Counter(draw([sampling] * count, list(range(count)))[:, 0].tolist())


@pytest.mark.parametrize(
    ("key", "counter", "expected"),
    [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_generator_gives_the_published_answers(
    key: tuple[int, int], counter: tuple[int, int], expected: tuple[int, int]
) -> None:
    """The known-answer vectors that the authors of Threefry publish."""
    words = [tf.constant([[word]], tf.uint32) for word in (*key, *counter)]
    x, y = sampler.threefry((words[0], words[1]), (words[2], words[3]))
    assert (int(x[0, 0]), int(y[0, 0])) == expected


def test_temperature_zero_takes_the_best() -> None:
    assert draw([Sampling(top_k=3, top_p=0.1)] * 4, [0, 1, 2, 3])[:, 0].tolist() == [0] * 4


def test_temperature_too_small_to_divide_by_takes_the_best() -> None:
    logits = LOGITS[np.newaxis, ::-1] * 10  # several of them, divided, are infinite; the best is not the first
    floats, ints = sampler.row_parameters(Sampling(2e-38), None)
    rows = np.array([floats], np.float32), np.array([ints], np.int32)
    packed = compiled(logits, np.zeros_like(logits), *rows, np.zeros(1, np.int32)).numpy()
    assert packed[0, 0] == logits.argmax()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_softmax(temperature: float) -> None:
    expected = np.exp(LOGITS / temperature) / np.exp(LOGITS / temperature).sum()
    counts = sum((draw_many(Sampling(temperature=temperature, seed=seed)) for seed in range(8)), Counter[int]())
    observed = np.array([counts[token] for token in range(VOCAB)])
    chi_square = ((observed - expected * observed.sum()) ** 2 / (expected * observed.sum())).sum()
    assert chi_square < 31.3  # the 99.9 % quantile at 11 degrees of freedom; seeds are fixed


@pytest.mark.parametrize(
    ("sampling", "kept"),
    [
        (Sampling(1.0, top_k=1), {0}),
        (Sampling(5.0, top_k=4), {0, 1, 2, 11}),
        (Sampling(1.0, top_p=1e-6), {0}),
        (Sampling(5.0, min_p=0.6, top_k=0), {0, 1, 2, 3, 4, 5, 11}),
    ],
)
def test_filters_keep_exactly_these(sampling: Sampling, kept: set[int]) -> None:
    assert set(draw_many(sampling)) == kept


@pytest.mark.parametrize("top_p", [0.3, 0.5, 0.7, 0.9])
def test_top_p_keeps_the_smallest_sufficient_set(top_p: float) -> None:
    probabilities = np.exp(LOGITS) / np.exp(LOGITS).sum()
    order = np.argsort(-probabilities)
    needed = int(np.searchsorted(np.cumsum(probabilities[order]), top_p)) + 1
    seen = set(draw_many(Sampling(1.0, top_p=top_p), 2048))
    assert seen == set(order[:needed].tolist())


def test_a_row_does_not_depend_on_its_mates() -> None:
    row = Sampling(0.9, top_p=0.8, seed=2**63 + 5)
    alone = [int(draw([row], [position])[0, 0]) for position in range(40)]
    mates = [Sampling(), Sampling(2.0, seed=9), Sampling(1.0, top_k=2, seed=1)]
    crowd = [int(draw([*mates, row, *mates], [7, 8, 9, position, 1, 2, 3])[3, 0]) for position in range(40)]
    assert alone == crowd
    assert len(set(alone)) > 1


@pytest.mark.parametrize("other", [1, 2**32, 2**63])
def test_every_bit_of_the_seed_counts(other: int) -> None:
    def text(seed: int) -> list[int]:
        return draw([Sampling(1.0, seed=seed)] * 32, list(range(32)))[:, 0].tolist()  # type: ignore[no-any-return]

    assert text(0) == text(0)
    assert text(0) != text(other)


def test_logprobs_are_the_models_own_whatever_the_sampling() -> None:
    expected = LOGITS - np.log(np.exp(LOGITS).sum())
    packed = draw([Sampling(3.0, top_k=2, seed=s) for s in range(6)], list(range(6)), logprobs=3)
    for row in range(6):
        token = sampler.unpack(packed, row, 3)
        assert token.logprob == pytest.approx(float(expected[token.id]), abs=1e-5)
        assert [alternative for alternative, _ in token.alternatives] == [0, 1, 11]
        assert [p for _, p in token.alternatives] == pytest.approx(expected[[0, 1, 11]].tolist(), abs=1e-5)


def test_forbidden_tokens_are_never_drawn() -> None:
    bias = np.zeros((BATCH, VOCAB), np.float32)
    bias[:, 0] = -1e30
    floats, ints = sampler.row_parameters(Sampling(10.0), None)
    packed = compiled(
        np.tile(LOGITS, (BATCH, 1)),
        bias,
        np.array([floats] * BATCH, np.float32),
        np.array([ints] * BATCH, np.int32),
        np.arange(BATCH, dtype=np.int32),
    )
    assert 0 not in packed.numpy()[:, 0]
