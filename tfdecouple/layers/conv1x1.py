"""Layers that map the channels by an invertible matrix: the 1x1 convolution and the prior's linear layer (paper A)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from tfdecouple.bijectors import ChannelMatrix
from tfdecouple.layers.base import Condition, Cost, InvertibleLayer, Weight


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
