"""The colour map: an outermost layer of the flow that normalises the colours of an image by numbers made from z.

The encoder gets the same numbers as additional inputs (`measure_colours`), so that z carries the colours of an image
exactly, also of images unlike the training images. The paper does not have this layer.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdecouple.layers.base import Condition, Cost, InvertibleLayer, Mapped, Weight, require_condition
from tfdecouple.runtime.numerics import get_sizes, multiply_channels, multiply_in_full_precision, multiply_sizes

# Variance that is added to each channel, so that an image of one colour has finite numbers; two neighbouring pixel
# values are 1/128 apart.
_LEAST_VARIANCE = 3e-4
# Standard deviation of the noise of q(z|x) at the start, in the entries of z that carry colours.
START_DEVIATION = 0.05
# Axes of colour: luminance, then two differences of colours, each of length 1.
_AXES = np.array([[1, 1, 1], [1, -1, 0], [1, 1, -2]]) / np.sqrt([[3], [2], [6]])


def count_colour_numbers(channels: int) -> int:
    """Returns how many numbers describe mean and covariance of colours with this count of channels.

    >>> count_colour_numbers(3)
    9
    """
    return channels * (channels + 3) // 2


def _get_axes(channels: int) -> np.ndarray:
    return _AXES if channels == 3 else np.eye(channels)


def measure_colours(x: tf.Tensor) -> tf.Tensor:
    """Returns mean and covariance of each image's colours, `[batch, n]`, for images x `[batch, height, width, c]`.

    Channels are rotated to luminance and two colour differences. The n = c (c + 3) / 2 numbers are the means of the
    rotated channels; the logarithm of each channel's standard deviation that the channels before do not explain; and
    the regression coefficients of each channel on the channels before (the LDL^T factors of the covariance).

    >>> measure_colours(tf.zeros([2, 4, 4, 3])).shape.as_list()
    [2, 9]
    """
    channels = x.shape[-1]
    rotated = multiply_channels(x, tf.constant(_get_axes(channels), x.dtype), transpose=True, full=True)
    mean = tf.reduce_mean(rotated, [1, 2], keepdims=True)
    planes = tf.unstack(rotated - mean, axis=-1)
    covariance = [[tf.reduce_mean(a * b, [1, 2]) for b in planes] for a in planes]
    log_scales: list[tf.Tensor] = []
    slopes: list[tf.Tensor] = []
    for j in range(channels):
        variance = covariance[j][j] + _LEAST_VARIANCE
        log_scales.append(tf.math.log(variance) / 2)
        column = {i: covariance[i][j] / variance for i in range(j + 1, channels)}
        slopes += column.values()
        for i in column:
            for k in column:
                covariance[i][k] -= column[i] * column[k] * variance
    return tf.concat([mean[:, 0, 0], tf.stack(log_scales + slopes, -1)], -1)


def make_colour_matrices(numbers: tf.Tensor, channels: int) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns the map that normalises colours with these mean and covariance, numbers of `measure_colours`.

    The map is y = W (x - shift) for each pixel; W is lower triangular in the rotated channels. Returns W and its
    inverse, `[batch, c, c]`; shift, `[batch, c]`; and log |det W|, `[batch]`.
    """
    means, log_scales = numbers[:, :channels], numbers[:, channels : 2 * channels]
    slopes = iter(tf.unstack(numbers[:, 2 * channels :, None], axis=1))
    axes = [tf.constant(axis[None], numbers.dtype) for axis in _get_axes(channels)]
    # Row i of `rows` maps a colour to channel i less what the channels before explain; `columns` is the inverse.
    rows, columns = list(axes), list(axes)
    for j in range(channels):
        for i in range(j + 1, channels):
            slope = next(slopes)
            rows[i] = rows[i] - slope * rows[j]
            columns[j] = columns[j] + slope * axes[i]
    batch = tf.zeros_like(means[:, :1])
    matrix = tf.stack([row + batch for row in rows], 1) * tf.exp(-log_scales)[:, :, None]
    inverse = tf.stack([column + batch for column in columns], 2) * tf.exp(log_scales)[:, None]
    shift = multiply_in_full_precision(means, tf.concat(axes, 0))
    return matrix, inverse, shift, -tf.reduce_sum(log_scales, -1)


@keras.saving.register_keras_serializable(package="tfdecouple")
class ColourMap(InvertibleLayer):
    """A layer y = W(z) (x - shift(z)) that maps the colours of each image by its own matrix and shift, made from z.

    A linear map of z gives mean and covariance of the colours as `measure_colours` does. For the z of an image, after
    `start_from`, the colours of y have mean 0 and covariance I, so that a switch of z exchanges mean and covariance of
    the colours. `condition_size` is the size of z.
    """

    saved_arguments = ("condition_size",)

    # A flow has one colour map, so recovering the layer's input by inversion would save little memory.
    recovers_input = False

    def __init__(self, condition_size: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.condition_size = condition_size

    def declare(self, x_shape: Any, condition_shape: Any = None) -> dict[str, Weight]:
        """Returns {name: `Weight` (shape, initializer)} of the linear map from z to the numbers of the colours."""
        count = count_colour_numbers(x_shape[-1])
        initializer = functools.partial(keras.initializers.RandomNormal, stddev=0.05)
        return {"kernel": Weight((self.condition_size, count), initializer), "bias": Weight((count,))}

    def cost(self, x_shape: Any, condition_shape: Any = None) -> Cost:
        """Returns this layer's `Cost` for one image: multiply-adds of W x and of the linear map of z, stored input."""
        own = math.prod(x_shape[1:]) * x_shape[-1] + self.condition_size * count_colour_numbers(x_shape[-1])
        return super().cost(x_shape, condition_shape).add_cost(Cost(own))

    def start_from(self, mean: tf.Tensor, deviation: tf.Tensor) -> None:
        """Lets entry i of z give number i of the colours, `mean[i] + deviation[i] * z[i]`; the vectors are `[n]`."""
        rest = tf.zeros([self.condition_size - deviation.shape[0], deviation.shape[0]])
        self.kernel.assign(tf.concat([tf.linalg.diag(deviation), rest], 0))
        self.bias.assign(mean)

    def _forward(self, x: tf.Tensor, condition: Condition) -> Mapped:
        matrix, _, shift, log_det = self._make_matrices(x, condition)
        return map_colours(x - shift[:, None, None], matrix), log_det * multiply_sizes(get_sizes(x)[1:3], x.dtype)

    def _inverse(self, y: tf.Tensor, condition: Condition) -> Mapped:
        _, inverse, shift, log_det = self._make_matrices(y, condition)
        return map_colours(y, inverse) + shift[:, None, None], -log_det * multiply_sizes(get_sizes(y)[1:3], y.dtype)

    def _make_matrices(self, x: tf.Tensor, z: Condition) -> tuple[tf.Tensor, ...]:
        require_condition(self, self.condition_size, z)
        weights = self.read_tensors()
        numbers = multiply_in_full_precision(z, weights["kernel"]) + weights["bias"]
        return make_colour_matrices(numbers, x.shape[-1])


def map_colours(x: tf.Tensor, matrix: tf.Tensor) -> tf.Tensor:
    """Multiplies the colour of each pixel in x `[batch, height, width, c]` by the image's matrix `[batch, c, c]`."""
    batch, height, width, channels = get_sizes(x)
    pixels = tf.reshape(x, [batch, height * width, channels])
    return tf.reshape(multiply_in_full_precision(pixels, matrix, transpose_b=True), [batch, height, width, channels])


def compute_start(numbers: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns mean and standard deviation, each `[n]`, of the colours' numbers `[images, n]` of training images."""
    # The bound keeps the start finite if all images have equal colours.
    return tf.reduce_mean(numbers, 0), tf.maximum(tf.math.reduce_std(numbers, 0), START_DEVIATION)
