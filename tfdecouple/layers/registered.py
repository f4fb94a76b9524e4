"""A layer of `tfdecouple/step_layers.py` as a Keras layer."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from tensorflow_probability import bijectors as tfb

from tfdecouple.bijectors import forward_and_log_det, inverse_and_log_det
from tfdecouple.errors import ConfigError
from tfdecouple.layers.base import InvertibleLayer
from tfdecouple.step_layers import STEP_LAYERS


@keras.saving.register_keras_serializable(package="tfdecouple")
class RegisteredLayer(InvertibleLayer):
    """A registered layer, with the weights that it declares and the bijector that it makes of them.

    Args:
        kind: its name in `STEP_LAYERS`.
        **kwargs: of `InvertibleLayer`.

    Raises:
        ConfigError: for another name.

    >>> layer = RegisteredLayer("sinh_arcsinh")
    >>> y, log_det = layer.forward_and_log_det(tf.ones([2, 4, 4, 3]))
    >>> bool(tf.reduce_all(tf.abs(y - 1.0) < 1e-6)), log_det.shape.as_list()
    (True, [2])
    """

    def __init__(self, kind: str, **kwargs: Any):
        super().__init__(**kwargs)
        if kind not in STEP_LAYERS:
            raise ConfigError(f"kind is {kind!r}; it must be one of {', '.join(STEP_LAYERS)}")
        self.kind = kind

    def build(self, x_shape: Any, condition_shape: Any = None) -> None:
        """Creates the weights for `[batch, ..., channels]`, all 0."""
        self._remember_shape(x_shape, condition_shape)
        declared = STEP_LAYERS[self.kind].weights(x_shape[-1])
        self.by_name = {
            name: self.add_weight(name=name, shape=shape, initializer="zeros") for name, shape in declared.items()
        }
        self.built = True

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "kind": self.kind}

    def _forward(self, x: tf.Tensor, condition: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
        return forward_and_log_det(self._made(), x)

    def _inverse(self, y: tf.Tensor, condition: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
        return inverse_and_log_det(self._made(), y)

    def _made(self) -> tfb.Bijector:
        weights = {name: tf.convert_to_tensor(weight) for name, weight in self.by_name.items()}
        return STEP_LAYERS[self.kind].bijector(weights)
