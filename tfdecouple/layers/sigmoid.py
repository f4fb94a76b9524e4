"""The sigmoid: numbers of any size become places between 0 and 1."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfdecouple import bijectors
from tfdecouple.bijectors import ClosedForm
from tfdecouple.layers.base import InvertibleLayer


@keras.saving.register_keras_serializable(package="tfdecouple")
class Sigmoid(InvertibleLayer):
    """y = 1 / (1 + exp(-x)), number by number.

    >>> y, log_det = Sigmoid().forward_and_log_det(tf.zeros([2, 4, 4, 3]))
    >>> float(y[0, 0, 0, 0]), log_det.shape.as_list()
    (0.5, [2])
    """

    def build(self, x_shape: Any, condition_shape: Any = None) -> None:
        """Notes the shape; there are no weights."""
        self._remember_shape(x_shape, condition_shape)
        self.built = True

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments, of which Keras by itself takes no policy of dtypes."""
        return super().get_config()

    def _bijector(self, condition: tf.Tensor | None) -> ClosedForm:
        return bijectors.Sigmoid()
