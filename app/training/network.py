"""A Keras model around the pure functions of `app.modeling`.

Keras brings optimizers, the compiled training step and callbacks; the
mathematics stays in one place, where the engine finds it too. The model's
variables carry Hugging Face names, so publishing is a copy.
"""

from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

Shape = tuple[int, ...]


class Network(keras.Model):  # type: ignore[misc]  # Keras ships no types
    """Trains `function(weights, inputs, dropout)` over variables of the given shapes.

    Args:
        shapes: variable shapes by Hugging Face name.
        function: maps the weights by name, the inputs and a dropout callable
            to the outputs.
        dropout: rate in [0, 1) that the callable applies while training.
        seed: of the initial values and of dropout.
        scale: standard deviation of the initial matrices; names ending in
            `residual_names` get it divided by `sqrt(2 * num_layers)`, as GPT-2
            (Radford et al. 2019, sec. 2.3) does.
    """

    def __init__(
        self,
        shapes: Mapping[str, Shape],
        function: Callable[..., tf.Tensor],
        *,
        dropout: float,
        seed: int,
        scale: Callable[[str, Shape], float],
    ) -> None:
        super().__init__()
        self._function = function
        self._dropout = keras.layers.Dropout(dropout, seed=seed)
        rng = np.random.default_rng(seed)
        self._variables = {
            name: self.add_weight(name=name, shape=shape, initializer=_initial(rng, name, shape, scale))
            for name, shape in shapes.items()
        }
        self.built = True

    def call(self, inputs: Any, training: bool = False) -> tf.Tensor:  # noqa: ANN401 - whatever the function takes
        """Keras' hook: the function over the current values."""
        weights = {name: variable.value for name, variable in self._variables.items()}
        return self._function(weights, inputs, lambda x: self._dropout(x, training=training))

    def predictor(self) -> Callable[[Any], tf.Tensor]:
        """The function without dropout, compiled once for each shape of its input."""
        predict: Callable[[Any], tf.Tensor] = tf.function(
            lambda inputs: self(inputs, training=False), autograph=False, reduce_retracing=True
        )
        return predict

    def export_weights(self) -> dict[str, np.ndarray]:
        """The current values by Hugging Face name, float32."""
        return {name: np.asarray(variable.value, np.float32) for name, variable in self._variables.items()}


def _initial(
    rng: np.random.Generator, name: str, shape: Shape, scale: Callable[[str, Shape], float]
) -> Callable[..., np.ndarray]:
    if len(shape) == 1:
        value = np.zeros(shape, np.float32) if name.endswith(".bias") else np.ones(shape, np.float32)
    else:
        value = rng.normal(0.0, scale(name, shape), shape).astype(np.float32)
    return lambda *_, **__: value
