"""Invertible linear maps of the channels: the 1x1 convolution and the prior's linear layer (paper appendix A)."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdecouple.architecture.weights import linear
from tfdecouple.bijectors import ChannelLU, ChannelMatrix
from tfdecouple.config import LINEAR_FORMS
from tfdecouple.errors import ConfigError
from tfdecouple.layers.base import InvertibleLayer
from tfdecouple.runtime.tf32 import full_float32


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

    def __init__(self, form: str = "full", **kwargs: Any):
        super().__init__(**kwargs)
        if form not in LINEAR_FORMS:
            raise ConfigError(f"form is {form!r}; it must be one of {', '.join(LINEAR_FORMS)}")
        self.form = form

    def build(self, x_shape: Any, condition_shape: Any = None) -> None:
        """Creates the matrix `[channels, channels]`, or its packed factors and the permutation."""
        self._remember_shape(x_shape, condition_shape)
        shapes = linear(x_shape[-1], self.form)
        if self.form == "full":
            self.kernel = self.add_weight(
                name="kernel", shape=shapes["kernel"], initializer=keras.initializers.Orthogonal()
            )
        else:
            # As numbers, also while a graph is traced.
            with tf.init_scope():
                orthogonal = keras.initializers.Orthogonal()(shapes["factors"])
                factors, permutation = map(np.asarray, tf.linalg.lu(tf.cast(orthogonal, tf.float64)))
            self.factors = self.add_weight(
                name="factors",
                shape=shapes["factors"],
                initializer=lambda shape, dtype: keras.ops.cast(factors, dtype),
            )
            self.permutation = self.add_weight(
                name="permutation",
                shape=shapes["permutation"],
                dtype="int32",
                trainable=False,
                initializer=lambda shape, dtype: keras.ops.cast(permutation, dtype),
            )
        self.built = True

    @full_float32()
    def matrix(self) -> tf.Tensor:
        """Returns W, `[channels, channels]`."""
        return self._bijector().matrix

    def log_abs_det(self) -> tf.Tensor:
        """Returns log |det W|, a scalar."""
        return self._bijector().log_abs_det

    def condition_number(self) -> tf.Tensor:
        """Returns the ratio of the largest to the smallest singular value of W, float64: a sign of divergence."""
        values = tf.linalg.svd(tf.cast(self.matrix(), tf.float64), compute_uv=False)
        return values[0] / values[-1]

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "form": self.form}

    def _bijector(self, condition: tf.Tensor | None = None) -> ChannelMatrix | ChannelLU:
        if self.form == "full":
            return ChannelMatrix(tf.convert_to_tensor(self.kernel))
        return ChannelLU(tf.convert_to_tensor(self.factors), tf.convert_to_tensor(self.permutation))


@keras.saving.register_keras_serializable(package="tfdecouple")
class InvertibleConv1x1(InvertibleLinear):
    """The invertible 1x1 convolution: `InvertibleLinear` at every position of `[batch, height, width, channels]`."""
