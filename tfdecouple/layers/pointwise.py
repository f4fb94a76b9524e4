"""Layers that map each number separately: the sigmoid of the dequantisation, and sinh-arcsinh, optional in a step."""

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
    """A layer that applies the sigmoid to every number: y = 1 / (1 + exp(-x)).

    >>> y, log_det = Sigmoid().forward_and_log_det(tf.zeros([2, 4, 4, 3]))
    >>> float(y[0, 0, 0, 0]), log_det.shape.as_list()
    (0.5, [2])
    """

    # Where the sigmoid saturates, its inverse loses digits, so the input is stored.
    recovers_input = False

    def bijector(self, weights: Mapping[str, tf.Tensor], condition: Condition = None) -> ClosedForm:
        """Returns the bijector y = 1 / (1 + exp(-x))."""
        return bijectors.Sigmoid()


@keras.saving.register_keras_serializable(package="tfdecouple")
class SinhArcsinh(InvertibleLayer):
    """A layer that changes the tails of each channel: y = s sinh((arcsinh(x) + skewness) * tails) (Jones, Pewsey 2009).

    The layer makes the tails of a channel's distribution heavier or lighter, and one tail longer than the other. The
    factor s is such that the layer maps 2 to 2 if the skewness is 0.

    >>> layer = SinhArcsinh()
    >>> y, log_det = layer.forward_and_log_det(tf.ones([2, 4, 4, 3]))
    >>> bool(tf.reduce_all(tf.abs(y - 1.0) < 1e-6)), log_det.shape.as_list()
    (True, [2])
    """

    def declare(self, x_shape: Any, condition_shape: Any = None) -> dict[str, Weight]:
        """Returns the declared weights per channel: the unbounded skewness and the unbounded logarithm of `tails`."""
        return {"skewness": Weight(x_shape[-1:]), "tails": Weight(x_shape[-1:])}

    def bijector(self, weights: Mapping[str, tf.Tensor], condition: Condition = None) -> tfb.Bijector:
        """Returns the bijector y = s sinh((arcsinh(x) + skewness) * tails)."""
        # Tails between exp(-1/4) and exp(1/4) keep the output of many such layers in a row finite.
        skewness, log_tails = (tf.tanh(weights[name]) / 4 for name in ("skewness", "tails"))
        return tfb.SinhArcsinh(skewness, tf.exp(log_tails))
