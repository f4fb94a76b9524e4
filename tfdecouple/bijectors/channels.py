"""Maps of the channels: activation normalisation, the 1x1 convolution, full or as L U, and the squeeze."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfdecouple.bijectors.closed_form import ClosedForm, parameter, require_rank, tensor
from tfdecouple.errors import UserError
from tfdecouple.runtime.numerics import channel_product, inverse_matrix, log_abs_det, lu_product, sizes


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


class Squeeze(ClosedForm):
    """`[..., f h, f w, c]` to `[..., h, w, f f c]`: neighbouring pixels become channels.

    The sub-pixel positions are the slow index of the new channels and the old channel the fast one, as in the paper's
    code (and unlike Glow's).

    Args:
        factor: f, 2 in the paper.
        name: of its operations.

    >>> Squeeze().forward(tf.zeros([1, 4, 4, 3])).shape.as_list()
    [1, 2, 2, 12]
    """

    def __init__(self, factor: int = 2, name: str = ""):
        parameters = dict(locals())
        self.factor = factor
        super().__init__(3, parameters)

    @classmethod
    def _parameter_properties(cls, dtype: Any) -> dict[str, Any]:
        return {}

    def _forward(self, x: tf.Tensor) -> tf.Tensor:
        if any(side is not None and side % self.factor for side in x.shape[-3:-1]):
            raise UserError(
                f"squeeze got images of {x.shape[-3]} x {x.shape[-2]} pixels; both sides must be "
                f"{'even' if self.factor == 2 else f'multiples of {self.factor}'}"
            )
        return _of_any_batch(lambda images: tf.nn.space_to_depth(images, self.factor), x)

    def _inverse(self, y: tf.Tensor) -> tf.Tensor:
        if y.shape[-1] % self.factor**2:
            raise UserError(f"unsqueeze got {y.shape[-1]} channels; it needs a multiple of {self.factor**2}")
        return _of_any_batch(lambda images: tf.nn.depth_to_space(images, self.factor), y)

    def _forward_log_det_jacobian(self, x: tf.Tensor) -> tf.Tensor:
        return tf.zeros([], x.dtype)

    def _forward_event_shape(self, shape: tf.TensorShape) -> tf.TensorShape:
        height, width, channels = shape[-3:]
        sides = [None if side is None else side // self.factor for side in (height, width)]
        return shape[:-3].concatenate([*sides, channels * self.factor**2])

    def _inverse_event_shape(self, shape: tf.TensorShape) -> tf.TensorShape:
        height, width, channels = shape[-3:]
        sides = [None if side is None else side * self.factor for side in (height, width)]
        return shape[:-3].concatenate([*sides, channels // self.factor**2])

    def _forward_event_shape_tensor(self, shape: tf.Tensor) -> tf.Tensor:
        return tf.concat([shape[:-3], shape[-3:-1] // self.factor, shape[-1:] * self.factor**2], 0)

    def _inverse_event_shape_tensor(self, shape: tf.Tensor) -> tf.Tensor:
        return tf.concat([shape[:-3], shape[-3:-1] * self.factor, shape[-1:] // self.factor**2], 0)


def _of_any_batch(function: Callable[[tf.Tensor], tf.Tensor], x: tf.Tensor) -> tf.Tensor:
    """Applies a function of `[batch, height, width, channels]` to `[..., height, width, channels]`."""
    if x.shape.rank == 4:
        return function(x)
    y = function(tf.reshape(x, [-1, *sizes(x)[-3:]]))
    return tf.reshape(y, [*sizes(x)[:-3], *sizes(y)[1:]])
