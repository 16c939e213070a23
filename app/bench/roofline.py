"""What this device can do at best: bytes read and operations a second, measured on the spot.

Neither is the data sheet's figure: both come from TensorFlow's own products, a matrix
by a vector and a matrix by a matrix, so they are what an engine on it could reach.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import tensorflow as tf

# Larger than the caches that a processor of today has by core.
VECTOR_SIDE = 8192
ROUNDS = 8
# So many products are handed to an accelerator at once: what it needs to begin and to say that it is
# done takes as long as one of them, and would pass for the memory's slowness.
QUEUED = 16


@dataclass(frozen=True, slots=True)
class Roofline:
    """Of one device, float32."""

    bytes_per_s: float
    operations_per_s: float

    def least_s(self, num_bytes: float, num_operations: float) -> float:
        """No work that reads so much and computes so much can be quicker."""
        return max(num_bytes / self.bytes_per_s, num_operations / self.operations_per_s)


def measure() -> Roofline:
    """The best of some rounds; takes a second or two."""
    side, queued = (8192, QUEUED) if tf.config.list_physical_devices("GPU") else (2048, 1)
    matrix = tf.random.normal((VECTOR_SIDE, VECTOR_SIDE))
    vector = tf.random.normal((VECTOR_SIDE, 1))
    square = tf.random.normal((side, side))
    reading_s = _quickest(lambda: tf.matmul(matrix, vector), queued)
    computing_s = _quickest(lambda: tf.matmul(square, square), queued)
    return Roofline(4 * VECTOR_SIDE**2 / reading_s, 2 * side**3 / computing_s)


def _quickest(product: Callable[[], tf.Tensor], queued: int) -> float:
    """Seconds of one product."""
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        for _ in range(queued - 1):
            product()
        product()[:1, :1].numpy()  # waits for the device, which takes them in order
        times.append((time.perf_counter() - started) / queued)
    return min(times)
