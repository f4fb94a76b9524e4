"""The colour map: an outermost layer of the flow that normalises the colours of an image by numbers made from z.

z begins with these numbers: the encoder measures them (`measure_colours`), so that z carries the colours of an image
exactly, also of images unlike the training images. The couplings get the other numbers of z, so that they cannot react
to the colours that the map has removed. The paper does not have this layer.
"""

import keras
import numpy as np
import tensorflow as tf

from tfdecouple.config.shapes import count_colour_numbers
from tfdecouple.layers.base import Condition, InvertibleLayer, Mapped, Run
from tfdecouple.layers.conditioners import require_condition
from tfdecouple.numerics.arithmetic import get_sizes, multiply_sizes
from tfdecouple.numerics.kernels import multiply_channels, multiply_in_full_precision

# Variance that is added to each channel, so that an image of one colour has finite numbers; two neighbouring pixel
# values are 1/128 apart.
_LEAST_VARIANCE = 3e-4
# Axes of colour: luminance, then two differences of colours, each of length 1.
_AXES = np.array([[1, 1, 1], [1, -1, 0], [1, 1, -2]]) / np.sqrt([[3], [2], [6]])
# Mean and standard deviation of the numbers of colours over 64x64 crops of photographs (benchmarks/photographs.py),
# rounded: means of axes, logarithms of scales, slopes.
_USUAL = np.array([[-0.2, 0, 0, -0.9, -2.9, -3, 0, 0, 0.9], [0.7, 0.2, 0.2, 0.7, 0.7, 0.6, 0.2, 0.2, 0.7]])


def _get_axes(channels: int) -> np.ndarray:
    """Returns the axes to which colours are rotated, float64 `[c, c]`: an orthogonal matrix with an axis a row."""
    return _AXES if channels == 3 else np.eye(channels)


def _get_usual_numbers(channels: int) -> np.ndarray:
    """Returns the mean (row 0) and standard deviation (row 1) of the numbers of usual photographs, float64 `[2, n]`."""
    if channels == 3:
        return _USUAL
    # Each channel is taken to be as the grey values of photographs are.
    counts = channels, channels, count_colour_numbers(channels) - 2 * channels
    return np.repeat([[-0.1, -1.4, 0], [0.4, 0.7, 0.5]], counts, 1)


def measure_colours(x: tf.Tensor) -> tf.Tensor:
    """Returns mean and covariance of each image's colours, `[batch, n]`, for images x `[batch, height, width, c]`.

    Channels are rotated to luminance and two colour differences. The n = c (c + 3) / 2 numbers are the means of the
    rotated channels; the logarithm of each channel's standard deviation that the channels before do not explain; and
    the regression coefficients of each channel on the channels before (the LDL^T factors of the covariance). Each is
    standardised by `_get_usual_numbers`.

    >>> measure_colours(tf.zeros([2, 4, 4, 3])).shape.as_list()
    [2, 9]
    """
    channels = x.shape[-1]
    rotated = multiply_channels(x, tf.constant(_get_axes(channels).T, x.dtype), full=True)
    mean = _average_pixels(rotated)
    planes = tf.unstack(rotated - mean[:, None, None], axis=-1)
    covariance = [[_average_pixels(a * b) for b in planes] for a in planes]
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
    usual, deviation = _get_usual_numbers(channels)
    return (tf.concat([mean, tf.stack(log_scales + slopes, -1)], -1) - usual) / deviation


def _average_pixels(x: tf.Tensor) -> tf.Tensor:
    # Sums of rows, and then of their means, round less than one long sum, which some runtimes add up in order.
    return tf.reduce_mean(tf.reduce_mean(x, 2), 1)


def make_colour_matrices(numbers: tf.Tensor, channels: int) -> tuple[tf.Tensor, ...]:
    """Returns the map that normalises colours with these mean and covariance, numbers of `measure_colours`.

    The map is y = (x - shift) A for the colour x of each pixel, a row of channels. Returns A and its inverse,
    `[batch, c, c]`; shift, `[batch, c]`; and log |det A|, `[batch]`.
    """
    axes, (usual, deviation) = _get_axes(channels), _get_usual_numbers(channels)
    numbers = numbers * deviation + usual
    rows, columns = (tf.constant(matrix, numbers.dtype) for matrix in (axes, axes.T))
    means, log_scales = numbers[:, :channels], numbers[:, channels : 2 * channels]
    slopes = iter(tf.unstack(numbers[:, 2 * channels :], axis=1))
    zero = means[:, 0] * 0
    lower = [[zero + float(i == j) for j in range(channels)] for i in range(channels)]
    # `lower` has the regression slopes of each channel on the previous channels, and `back` its inverse.
    back = [list(row) for row in lower]
    for j in range(channels):
        for i in range(j + 1, channels):
            lower[i][j] = slope = next(slopes)
            for k in range(j + 1):
                back[i][k] = back[i][k] - slope * back[j][k]
    matrix = tf.matmul(columns, _stack_transposed(back) * tf.exp(-log_scales)[:, None])
    inverse = tf.matmul(_stack_transposed(lower) * tf.exp(log_scales)[:, :, None], rows)
    return matrix, inverse, multiply_in_full_precision(means, rows), -tf.reduce_sum(log_scales, -1)


def _stack_transposed(entries: list[list[tf.Tensor]]) -> tf.Tensor:
    return tf.stack([tf.stack(column, 1) for column in zip(*entries, strict=True)], 1)


@keras.saving.register_keras_serializable(package="tfdecouple")
class ColourMap(InvertibleLayer):
    """A layer y = (x - shift) A that maps the colours of each image by its own matrix and shift.

    The condition is an image's numbers of colours, `[batch, n]`. For those of `measure_colours`, the colours of y have
    mean 0 and covariance I, so that a switch of z exchanges mean and covariance of the colours.
    """

    # A flow has one colour map, so recovering the layer's input by inversion would save little memory.
    recovers_input = False

    def run_forward(self, run: Run, x: tf.Tensor, condition: Condition) -> Mapped:
        matrix, _, shift, log_det = self._make_matrices(x, condition)
        return map_colours(x - shift[:, None, None], matrix), log_det * multiply_sizes(get_sizes(x)[1:3], x.dtype)

    def run_inverse(self, run: Run, y: tf.Tensor, condition: Condition) -> Mapped:
        _, inverse, shift, log_det = self._make_matrices(y, condition)
        return map_colours(y, inverse) + shift[:, None, None], -log_det * multiply_sizes(get_sizes(y)[1:3], y.dtype)

    def _make_matrices(self, x: tf.Tensor, numbers: Condition) -> tuple[tf.Tensor, ...]:
        require_condition(self, count_colour_numbers(x.shape[-1]), numbers)
        return make_colour_matrices(numbers, x.shape[-1])


def map_colours(x: tf.Tensor, matrix: tf.Tensor) -> tf.Tensor:
    """Multiplies each pixel's colour in x `[batch, height, width, c]` by its image's matrix, `[batch, c, c]`."""
    batch, height, width, channels = get_sizes(x)
    pixels = tf.reshape(x, [batch, height * width, channels])
    return tf.reshape(multiply_in_full_precision(pixels, matrix), [batch, height, width, channels])
