"""The elementary maps of the flow: TFP bijectors with log-determinants in closed form, and transforms of couplings.

A bijector takes arrays `[batch, ..., channels]` in either direction. The parameters of a bijector are tensors: a layer
makes a new bijector in each call, from the values of its weights. Two methods return value and log-determinant
together. They have no cache, unlike TFP's methods, so that no feature map stays in memory. `with_log_det` gives the
two methods to any bijector of TFP.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np
import tensorflow as tf
from tensorflow_probability import bijectors as tfb
from tensorflow_probability import util as tfp_util

from tfdecouple.errors import UserError
from tfdecouple.numerics.arithmetic import compute_log_abs_det, get_sizes, invert_matrix, multiply_sizes
from tfdecouple.numerics.kernels import get_kernels, multiply_channels

__all__ = [
    "BoundedAffine",
    "ChannelAffine",
    "ChannelMatrix",
    "ClosedForm",
    "Shift",
    "Sigmoid",
    "Squeeze",
    "Transform",
    "Whitening",
    "with_log_det",
]


def with_log_det(bijector: tfb.Bijector) -> ClosedForm | _TfpBijector:
    """Returns a bijector with the methods `forward_and_log_det` and `inverse_and_log_det`, for any bijector of TFP.

    >>> y, log_det = with_log_det(tfb.Scale(2.0)).forward_and_log_det(tf.ones([3, 5]))
    >>> y.shape.as_list(), [round(float(number), 2) for number in log_det]
    ([3, 5], [3.47, 3.47, 3.47])
    """
    return bijector if isinstance(bijector, ClosedForm) else _TfpBijector(bijector)


class _TfpBijector(NamedTuple):
    """A bijector of TFP with two more methods. Some bijectors lose static shapes in a graph; layers need them."""

    bijector: tfb.Bijector

    def forward_and_log_det(self, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns y, the bijector's output for x `[batch, ..., channels]`, and log |det dy/dx|, `[batch]`."""
        log_det = self.bijector.forward_log_det_jacobian(x, event_ndims=len(x.shape) - 1)
        y = tf.ensure_shape(self.bijector.forward(x), self.bijector.forward_event_shape(x.shape))
        return y, tf.broadcast_to(log_det, get_sizes(x)[:1])

    def inverse_and_log_det(self, y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the x that the bijector maps to y `[batch, ..., channels]`, and log |det dx/dy|, `[batch]`."""
        log_det = self.bijector.inverse_log_det_jacobian(y, event_ndims=len(y.shape) - 1)
        x = tf.ensure_shape(self.bijector.inverse(y), self.bijector.inverse_event_shape(y.shape))
        return x, tf.broadcast_to(log_det, get_sizes(y)[:1])


class ClosedForm(tfb.Bijector):
    """The base class of bijectors that return value and log-determinant together.

    Subclasses implement TFP's `_forward`, `_inverse` and `_forward_log_det_jacobian`, and list in `parameter_ndims` the
    parameters that are tensors; each of these parameters becomes an attribute.

    Args:
        event_ndims: count of last axes that are mapped together: 0 (single numbers), 1 (channels) or 3 (images).
        is_constant_jacobian: whether the log-determinant is equal for all x.
        name: the bijector's name; by default that of its class.
        **parameters: the arguments of the subclass's constructor.

    Attributes:
        parameter_ndims: {parameter: count of its axes}; 0 stands for any shape that broadcasts to x. The
            constructor raises UserError for a tensor with another count of axes, and for a variable.
    """

    parameter_ndims: ClassVar[Mapping[str, int]] = {}

    def __init__(
        self, event_ndims: int, *, is_constant_jacobian: bool = True, name: str | None = None, **parameters: Any
    ):
        dtype = None
        for parameter, ndims in self.parameter_ndims.items():
            if hasattr(parameters[parameter], "assign"):
                raise UserError(
                    f"a bijector got the variable {parameters[parameter].name}, of which it would hold a copy without "
                    "gradients; pass tf.convert_to_tensor(variable) in the call that uses it"
                )
            value = tf.convert_to_tensor(parameters[parameter])
            if ndims and value.shape.rank != ndims:
                axes = "axis" if ndims == 1 else "axes"
                raise UserError(f"{parameter} is of shape {tuple(value.shape)}; it must have {ndims} {axes}")
            setattr(self, parameter, value)
            dtype = dtype or value.dtype
        super().__init__(
            forward_min_event_ndims=event_ndims,
            is_constant_jacobian=is_constant_jacobian,
            dtype=dtype,
            parameters=parameters,
            name=name or type(self).__name__,
        )

    @classmethod
    def _parameter_properties(cls, dtype: tf.DType) -> dict[str, object]:
        return {name: tfp_util.ParameterProperties(event_ndims=ndims) for name, ndims in cls.parameter_ndims.items()}

    def forward_and_log_det(self, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns this bijector's output y for x `[batch, ..., channels]`, and log |det dy/dx| per image, `[batch]`.

        TFP's methods would also put x and y into a cache, which holds both in memory until garbage is collected.
        """
        return self._forward(x), self._sum_per_image(self._forward_log_det_jacobian(x), x)

    def inverse_and_log_det(self, y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the x that this bijector maps to y `[batch, ..., channels]`, and log |det dx/dy|, `[batch]`."""
        x = self._inverse(y)
        log_det = self._forward_log_det_jacobian(x)
        # A scalar is negated before `_sum_per_image` repeats it for each image, since negating one number is cheaper.
        return x, self._sum_per_image(-log_det, x) if log_det.shape.rank == 0 else -self._sum_per_image(log_det, x)

    def _inverse_log_det_jacobian(self, y: tf.Tensor) -> tf.Tensor:
        return -self._forward_log_det_jacobian(self._inverse(y))

    def _sum_per_image(self, log_det: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
        events = get_sizes(x)[: len(x.shape) - self.forward_min_event_ndims]
        if log_det.shape.rank == 0:
            # All positions have the same log-determinant, so a product replaces TFP's sum over a map of equal numbers.
            return tf.fill(events[:1], multiply_sizes(events[1:], x.dtype) * log_det)
        if log_det.shape.as_list() != x.shape[: len(events)].as_list():
            log_det = tf.broadcast_to(log_det, events)
        return tf.reduce_sum(log_det, list(range(1, len(events))))


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


class Transform(NamedTuple):
    """An invertible function of each entry of x_b, half of the channels.

    Attributes:
        make_bijector: function that makes the transform's bijector from x_b to y_b (direction x -> v). Its arguments
            are a tensor of unbounded values, of the shape of x_b, for each parameter, and the keyword `alpha`, the
            largest difference between a scale and 1, in (0, 1]. The bijector is elementwise
            (`forward_min_event_ndims=0`), a `ClosedForm` or a bijector of TFP. Every coupling starts with parameters of
            0, for which it must be the identity. Forward and inverse should use operations that tf2onnx converts (exp,
            tanh, sigmoid, softplus, log, products, sums, quotients; not expm1 and log1p).
        parameters: count of parameters that the net inside a coupling computes for each entry of x_b.
    """

    make_bijector: Callable[..., tfb.Bijector]
    parameters: int


# The net gives b and u; y = s x + b with s = 1 + alpha tanh(u/2) (equation 6, B.2).
AFFINE = Transform(BoundedAffine, 2)
# The net gives b; y = x + b.
ADDITIVE = Transform(Shift, 1)
