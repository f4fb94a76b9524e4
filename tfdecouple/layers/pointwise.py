"""Layers that map each number by itself: the sigmoid of the dequantisation, and sinh-arcsinh, which may end a step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf
from tensorflow_probability import bijectors as tfb

from tfdecouple import bijectors
from tfdecouple.bijectors import ClosedForm
from tfdecouple.layers.base import Condition, InvertibleLayer, Weight


@keras.saving.register_keras_serializable(package="tfdecouple")
class Sigmoid(InvertibleLayer):
    """y = 1 / (1 + exp(-x)), number by number.

    >>> y, log_det = Sigmoid().forward_and_log_det(tf.zeros([2, 4, 4, 3]))
    >>> float(y[0, 0, 0, 0]), log_det.shape.as_list()
    (0.5, [2])
    """

    # Where the sigmoid saturates, its inverse loses digits.
    recovers_input = False

    def bijector(self, weights: Mapping[str, tf.Tensor], condition: Condition = None) -> ClosedForm:
        """Returns the bijector of the sigmoid."""
        return bijectors.Sigmoid()


@keras.saving.register_keras_serializable(package="tfdecouple")
class SinhArcsinh(InvertibleLayer):
    """y = s sinh((arcsinh(x) + skewness) * tails), channel by channel (Jones and Pewsey, 2009).

    It makes the tails of a channel's distribution heavier or lighter, and one tail longer than the other. The factor s
    maps 2 to 2 where the skewness is 0.

    >>> layer = SinhArcsinh()
    >>> y, log_det = layer.forward_and_log_det(tf.ones([2, 4, 4, 3]))
    >>> bool(tf.reduce_all(tf.abs(y - 1.0) < 1e-6)), log_det.shape.as_list()
    (True, [2])
    """

    def declare(self, x_shape: Any, condition_shape: Any = None) -> dict[str, Weight]:
        """Returns the skewness and the logarithm of the weight of the tails, both unbounded."""
        return {"skewness": Weight(x_shape[-1:]), "tails": Weight(x_shape[-1:])}

    def bijector(self, weights: Mapping[str, tf.Tensor], condition: Condition = None) -> tfb.Bijector:
        """Returns the bijector; tails within exp(-1/4) and exp(1/4) keep a long row of these layers finite."""
        skewness, log_tails = (tf.tanh(weights[name]) / 4 for name in ("skewness", "tails"))
        return tfb.SinhArcsinh(skewness, tf.exp(log_tails))
