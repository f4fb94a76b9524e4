"""Invertible linear maps of the channels: the 1x1 convolution and the prior's linear layer (paper appendix A)."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow_probability import bijectors as tfb

from tfdecouple.config import LINEAR_FORMS
from tfdecouple.errors import ConfigError
from tfdecouple.layers.base import InvertibleLayer
from tfdecouple.runtime.precision import current_net_precision
from tfdecouple.runtime.products import channel_product
from tfdecouple.runtime.shapes import per_image, positions
from tfdecouple.runtime.tf32 import full_float32
from tfdecouple.runtime.xla import in_xla


class _ChannelOperator(tf.linalg.LinearOperatorFullMatrix):
    """A matrix that acts on the last axis of `[batch, ..., channels]`, in one matrix product.

    TFP's bijector calls `matvec` and `solvevec`; the stock ones treat each of the batch*height*width positions as a
    system of its own, which is far slower for the same result.
    """

    def _matvec(self, x: tf.Tensor, adjoint: bool = False) -> tf.Tensor:
        return channel_product(x, self.to_dense(), transpose=True, full=True)

    def _solvevec(self, y: tf.Tensor, adjoint: bool = False) -> tf.Tensor:
        return channel_product(y, inverse_matrix(self.to_dense()), transpose=True, full=True)


def inverse_matrix(matrix: tf.Tensor) -> tf.Tensor:
    """Returns the inverse of `[n, n]`, computed in float64 and rounded to the matrix' own dtype."""
    return tf.cast(tf.linalg.inv(tf.cast(matrix, tf.float64)), matrix.dtype)


@tf.custom_gradient
def _log_abs_det_by_qr(matrix: tf.Tensor) -> tuple[tf.Tensor, Any]:
    """Returns log |det W| of `[n, n]`, a scalar: for XLA, which has no operation for determinants on CPUs."""
    factors = tf.linalg.qr(tf.cast(matrix, tf.float64)).r
    value = tf.reduce_sum(tf.math.log(tf.abs(tf.linalg.diag_part(factors))))
    return tf.cast(value, matrix.dtype), lambda slope: slope * tf.transpose(inverse_matrix(matrix))


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
        self._remember_shape(x_shape)
        channels = x_shape[-1]
        if self.form == "full":
            self.kernel = self.add_weight(
                name="kernel", shape=(channels, channels), initializer=keras.initializers.Orthogonal()
            )
        else:
            orthogonal = keras.initializers.Orthogonal()((channels, channels))
            factors, permutation = tf.linalg.lu(tf.cast(orthogonal, tf.float64))
            self.factors = self.add_weight(
                name="factors",
                shape=(channels, channels),
                initializer=lambda shape, dtype: keras.ops.cast(np.asarray(factors), dtype),
            )
            self.permutation = self.add_weight(
                name="permutation",
                shape=(channels,),
                dtype="int32",
                trainable=False,
                initializer=lambda shape, dtype: keras.ops.cast(np.asarray(permutation), dtype),
            )
        self.built = True

    @full_float32()
    def matrix(self) -> tf.Tensor:
        """Returns W, `[channels, channels]`."""
        if self.form == "full":
            return tf.convert_to_tensor(self.kernel)
        factors = tf.convert_to_tensor(self.factors)
        # The product of L and U: as `full_product`, which it calls no more than TFP's.
        dtype = tf.float64 if current_net_precision() == "tf32" else factors.dtype
        matrix = tf.linalg.lu_reconstruct(tf.cast(factors, dtype), tf.convert_to_tensor(self.permutation))
        return tf.cast(matrix, factors.dtype)

    def log_abs_det(self) -> tf.Tensor:
        """Returns log |det W|, a scalar."""
        if self.form == "full":
            kernel = tf.convert_to_tensor(self.kernel)
            return _log_abs_det_by_qr(kernel) if in_xla() else tf.linalg.slogdet(kernel).log_abs_determinant
        return tf.reduce_sum(tf.math.log(tf.abs(tf.linalg.diag_part(tf.convert_to_tensor(self.factors)))))

    @full_float32()
    def initialize(self, x: tf.Tensor, condition: tf.Tensor | None = None) -> tf.Tensor:
        """Returns the layer's output; nothing depends on the data."""
        # Not by the bijector, for the reason that `ActNorm.initialize` states.
        return channel_product(x, self.matrix(), transpose=True, full=True)

    def condition_number(self) -> tf.Tensor:
        """Returns the ratio of the largest to the smallest singular value of W, float64: a sign of divergence."""
        values = tf.linalg.svd(tf.cast(self.matrix(), tf.float64), compute_uv=False)
        return values[0] / values[-1]

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "form": self.form}

    def _bijector(self) -> tfb.Bijector:
        return tfb.ScaleMatvecLinearOperator(_ChannelOperator(self.matrix(), is_non_singular=True))

    def _forward(self, x: tf.Tensor, condition: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
        return self._bijector().forward(x), per_image(positions(x) * self.log_abs_det(), x)

    def _inverse(self, y: tf.Tensor, condition: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
        return self._bijector().inverse(y), per_image(-positions(y) * self.log_abs_det(), y)


@keras.saving.register_keras_serializable(package="tfdecouple")
class InvertibleConv1x1(InvertibleLinear):
    """The invertible 1x1 convolution: `InvertibleLinear` at every position of `[batch, height, width, channels]`."""
