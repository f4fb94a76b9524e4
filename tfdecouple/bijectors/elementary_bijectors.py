"""The elementary bijectors: maps of single values, of channels (actnorm, 1x1 convolution) and of pixels (squeeze)."""

import math
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from tfdecouple.bijectors.closed_form import ClosedForm
from tfdecouple.errors import UserError
from tfdecouple.numerics.arithmetic import compute_log_abs_det, get_sizes, invert_matrix
from tfdecouple.numerics.kernels import get_kernels, multiply_channels


class BoundedAffine(ClosedForm):
    """The bijector y = s x + shift, with s = 1 + alpha tanh(u/2) in (1 - alpha, 1 + alpha) (paper equation 6 and B.2).

    The argument `unbounded` is u. In a coupling, shift and u have the shape of x, `[batch, ..., channels]`; alpha lies
    in (0, 1]. The attributes `scale` and `log_scale` are s and log s, tensors of the shape of u.

    >>> BoundedAffine(tf.zeros([1]), tf.zeros([1]), alpha=0.5).forward(tf.constant([3.0])).numpy().tolist()
    [3.0]
    """

    parameter_ndims = {"shift": 0, "unbounded": 0}

    def __init__(self, shift: tf.Tensor, unbounded: tf.Tensor, alpha: float = 1.0):
        super().__init__(0, shift=shift, unbounded=unbounded, alpha=alpha)
        # If float32 rounds alpha to 1, then 1 + alpha tanh(u/2) could be 0; the formula for alpha = 1 is never 0.
        self.alpha = 1.0 if np.float32(alpha) == 1 else alpha
        if self.alpha == 1:
            # The scale 1 + tanh(u/2) equals 2*sigmoid(u), whose logarithm stays finite where the scale underflows.
            log_scale = math.log(2) - tf.math.softplus(-self.unbounded)
            scale = tf.exp(log_scale)
        else:
            self._tanh = tf.tanh(self.unbounded / 2)
            scale = 1 + alpha * self._tanh
            log_scale = tf.math.log(scale)
        self.scale, self.log_scale = scale, log_scale

    def forward_and_log_det(self, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns y = s x + shift, and log |det dy/dx|, `[batch]`, with faster gradients if all shapes are equal."""
        if any(x.shape.as_list() != parameter.shape.as_list() for parameter in (self.shift, self.unbounded)):
            return super().forward_and_log_det(x)
        alpha, scale, axes = self.alpha, self.scale, list(range(1, len(x.shape)))
        scaled, log_det = x * scale, tf.reduce_sum(self.log_scale, axes)

        # The gradient needs half as many operations as TensorFlow's. TensorFlow stores all arguments of this function
        # until the backward pass, so only two tensors are arguments.
        @tf.custom_gradient
        def attach_gradient(x: tf.Tensor, unbounded: tf.Tensor) -> tuple[tuple[tf.Tensor, tf.Tensor], Callable]:
            def gradient(y_gradient: tf.Tensor, log_det_gradient: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
                x_gradient = y_gradient * scale
                per_image = tf.reshape(log_det_gradient, [-1, *[1] * len(axes)])
                if alpha == 1:
                    # `slope` is the gradient of the loss with respect to log s, which is log 2 - softplus(-u).
                    slope = x_gradient * x + per_image
                    return x_gradient, tf.raw_ops.SoftplusGrad(gradients=slope, features=-unbounded)
                slope = y_gradient * x + per_image / scale
                return x_gradient, tf.raw_ops.TanhGrad(y=self._tanh, dy=slope) * (alpha / 2)

            return (scaled, log_det), gradient

        scaled, log_det = attach_gradient(x, self.unbounded)
        return scaled + self.shift, log_det

    def _forward(self, x: tf.Tensor) -> tf.Tensor:
        return x * self.scale + self.shift

    def _inverse(self, y: tf.Tensor) -> tf.Tensor:
        difference = y - self.shift
        return difference * tf.exp(-self.log_scale) if self.alpha == 1 else difference / self.scale

    def _forward_log_det_jacobian(self, x: tf.Tensor) -> tf.Tensor:
        return self.log_scale


class Shift(ClosedForm):
    """The bijector y = x + shift of additive couplings, where the shift has the shape of x, `[batch, ..., channels]`.

    The argument `alpha`, which bounds the scale of other transforms, has no effect.

    >>> Shift(tf.ones([2])).forward(tf.zeros([1, 2])).numpy().tolist()
    [[1.0, 1.0]]
    """

    parameter_ndims = {"shift": 0}

    def __init__(self, shift: tf.Tensor, alpha: float = 1.0):
        super().__init__(0, shift=shift, alpha=alpha)

    def _forward(self, x: tf.Tensor) -> tf.Tensor:
        return x + self.shift

    def _inverse(self, y: tf.Tensor) -> tf.Tensor:
        return y - self.shift

    def _forward_log_det_jacobian(self, x: tf.Tensor) -> tf.Tensor:
        return tf.zeros([], x.dtype)


class Whitening(ClosedForm):
    """The bijector y = (x - mean) / exp(log_scale), which maps a Gaussian of this mean and scale to a standard normal.

    In a flow the mean and the logarithm of the scale have the shape of x, `[batch, ..., channels]`.

    >>> Whitening(tf.ones([1]), tf.zeros([1])).forward(tf.constant([3.0])).numpy().tolist()
    [2.0]
    """

    parameter_ndims = {"mean": 0, "log_scale": 0}

    def __init__(self, mean: tf.Tensor, log_scale: tf.Tensor):
        super().__init__(0, mean=mean, log_scale=log_scale)

    def _forward(self, x: tf.Tensor) -> tf.Tensor:
        return (x - self.mean) * tf.exp(-self.log_scale)

    def _inverse(self, y: tf.Tensor) -> tf.Tensor:
        return y * tf.exp(self.log_scale) + self.mean

    def _forward_log_det_jacobian(self, x: tf.Tensor) -> tf.Tensor:
        return -self.log_scale


class Sigmoid(ClosedForm):
    """The bijector y = 1 / (1 + exp(-x)). The log-determinant of TFP's version needs log1p, which ONNX lacks.

    >>> Sigmoid().forward(tf.constant([0.0])).numpy().tolist()
    [0.5]
    """

    def __init__(self) -> None:
        super().__init__(0, is_constant_jacobian=False)

    def _forward(self, x: tf.Tensor) -> tf.Tensor:
        return tf.sigmoid(x)

    def _inverse(self, y: tf.Tensor) -> tf.Tensor:
        return tf.math.log(y) - tf.math.log1p(-y)

    def _forward_log_det_jacobian(self, x: tf.Tensor) -> tf.Tensor:
        # The derivative y' is y (1 - y), and log(1 - y) = log y - x, so the logarithm of y' is 2 log y - x.
        return 2 * tf.math.log_sigmoid(x) - x


class ChannelAffine(ClosedForm):
    """The bijector y = exp(log_scale) * x + shift of actnorm; both parameters are `[channels]`.

    >>> ChannelAffine(tf.ones([2]), tf.zeros([2])).forward_and_log_det(tf.zeros([1, 4, 4, 2]))[1].numpy().tolist()
    [0.0]
    """

    parameter_ndims = {"shift": 1, "log_scale": 1}

    def __init__(self, shift: tf.Tensor, log_scale: tf.Tensor):
        super().__init__(1, shift=shift, log_scale=log_scale)

    def _forward(self, x: tf.Tensor) -> tf.Tensor:
        return get_kernels().scale_channels(x, tf.exp(self.log_scale), self.shift)

    def _inverse(self, y: tf.Tensor) -> tf.Tensor:
        return get_kernels().unscale_channels(y, tf.exp(-self.log_scale), self.shift)

    def _forward_log_det_jacobian(self, x: tf.Tensor) -> tf.Tensor:
        return tf.reduce_sum(self.log_scale)


class ChannelMatrix(ClosedForm):
    """The bijector of the 1x1 convolution: y = W x at every position, for a matrix W `[channels, channels]`.

    One matrix product maps all positions. TFP's bijectors solve a linear system for each position, which is slower.

    >>> ChannelMatrix(2 * tf.eye(2)).forward(tf.ones([3, 2])).numpy()[0].tolist()
    [2.0, 2.0]
    """

    parameter_ndims = {"matrix": 2}

    def __init__(self, matrix: tf.Tensor):
        super().__init__(1, matrix=matrix)

    def _forward(self, x: tf.Tensor) -> tf.Tensor:
        return multiply_channels(x, self.matrix, transpose=True, full=True)

    def _inverse(self, y: tf.Tensor) -> tf.Tensor:
        return multiply_channels(y, invert_matrix(self.matrix), transpose=True, full=True)

    def _forward_log_det_jacobian(self, x: tf.Tensor) -> tf.Tensor:
        return compute_log_abs_det(self.matrix)


class Squeeze(ClosedForm):
    """The bijector from `[..., 2h, 2w, c]` to `[..., h, w, 4c]`, which turns blocks of 2 x 2 pixels into channels.

    >>> Squeeze().forward(tf.zeros([1, 4, 4, 3])).shape.as_list()
    [1, 2, 2, 12]
    """

    def __init__(self) -> None:
        super().__init__(3)

    def _forward(self, x: tf.Tensor) -> tf.Tensor:
        if any(side is not None and side % 2 for side in x.shape[-3:-1]):
            raise UserError(f"squeeze got images of {x.shape[-3]} x {x.shape[-2]} pixels; both sides must be even")
        return _map_images(lambda images: tf.nn.space_to_depth(images, 2), x)

    def _inverse(self, y: tf.Tensor) -> tf.Tensor:
        if y.shape[-1] % 4:
            raise UserError(f"unsqueeze got {y.shape[-1]} channels; it needs a multiple of 4")
        return _map_images(lambda images: tf.nn.depth_to_space(images, 2), y)

    def _forward_log_det_jacobian(self, x: tf.Tensor) -> tf.Tensor:
        return tf.zeros([], x.dtype)

    def _forward_event_shape(self, shape: tf.TensorShape) -> tf.TensorShape:
        height, width, channels = shape[-3:]
        sides = [None if side is None else side // 2 for side in (height, width)]
        return shape[:-3].concatenate([*sides, channels * 4])

    def _inverse_event_shape(self, shape: tf.TensorShape) -> tf.TensorShape:
        height, width, channels = shape[-3:]
        sides = [None if side is None else side * 2 for side in (height, width)]
        return shape[:-3].concatenate([*sides, channels // 4])

    def _forward_event_shape_tensor(self, shape: tf.Tensor) -> tf.Tensor:
        return tf.concat([shape[:-3], shape[-3:-1] // 2, shape[-1:] * 4], 0)

    def _inverse_event_shape_tensor(self, shape: tf.Tensor) -> tf.Tensor:
        return tf.concat([shape[:-3], shape[-3:-1] * 2, shape[-1:] // 4], 0)


def _map_images(function: Callable[[tf.Tensor], tf.Tensor], x: tf.Tensor) -> tf.Tensor:
    """Applies `function`, which needs a batch of images, to x with any leading axes, and keeps these axes."""
    if x.shape.rank == 4:
        return function(x)
    y = function(tf.reshape(x, [-1, *get_sizes(x)[-3:]]))
    return tf.reshape(y, [*get_sizes(x)[:-3], *get_sizes(y)[1:]])
