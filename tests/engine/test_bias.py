from typing import Any

import numpy as np
import pytest

from app.engine.bias import FORBIDDEN, Bias
from app.engine.sequence import Request, Sampling


def make_request(min_tokens: int = 0, ends: tuple[int, ...] = (), **sampling: Any) -> Request:
    return Request(
        "r",
        (1,),
        9,
        Sampling(**sampling),
        end_token_ids=frozenset(ends),
        min_tokens=min_tokens,
    )


def test_plain_request_needs_no_bias() -> None:
    bias = Bias(2, 8)
    bias.assign(0, make_request(ends=(3,)))
    assert bias.is_zero


def test_penalties_grow_with_each_occurrence_but_presence_counts_once() -> None:
    bias = Bias(2, 8)
    bias.assign(1, make_request(presence_penalty=0.5, frequency_penalty=0.25))
    for count, token in enumerate((3, 3, 4), start=1):
        bias.observe(1, token, count)
    assert bias.rows[1].tolist() == [0, 0, 0, -1.0, -0.75, 0, 0, 0]
    assert not bias.rows[0].any()


def test_end_tokens_are_forbidden_until_enough_tokens_and_keep_their_own_bias() -> None:
    bias = Bias(1, 8)
    bias.assign(0, make_request(min_tokens=2, ends=(5, 6), logit_bias={5: 1.5}))
    bias.observe(0, 1, 1)
    assert bias.rows[0, [5, 6]].tolist() == [FORBIDDEN, FORBIDDEN]
    bias.observe(0, 1, 2)
    assert bias.rows[0, [5, 6]].tolist() == [1.5, 0]


def test_next_owner_of_a_slot_finds_no_trace() -> None:
    bias = Bias(1, 8)
    bias.assign(0, make_request(presence_penalty=1.0, logit_bias={2: 3.0}))
    bias.observe(0, 4, 1)
    bias.assign(0, make_request())
    assert bias.is_zero
    assert not bias.rows.any()


@pytest.mark.parametrize("kept", [set[int](), {1}])
def test_rows_of_ended_sequences_are_cleared(kept: set[int]) -> None:
    bias = Bias(2, 8)
    for slot in (0, 1):
        bias.assign(slot, make_request(logit_bias={2: 3.0}))
    bias.keep(kept)
    assert np.flatnonzero(bias.rows[:, 2]).tolist() == sorted(kept)
