"""Draws the next token of every row, each by its own parameters.

A row's draw depends on its logits, its parameters, its seed and its position and
on nothing else: neither its batch mates nor its slot nor the size of the batch.
So the randomness is a counter-based generator written out here in plain integer
operations (the same on every device, and cheap to trace), keyed by the seed and
counted by (token id, position).

Nothing is sorted. Top-k and top-p need only a threshold, which is found by
bisection over the bit patterns of the logits: 32 passes over the row, exact, and
several times quicker on a CPU than XLA's sort. Tokens that tie with the last one
kept are kept too.

Letters: `B` rows, `V` vocabulary, `A` alternatives.

Sources: Threefry-2x32 with 20 rounds, Salmon et al., "Parallel random numbers: as
easy as 1, 2, 3", SC 2011, sec. 3.3; the Gumbel-max trick, Maddison et al. 2014,
eq. 1; nucleus sampling, Holtzman et al. 2020, sec. 3.1; min-p, Nguyen et al. 2024.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from app.engine.sequence import MAX_LOGPROBS, Sampling, Token

# Threefry-2x32: rotation distances and the key parity constant (table 2 of the paper).
ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
PARITY = 0x1BD11BDA
# Below every finite logit, finite itself: keeps 0 * inf out of the arithmetic.
DROPPED = -1e30
# Below it the noise decides nothing but exact ties, and logits divided by it come to overflow.
SMALLEST_TEMPERATURE = 1e-5
NUM_FLOATS = 3
NUM_INTS = 4


class Rows(NamedTuple):
    """The parameters of a batch, as the device sees them.

    Attributes:
        floats: `[B, 3]` float32: temperature, top_p, min_p.
        ints: `[B, 4]` int32: top_k, seed's low and high half, 1 for log-probabilities.
        positions: `[B]` int32, position of the token that is drawn.
    """

    floats: tf.Tensor
    ints: tf.Tensor
    positions: tf.Tensor


def row_parameters(sampling: Sampling, logprobs: int | None) -> tuple[list[float], list[int]]:
    """One row of `Rows.floats` and `Rows.ints`."""
    halves = np.array([sampling.seed & 0xFFFFFFFF, sampling.seed >> 32], np.uint32).view(np.int32)
    temperature = sampling.temperature if sampling.temperature >= SMALLEST_TEMPERATURE else 0.0
    floats = [temperature, sampling.top_p, sampling.min_p]
    return floats, [sampling.top_k, int(halves[0]), int(halves[1]), int(logprobs is not None)]


def sample(logits: tf.Tensor, bias: tf.Tensor, rows: Rows) -> tf.Tensor:
    """Draw one token a row.

    Args:
        logits: `[B, V]` float32, as the model gave them.
        bias: `[B, V]` float32: logit bias, penalties and what is forbidden.
        rows: the parameters.

    Returns:
        `[B, 2 + 2 A]` int32, everything packed for one copy to the host: the
        token, its log-probability, the alternatives, their log-probabilities
        (float32 as bit patterns). Log-probabilities are 0 where no row wants any.
    """
    adjusted = logits + bias
    greedy = tf.argmax(adjusted, axis=-1, output_type=tf.int32)  # [B]
    is_random = rows.floats[:, 0] > 0
    tokens = tf.cond(
        tf.reduce_any(is_random),
        lambda: tf.where(is_random, _draw(adjusted, rows), greedy),
        lambda: greedy,
    )
    known = tf.cond(
        tf.reduce_any(rows.ints[:, 3] > 0),
        lambda: _logprobs(logits, tokens),
        lambda: tf.zeros((tf.shape(logits)[0], 1 + 2 * _num_alternatives(logits)), tf.int32),
    )
    return tf.concat([tokens[:, tf.newaxis], known], axis=1)


def score(logits: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
    """Pack given tokens as `sample` packs drawn ones: `[B, V]`, `[B]` to `[B, 2 + 2 A]`."""
    return tf.concat([targets[:, tf.newaxis], _logprobs(logits, targets)], axis=1)


def packed_size(vocab_size: int) -> int:
    """How many numbers `sample` gives a row."""
    return 2 + 2 * min(MAX_LOGPROBS, vocab_size)


def unpack(packed: np.ndarray, row: int, logprobs: int | None) -> Token:
    """Read one row of what `sample` packed."""
    token = int(packed[row, 0])
    if logprobs is None:
        return Token(token)
    count = (packed.shape[1] - 2) // 2
    floats = packed[row].view(np.float32)
    best = zip(packed[row, 2 : 2 + logprobs].tolist(), floats[2 + count :].tolist(), strict=False)
    return Token(token, float(floats[1]), tuple(best))


def _draw(logits: tf.Tensor, rows: Rows) -> tf.Tensor:
    """Gumbel-max over what top-k, top-p and min-p leave, `[B, V]` to `[B]` int32."""
    temperature, top_p, min_p = (rows.floats[:, i, tf.newaxis] for i in range(NUM_FLOATS))  # [B, 1]
    top_k = rows.ints[:, 0, tf.newaxis]
    scaled = logits / tf.where(temperature > 0, temperature, 1.0)
    is_filtered = tf.reduce_any((top_k > 0) | (top_p < 1) | (min_p > 0))
    kept = tf.cond(is_filtered, lambda: _filter(scaled, top_k, top_p, min_p), lambda: scaled)
    noise = _gumbel(rows.ints[:, 1], rows.ints[:, 2], rows.positions, tf.shape(logits)[1])
    return tf.argmax(kept + noise, axis=-1, output_type=tf.int32)


def _filter(scaled: tf.Tensor, top_k: tf.Tensor, top_p: tf.Tensor, min_p: tf.Tensor) -> tf.Tensor:
    """Drop what top-k, then top-p, then min-p do not keep; a row without filters stays as it is."""
    keys = _ordered(scaled)
    kept = (top_k <= 0) | (keys >= _threshold(keys, tf.ones_like(scaled), tf.cast(top_k, tf.float32)))
    powers = _powers(tf.where(kept, scaled, DROPPED))
    probabilities = powers / _sum(powers)
    kept &= (top_p >= 1) | (keys >= _threshold(keys, probabilities, top_p))
    best = tf.reduce_max(probabilities, axis=-1, keepdims=True)
    kept &= probabilities >= min_p * best
    return tf.where(kept, scaled, DROPPED)


def _ordered(x: tf.Tensor) -> tf.Tensor:
    """float32 to int32 with the same order."""
    bits = tf.bitcast(x, tf.int32)
    return tf.where(bits < 0, tf.bitwise.bitwise_xor(bits, 0x7FFFFFFF), bits)


def _threshold(keys: tf.Tensor, weights: tf.Tensor, target: tf.Tensor) -> tf.Tensor:
    """The largest `t` with `sum(weights[keys >= t]) >= target`, per row.

    Args:
        keys: `[B, V]` int32.
        weights: `[B, V]` float32, none negative.
        target: `[B, 1]` float32; one that no sum reaches gives a `t` that keeps all.

    Returns:
        `[B, 1]` int32.
    """
    low = tf.fill(tf.shape(target), np.int32(-(2**31)))  # always reaches the target
    high = tf.reduce_max(keys, axis=-1, keepdims=True) + 1  # never does

    def halve(count: tf.Tensor, low: tf.Tensor, high: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        # The mean rounded down, without the overflow of (low + high).
        middle = (low & high) + tf.bitwise.right_shift(tf.bitwise.bitwise_xor(low, high), 1)
        total = _sum(tf.where(keys >= middle, weights, 0.0))
        is_enough = total >= target
        return count + 1, tf.where(is_enough, middle, low), tf.where(is_enough, high, middle)

    _, low, _ = tf.while_loop(lambda count, *_: count < 32, halve, (tf.constant(0), low, high))
    return low


def _gumbel(seed_low: tf.Tensor, seed_high: tf.Tensor, positions: tf.Tensor, vocab_size: tf.Tensor) -> tf.Tensor:
    """Standard Gumbel noise `[B, V]`, a function of (seed, position, token id) alone."""
    key = (tf.bitcast(seed_low, tf.uint32)[:, tf.newaxis], tf.bitcast(seed_high, tf.uint32)[:, tf.newaxis])
    token_ids = tf.cast(tf.range(vocab_size), tf.uint32)[tf.newaxis, :]
    bits, _ = threefry(key, (token_ids, tf.cast(positions, tf.uint32)[:, tf.newaxis]))
    # 23 bits and a half: strictly inside (0, 1), and exact in float32.
    uniform = (tf.cast(tf.bitwise.right_shift(bits, tf.constant(9, tf.uint32)), tf.float32) + 0.5) * 2.0**-23
    return -tf.math.log(-tf.math.log(uniform))


def threefry(key: tuple[tf.Tensor, tf.Tensor], counter: tuple[tf.Tensor, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
    """Threefry-2x32-20 of two uint32 keys and two uint32 counters that broadcast.

    The five groups of four rounds are a loop on the device: written out, XLA fuses
    all twenty into one kernel that repeats itself exponentially, and compiles for
    minutes.
    """
    parity = tf.bitwise.bitwise_xor(tf.bitwise.bitwise_xor(key[0], key[1]), tf.constant(PARITY, tf.uint32))
    keys = tf.stack([key[0], key[1], parity])  # [3, ...]
    distances = tf.constant(ROTATIONS, tf.uint32)  # [2, 4]

    def mix(group: tf.Tensor, x: tf.Tensor, y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        for i in range(4):
            x = x + y
            y = tf.bitwise.bitwise_xor(_rotate_left(y, distances[group % 2, i]), x)
        x = x + keys[(group + 1) % 3]
        y = y + keys[(group + 2) % 3] + tf.cast(group + 1, tf.uint32)
        return group + 1, x, y

    shape = tf.broadcast_dynamic_shape(tf.shape(counter[0]), tf.shape(counter[1]))
    x = tf.broadcast_to(counter[0] + keys[0], shape)
    y = tf.broadcast_to(counter[1] + keys[1], shape)
    _, x, y = tf.while_loop(lambda group, *_: group < 5, mix, (tf.constant(0), x, y))
    return x, y


def _rotate_left(x: tf.Tensor, distance: tf.Tensor) -> tf.Tensor:
    right = tf.bitwise.right_shift(x, tf.constant(32, tf.uint32) - distance)
    return tf.bitwise.bitwise_or(tf.bitwise.left_shift(x, distance), right)


def _logprobs(logits: tf.Tensor, tokens: tf.Tensor) -> tf.Tensor:
    """`[B, 1 + 2 A]` int32: the tokens' log-probabilities, the best tokens, theirs."""
    shifted = logits - tf.reduce_max(logits, axis=-1, keepdims=True)
    # In float64: the logarithm of one number and of several take different ways to the last bit.
    total = tf.cast(_sum(tf.exp(shifted)), tf.float64)
    logprobs = shifted - tf.cast(tf.math.log(total), shifted.dtype)
    chosen = tf.gather(logprobs, tokens, axis=1, batch_dims=1)[:, tf.newaxis]
    best, ids = tf.math.top_k(logprobs, _num_alternatives(logits))
    return tf.concat([tf.bitcast(chosen, tf.int32), ids, tf.bitcast(best, tf.int32)], axis=1)


def _powers(logits: tf.Tensor) -> tf.Tensor:
    """Probabilities `[B, V]` up to a factor for each row; the largest is 1."""
    return tf.exp(logits - tf.reduce_max(logits, axis=-1, keepdims=True))


def _sum(x: tf.Tensor) -> tf.Tensor:
    """`[B, V]` to `[B, 1]`, each row as a product of its own: XLA's reductions add in an order that depends on `B`."""
    if x.shape[0] == 1:  # a single product would be taken apart again
        return _sum(tf.repeat(x, 2, axis=0))[:1]
    return tf.matmul(x[:, tf.newaxis], tf.ones_like(x)[:, :, tf.newaxis])[:, 0]


def _num_alternatives(logits: tf.Tensor) -> int:
    return (packed_size(int(logits.shape[-1])) - 2) // 2
