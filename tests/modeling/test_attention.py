"""One query at a time against softmax attention by the book, in float64."""

import numpy as np
import pytest
import tensorflow as tf

from app.modeling.attention import attend


@pytest.mark.parametrize(("head_dim", "sizes"), [(64, (256,)), (80, (256, 44)), (6, (7,)), (128, (32, 96, 1))])
def test_one_query_is_answered_in_halves_as_by_the_book(head_dim: int, sizes: tuple[int, ...]) -> None:
    rng = np.random.default_rng(head_dim)
    ends = np.array([sum(sizes), 3, 1])  # positions that each row sees
    q = rng.standard_normal((3, 2, 1, head_dim)).astype(np.float32)
    k, v = rng.standard_normal((2, 3, 2, sum(sizes), head_dim)).astype(np.float32)
    cuts = np.cumsum(sizes)[:-1]
    visible = tf.constant(np.arange(sum(sizes)) < ends[:, np.newaxis, np.newaxis, np.newaxis])
    # Slots lie in groups of two and one, positions in blocks.
    keys, values = ([np.split(rows, cuts, axis=2) for rows in (x[:2], x[2:])] for x in (k, v))
    answer = attend(tf.constant(q), keys, values, visible).numpy()

    scores = np.einsum("bgth,bgch->bgtc", q, k, dtype=np.float64) / np.sqrt(head_dim)
    powers = np.where(visible, np.exp(scores - scores.max(-1, keepdims=True)), 0)
    expected = np.einsum("bgtc,bgch->bgth", powers / powers.sum(-1, keepdims=True), v)
    np.testing.assert_allclose(answer, expected, rtol=1e-4, atol=1e-5)
