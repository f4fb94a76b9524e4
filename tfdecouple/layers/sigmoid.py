"""The sigmoid: numbers of any size become places between 0 and 1."""

from __future__ import annotations

from collections.abc import Mapping
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

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments, of which Keras by itself takes no policy of dtypes."""
        return super().get_config()

    def bijector(self, weights: Mapping[str, tf.Tensor], condition: tf.Tensor | None = None) -> ClosedForm:
        """Returns the sigmoid."""
        return bijectors.Sigmoid()
