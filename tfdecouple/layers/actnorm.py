"""Activation normalisation: a scale and a shift per channel (paper appendix A)."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfdecouple.architecture.weights import actnorm
from tfdecouple.bijectors import ChannelAffine, ClosedForm
from tfdecouple.layers.base import InvertibleLayer
from tfdecouple.runtime.shapes import product, sizes

# A channel that varies less than this over the data is taken for constant; images vary by 2/256 from level to level.
_CONSTANT = 1e-4


@keras.saving.register_keras_serializable(package="tfdecouple")
class ActNorm(InvertibleLayer):
    """y = exp(log_scale) * x + bias, per channel, for images and for vectors.

    After `initialize(x)` the outputs of that batch have mean 0 and standard deviation 1 in every channel. A channel
    without variation is only shifted, since no scale could give it any.

    >>> layer = ActNorm()
    >>> y, log_det = layer.forward_and_log_det(tf.ones([2, 4, 4, 3]))
    >>> y.shape.as_list(), log_det.shape.as_list()
    ([2, 4, 4, 3], [2])
    """

    def build(self, x_shape: Any, condition_shape: Any = None) -> None:
        """Creates `log_scale` and `bias`, each `[channels]`."""
        self._remember_shape(x_shape, condition_shape)
        shapes = actnorm(x_shape[-1])
        self.log_scale = self.add_weight(
            name="log_scale", shape=shapes["log_scale"], initializer=keras.initializers.RandomNormal(stddev=0.05)
        )
        self.bias = self.add_weight(name="bias", shape=shapes["bias"], initializer="zeros")
        self.built = True

    def initialize(self, x: tf.Tensor, condition: tf.Tensor | None = None) -> tf.Tensor:
        """Sets scale and bias from a batch `[batch, ..., channels]`, and returns the layer's output for it."""
        x, _ = self._prepare(x, condition)
        flat = tf.reshape(x, [-1, x.shape[-1]])
        mean = tf.reduce_mean(flat, 0)
        count = product(sizes(flat)[:1], x.dtype)
        deviation = tf.sqrt(tf.reduce_sum(tf.square(flat - mean), 0) / tf.maximum(count - 1.0, 1.0))
        log_scale = tf.where(deviation > _CONSTANT, -tf.math.log(tf.maximum(deviation, _CONSTANT)), 0.0)
        self.log_scale.assign(log_scale)
        self.bias.assign(-mean * tf.exp(log_scale))
        return (x - mean) * tf.exp(log_scale)

    def _bijector(self, condition: tf.Tensor | None) -> ClosedForm:
        return ChannelAffine(tf.convert_to_tensor(self.bias), tf.convert_to_tensor(self.log_scale))
