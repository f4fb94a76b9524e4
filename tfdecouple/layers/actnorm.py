"""Activation normalisation: a scale and a shift per channel (paper appendix A)."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from tensorflow_probability import bijectors as tfb

from tfdecouple.layers.base import InvertibleLayer
from tfdecouple.runtime.shapes import per_image, positions, product, sizes

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
        self._remember_shape(x_shape)
        channels = x_shape[-1]
        self.log_scale = self.add_weight(
            name="log_scale", shape=(channels,), initializer=keras.initializers.RandomNormal(stddev=0.05)
        )
        self.bias = self.add_weight(name="bias", shape=(channels,), initializer="zeros")
        self.built = True

    def initialize(self, x: tf.Tensor, condition: tf.Tensor | None = None) -> tf.Tensor:
        """Sets scale and bias from a batch `[batch, ..., channels]`, and returns the layer's output for it."""
        flat = tf.reshape(x, [-1, x.shape[-1]])
        mean = tf.reduce_mean(flat, 0)
        count = product(sizes(flat)[:1], x.dtype)
        deviation = tf.sqrt(tf.reduce_sum(tf.square(flat - mean), 0) / tf.maximum(count - 1.0, 1.0))
        log_scale = tf.where(deviation > _CONSTANT, -tf.math.log(tf.maximum(deviation, _CONSTANT)), 0.0)
        self.log_scale.assign(log_scale)
        self.bias.assign(-mean * tf.exp(log_scale))
        # Not by the bijector, which keeps what it was given, maps of thousands of images, until garbage is collected.
        return (x - mean) * tf.exp(log_scale)

    def _bijector(self) -> tfb.Bijector:
        return tfb.Chain(
            [tfb.Shift(tf.convert_to_tensor(self.bias)), tfb.Scale(log_scale=tf.convert_to_tensor(self.log_scale))]
        )

    def _forward(self, x: tf.Tensor, condition: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
        return self._bijector().forward(x), per_image(self._log_det(x), x)

    def _inverse(self, y: tf.Tensor, condition: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
        return self._bijector().inverse(y), per_image(-self._log_det(y), y)

    def _log_det(self, x: tf.Tensor) -> tf.Tensor:
        # In closed form: TFP would sum the same numbers over every position of every image.
        return positions(x) * tf.reduce_sum(tf.convert_to_tensor(self.log_scale))
