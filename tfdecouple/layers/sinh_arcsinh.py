"""A layer that makes the tails of what a channel holds heavier or lighter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf
from tensorflow_probability import bijectors as tfb

from tfdecouple.layers.base import InvertibleLayer, Weight


@keras.saving.register_keras_serializable(package="tfdecouple")
class SinhArcsinh(InvertibleLayer):
    """y = s sinh((arcsinh(x) + skewness) * tails), channel by channel (Jones and Pewsey, 2009).

    It makes the tails of what a channel holds heavier or lighter, and one of them longer than the other. s is such that
    2 stays 2 without skewness.

    >>> layer = SinhArcsinh()
    >>> y, log_det = layer.forward_and_log_det(tf.ones([2, 4, 4, 3]))
    >>> bool(tf.reduce_all(tf.abs(y - 1.0) < 1e-6)), log_det.shape.as_list()
    (True, [2])
    """

    def declare(self, x_shape: Any, condition_shape: Any = None) -> dict[str, Weight]:
        """Returns the skewness, and the logarithm of the weight of the tails, both still to be bounded."""
        return {"skewness": Weight(x_shape[-1:]), "tails": Weight(x_shape[-1:])}

    def bijector(self, weights: Mapping[str, tf.Tensor], condition: tf.Tensor | None = None) -> tfb.Bijector:
        """Returns the bijector; tails between exp(-1/4) and exp(1/4) keep many of them in a row from exploding."""
        skewness, log_tails = (tf.tanh(weights[name]) / 4 for name in ("skewness", "tails"))
        return tfb.SinhArcsinh(skewness, tf.exp(log_tails))
