"""Layers that map the channels alike at every position: actnorm, and an invertible matrix (paper appendix A)."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from tfdecouple.bijectors import ChannelAffine, ChannelMatrix
from tfdecouple.layers.base import Condition, Cost, InvertibleLayer, Weight
from tfdecouple.runtime.numerics import product, sizes

# Standard deviation below which a channel counts as constant; neighbouring pixel values are 2/256 apart.
_CONSTANT = 1e-4


@keras.saving.register_keras_serializable(package="tfdecouple")
class ActNorm(InvertibleLayer):
    """A layer that scales and shifts each channel of images or vectors: y = exp(log_scale) * x + bias.

    After `initialize(x)` the outputs for the batch x have mean 0 and standard deviation 1 in every channel; a constant
    channel is only shifted.

    >>> layer = ActNorm()
    >>> y, log_det = layer.forward_and_log_det(tf.ones([2, 4, 4, 3]))
    >>> y.shape.as_list(), log_det.shape.as_list()
    ([2, 4, 4, 3], [2])
    """

    def declare(self, x_shape: Any, condition_shape: Any = None) -> dict[str, Weight]:
        """Returns the layer's two weights, the logarithm of the scale and the bias, each `[channels]`."""
        initializer = functools.partial(keras.initializers.RandomNormal, stddev=0.05)
        return {"log_scale": Weight(x_shape[-1:], initializer), "bias": Weight(x_shape[-1:])}

    def initialize(self, x: tf.Tensor, condition: Condition = None) -> tf.Tensor:
        """Sets scale and bias from a batch x `[batch, ..., channels]`, and returns the layer's output for x."""
        x, _ = self._prepare(x, condition)
        flat = tf.reshape(x, [-1, x.shape[-1]])
        mean = tf.reduce_mean(flat, 0)
        count = product(sizes(flat)[:1], x.dtype)
        deviation = tf.sqrt(tf.reduce_sum(tf.square(flat - mean), 0) / tf.maximum(count - 1.0, 1.0))
        log_scale = tf.where(deviation > _CONSTANT, -tf.math.log(tf.maximum(deviation, _CONSTANT)), 0.0)
        self.log_scale.assign(log_scale)
        self.bias.assign(-mean * tf.exp(log_scale))
        return (x - mean) * tf.exp(log_scale)

    def bijector(self, weights: Mapping[str, tf.Tensor], condition: Condition = None) -> ChannelAffine:
        """Returns the bijector y = exp(log_scale) * x + bias."""
        return ChannelAffine(weights["bias"], weights["log_scale"])


@keras.saving.register_keras_serializable(package="tfdecouple")
class InvertibleLinear(InvertibleLayer):
    """A layer that multiplies the last axis by a learned square matrix: y = W x; W is orthogonal at the start.

    Each call computes the log-determinant by an LU factorisation, as the paper's code.

    >>> layer = InvertibleLinear()
    >>> y, log_det = layer.forward_and_log_det(tf.ones([2, 8]))
    >>> bool(tf.reduce_all(tf.abs(log_det) < 1e-4))
    True
    """

    def declare(self, x_shape: Any, condition_shape: Any = None) -> dict[str, Weight]:
        """Returns the declared matrix W, `[channels, channels]`."""
        return {"kernel": Weight((x_shape[-1], x_shape[-1]), keras.initializers.Orthogonal)}

    def condition_number(self) -> tf.Tensor:
        """Returns the condition number of W, a float64 scalar: its largest singular value divided by its smallest."""
        values = tf.linalg.svd(tf.cast(self.kernel, tf.float64), compute_uv=False)
        return values[0] / values[-1]

    def cost(self, x_shape: Any, condition_shape: Any = None) -> Cost:
        """Returns the cost of the layer for one image."""
        return super().cost(x_shape, condition_shape).plus(Cost(math.prod(x_shape[1:]) * x_shape[-1]))

    def bijector(self, weights: Mapping[str, tf.Tensor], condition: Condition = None) -> ChannelMatrix:
        """Returns the bijector y = W x."""
        return ChannelMatrix(weights["kernel"])


@keras.saving.register_keras_serializable(package="tfdecouple")
class InvertibleConv1x1(InvertibleLinear):
    """The invertible 1x1 convolution: an `InvertibleLinear` applied at every pixel of an image."""
