"""Invertible linear maps of the channels: the 1x1 convolution and the prior's linear layer (paper appendix A)."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdecouple.bijectors import ChannelLU, ChannelMatrix
from tfdecouple.config import LINEAR_FORMS
from tfdecouple.errors import ConfigError
from tfdecouple.layers.base import Condition, Cost, InvertibleLayer, Weight
from tfdecouple.runtime.precision import full_float32


@keras.saving.register_keras_serializable(package="tfdecouple")
class InvertibleLinear(InvertibleLayer):
    """y = W x on the last axis, with a learned square matrix W, orthogonal at the start.

    Args:
        form: "full", a matrix whose log-determinant comes from its LU factorisation in each call (as the paper's
            code), or "lu", which learns the factors P L U themselves, with P fixed: the log-determinant is a sum.
        **kwargs: of `InvertibleLayer`.

    Raises:
        ConfigError: for another form.

    >>> layer = InvertibleLinear()
    >>> y, log_det = layer.forward_and_log_det(tf.ones([2, 8]))
    >>> bool(tf.reduce_all(tf.abs(log_det) < 1e-4))
    True
    """

    saved_arguments = ("form",)

    def __init__(self, form: str = "full", **kwargs: Any):
        super().__init__(**kwargs)
        if form not in LINEAR_FORMS:
            raise ConfigError(f"form is {form!r}; it must be one of {', '.join(LINEAR_FORMS)}")
        self.form = form

    def declare(self, x_shape: Any, condition_shape: Any = None) -> dict[str, Weight]:
        """Returns the matrix `[channels, channels]`, or its packed factors and the permutation."""
        channels = x_shape[-1]
        if self.form == "full":
            return {"kernel": Weight((channels, channels), keras.initializers.Orthogonal)}

        @functools.cache
        def factorise() -> tuple[np.ndarray, np.ndarray]:
            # Outside of any graph that is being traced, since both initializers need the numbers.
            with tf.init_scope():
                orthogonal = keras.initializers.Orthogonal()((channels, channels))
                factors, permutation = tf.linalg.lu(tf.cast(orthogonal, tf.float64))
                return factors.numpy(), permutation.numpy()

        def initializer(part: int) -> Callable[..., Any]:
            return lambda: lambda shape, dtype: keras.ops.cast(factorise()[part], dtype)

        return {
            "factors": Weight((channels, channels), initializer(0)),
            "permutation": Weight((channels,), initializer(1), "int32", trainable=False),
        }

    @full_float32()
    def matrix(self) -> tf.Tensor:
        """Returns W, `[channels, channels]`."""
        return self.bijector(self.tensors()).matrix

    def log_abs_det(self) -> tf.Tensor:
        """Returns log |det W|, a scalar."""
        return self.bijector(self.tensors()).log_abs_det

    def condition_number(self) -> tf.Tensor:
        """Returns the ratio of the largest to the smallest singular value of W, float64."""
        values = tf.linalg.svd(tf.cast(self.matrix(), tf.float64), compute_uv=False)
        return values[0] / values[-1]

    def cost(self, x_shape: Any, condition_shape: Any = None) -> Cost:
        """Returns the cost of the layer for one image."""
        return super().cost(x_shape, condition_shape).plus(Cost(math.prod(x_shape[1:]) * x_shape[-1]))

    def bijector(self, weights: Mapping[str, tf.Tensor], condition: Condition = None) -> ChannelMatrix | ChannelLU:
        """Returns the bijector y = W x."""
        return ChannelMatrix(weights["kernel"]) if self.form == "full" else ChannelLU(**weights)


@keras.saving.register_keras_serializable(package="tfdecouple")
class InvertibleConv1x1(InvertibleLinear):
    """The invertible 1x1 convolution: `InvertibleLinear` at every position of `[batch, height, width, channels]`."""
