"""Bijectors that act on the channels: activation normalisation, the 1x1 convolution, the squeeze."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfdecouple.bijectors.closed_form import ClosedForm
from tfdecouple.errors import UserError
from tfdecouple.runtime.numerics import channel_product, inverse_matrix, log_abs_det, sizes


class ChannelAffine(ClosedForm):
    """The bijector of activation normalisation: y = exp(log_scale) * x + shift, channel by channel.

    Args:
        shift: shift of each channel, `[channels]`.
        log_scale: logarithm of each channel's scale, `[channels]`.

    >>> ChannelAffine(tf.ones([2]), tf.zeros([2])).forward_and_log_det(tf.zeros([1, 4, 4, 2]))[1].numpy().tolist()
    [0.0]
    """

    parameter_ndims = {"shift": 1, "log_scale": 1}

    def __init__(self, shift: Any, log_scale: Any):
        super().__init__(1, locals())

    def _forward(self, x: tf.Tensor) -> tf.Tensor:
        return _scale_channels(x, tf.exp(self.log_scale), self.shift)

    def _inverse(self, y: tf.Tensor) -> tf.Tensor:
        return (y - self.shift) * tf.exp(-self.log_scale)

    def _forward_log_det_jacobian(self, x: tf.Tensor) -> tf.Tensor:
        return tf.reduce_sum(self.log_scale)


@tf.custom_gradient
def _scale_channels(x: tf.Tensor, scale: tf.Tensor, shift: tf.Tensor) -> tuple[tf.Tensor, Callable]:
    """Returns scale * x + shift per channel, with a gradient of half as many operations as TensorFlow's own."""

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        axes = list(range(len(x.shape) - 1))
        return upstream * scale, tf.reduce_sum(upstream * x, axes), tf.reduce_sum(upstream, axes)

    return x * scale + shift, gradient


class ChannelMatrix(ClosedForm):
    """The bijector of the 1x1 convolution: y = W x at every position, in one matrix product over all positions.

    TFP's own bijectors solve a linear system for each position, which is far slower and gives the same result.

    Args:
        matrix: the invertible matrix W, `[channels, channels]`.

    >>> ChannelMatrix(2 * tf.eye(2)).forward(tf.ones([3, 2])).numpy()[0].tolist()
    [2.0, 2.0]
    """

    parameter_ndims = {"matrix": 2}

    def __init__(self, matrix: Any):
        super().__init__(1, locals())

    def _forward(self, x: tf.Tensor) -> tf.Tensor:
        return channel_product(x, self.matrix, transpose=True, full=True)

    def _inverse(self, y: tf.Tensor) -> tf.Tensor:
        return channel_product(y, inverse_matrix(self.matrix), transpose=True, full=True)

    def _forward_log_det_jacobian(self, x: tf.Tensor) -> tf.Tensor:
        return log_abs_det(self.matrix)


class Squeeze(ClosedForm):
    """The bijector from `[..., 2h, 2w, c]` to `[..., h, w, 4c]`: neighbouring pixels become channels.

    >>> Squeeze().forward(tf.zeros([1, 4, 4, 3])).shape.as_list()
    [1, 2, 2, 12]
    """

    def __init__(self) -> None:
        super().__init__(3, locals())

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
    """Returns the output of a function of `[batch, height, width, channels]` for images with any leading axes."""
    if x.shape.rank == 4:
        return function(x)
    y = function(tf.reshape(x, [-1, *sizes(x)[-3:]]))
    return tf.reshape(y, [*sizes(x)[:-3], *sizes(y)[1:]])
