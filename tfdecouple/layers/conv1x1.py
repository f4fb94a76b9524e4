"""Layers that map the channels by an invertible matrix: the 1x1 convolution and the prior's linear layer (paper A)."""

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
    """A layer that multiplies the last axis by a learned square matrix: y = W x; W is orthogonal at the start.

    Args:
        form: "full" learns the matrix, and each call computes the log-determinant by an LU factorisation (as the
            paper's code); "lu" learns the factors L and U, with P fixed, and the log-determinant is a sum.
        **kwargs: arguments of `InvertibleLayer`.

    Raises:
        ConfigError: if the form is neither "full" nor "lu".

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
        """Returns the weights: the matrix `[channels, channels]`, or its packed factors and the permutation."""
        channels = x_shape[-1]
        if self.form == "full":
            return {"kernel": Weight((channels, channels), keras.initializers.Orthogonal)}

        @functools.cache
        def factorise() -> tuple[np.ndarray, np.ndarray]:
            # The factors are computed outside of any graph being traced, since both initializers need their values.
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
        """Returns the condition number of W, a float64 scalar: its largest singular value divided by its smallest."""
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
    """The invertible 1x1 convolution: an `InvertibleLinear` applied at every pixel of an image."""
