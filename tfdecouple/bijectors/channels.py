"""Maps of the channels at each position: activation normalisation and the 1x1 convolution, full or as L U."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfdecouple.bijectors.closed_form import ClosedForm, parameter, require_rank, tensor
from tfdecouple.runtime.numerics import channel_product, inverse_matrix, log_abs_det, lu_product


class ChannelAffine(ClosedForm):
    """y = exp(log_scale) * x + shift, channel by channel: activation normalisation.

    Args:
        shift: `[channels]`.
        log_scale: `[channels]`.
        name: of its operations.

    >>> ChannelAffine(tf.ones([2]), tf.zeros([2])).forward_and_log_det(tf.zeros([1, 4, 4, 2]))[1].numpy().tolist()
    [0.0]
    """

    def __init__(self, shift: Any, log_scale: Any, name: str = ""):
        parameters = dict(locals())
        self.shift, self.log_scale = tensor(shift), tensor(log_scale)
        require_rank("shift and log_scale", 1, self.shift, self.log_scale)
        super().__init__(1, parameters, self.log_scale.dtype)

    @classmethod
    def _parameter_properties(cls, dtype: Any) -> dict[str, Any]:
        return {"shift": parameter(1), "log_scale": parameter(1)}

    def _forward(self, x: tf.Tensor) -> tf.Tensor:
        return scaled_channels(x, tf.exp(self.log_scale), self.shift)

    def _inverse(self, y: tf.Tensor) -> tf.Tensor:
        return (y - self.shift) * tf.exp(-self.log_scale)

    def _forward_log_det_jacobian(self, x: tf.Tensor) -> tf.Tensor:
        return tf.reduce_sum(self.log_scale)


@tf.custom_gradient
def scaled_channels(x: tf.Tensor, scale: tf.Tensor, shift: tf.Tensor) -> tuple[tf.Tensor, Callable]:
    """Returns scale * x + shift, channel by channel, with its gradient in closed form: half the operations."""

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        axes = list(range(len(x.shape) - 1))
        return upstream * scale, tf.reduce_sum(upstream * x, axes), tf.reduce_sum(upstream, axes)

    return x * scale + shift, gradient


class _Matrix(ClosedForm):
    """y = W x, channel by channel, with `self.matrix` as W and `self.log_abs_det` as its log |det W|, a scalar."""

    def _forward(self, x: tf.Tensor) -> tf.Tensor:
        return channel_product(x, self.matrix, transpose=True, full=True)

    def _inverse(self, y: tf.Tensor) -> tf.Tensor:
        return channel_product(y, inverse_matrix(self.matrix), transpose=True, full=True)

    def _forward_log_det_jacobian(self, x: tf.Tensor) -> tf.Tensor:
        return self.log_abs_det


class ChannelMatrix(_Matrix):
    """y = W x at every position, in one matrix product over all of them: the 1x1 convolution.

    TFP's own bijectors treat each position as a system of its own, which is far slower for the same result.

    Args:
        matrix: W, `[channels, channels]`, which must have an inverse.
        name: of its operations.

    >>> ChannelMatrix(2 * tf.eye(2)).forward(tf.ones([3, 2])).numpy()[0].tolist()
    [2.0, 2.0]
    """

    def __init__(self, matrix: Any, name: str = ""):
        parameters = dict(locals())
        self.matrix = tensor(matrix)
        require_rank("matrix", 2, self.matrix)
        super().__init__(1, parameters, self.matrix.dtype)

    @classmethod
    def _parameter_properties(cls, dtype: Any) -> dict[str, Any]:
        return {"matrix": parameter(2)}

    @property
    def log_abs_det(self) -> tf.Tensor:
        """The scalar log |det W|."""
        return log_abs_det(self.matrix)


class ChannelLU(_Matrix):
    """y = P L U x at every position, where the log-determinant is a sum.

    Args:
        factors: L below the diagonal, whose own is 1, and U from it on, `[channels, channels]`.
        permutation: P as in `tf.linalg.lu`, `[channels]`, integers.
        name: of its operations.

    >>> ChannelLU(tf.eye(2), tf.constant([1, 0])).forward(tf.constant([[1.0, 2.0]])).numpy().tolist()
    [[2.0, 1.0]]
    """

    def __init__(self, factors: Any, permutation: Any, name: str = ""):
        parameters = dict(locals())
        self.factors, self.permutation = tensor(factors), tensor(permutation)
        require_rank("factors", 2, self.factors)
        require_rank("permutation", 1, self.permutation)
        super().__init__(1, parameters, self.factors.dtype)

    @classmethod
    def _parameter_properties(cls, dtype: Any) -> dict[str, Any]:
        return {"factors": parameter(2), "permutation": parameter(1, is_preferred=False)}

    @property
    def matrix(self) -> tf.Tensor:
        """P L U, `[channels, channels]`."""
        return lu_product(self.factors, self.permutation)

    @property
    def log_abs_det(self) -> tf.Tensor:
        """The scalar log |det W|."""
        return tf.reduce_sum(tf.math.log(tf.abs(tf.linalg.diag_part(self.factors))))
