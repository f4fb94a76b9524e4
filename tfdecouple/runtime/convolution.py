"""3x3 convolutions of maps with few channels, arranged so that processors compute them at full speed.

TensorFlow's kernels for CPUs fill a vector register with 8 or 16 channels, usually output channels, so that 2 output
channels take as long as 16. A coupling net has 2 to 48 output channels. Here neighbouring pixels are packed into one
register, and the gradient for a kernel is computed with input and output exchanged if that fills registers better. On a
GPU, and for images of unknown height or width, TensorFlow's own operations are used.

On CPUs, TensorFlow computes convolutions by the library oneDNN, which `import tfdecouple` switches on also for
processors without AVX-512, unless TensorFlow was imported before. Version 3.7.3 has a bug: a strided convolution whose
output is one pixel wide reads memory beyond the row, and returns NaN or arbitrary numbers. In bfloat16 on processors
with AMX, wider outputs are wrong, too. So a register gets at most half of a row, and bfloat16 is not packed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from tfdecouple.numerics.arithmetic import get_sizes
from tfdecouple.runtime.devices import read_cpuinfo

_OPTIONS = {"strides": [1, 1, 1, 1], "padding": "SAME"}


@tf.custom_gradient
def convolve(x: tf.Tensor, kernel: tf.Tensor) -> tuple[tf.Tensor, Callable]:
    """Convolves feature maps with a 3x3 kernel and zero padding; callers get maps `[batch, height, width, outputs]`.

    The second result, the function that computes gradients, is for the decorator and does not reach callers.

    Args:
        x: feature maps, `[batch, height, width, inputs]`.
        kernel: kernel `[3, 3, inputs, outputs]` of the dtype of x.
    """
    return _choose_convolution(x, kernel.shape[-1])(x, kernel), lambda upstream: (
        compute_input_gradient(x, kernel, upstream),
        compute_kernel_gradient(x, upstream),
    )


@tf.custom_gradient
def convolve_normed(x: tf.Tensor, direction: tf.Tensor, gain: tf.Tensor) -> tuple[tf.Tensor, Callable]:
    """Convolves maps with the weight-normalised 3x3 kernel g V / ||V||; callers get `[batch, height, width, outputs]`.

    The second result, the function that computes gradients, is for the decorator. It does not store the kernel but
    computes it again: stored kernels would take as much memory as all weights, for each shard (part) of a batch.

    Args:
        x: feature maps, `[batch, height, width, inputs]`.
        direction: V, `[3, 3, inputs, outputs]`.
        gain: g, `[outputs]`, of the dtype of `direction`; the kernel is cast to the dtype of x.
    """
    norm = tf.sqrt(tf.reduce_sum(tf.square(direction), [0, 1, 2]))
    scale = gain / norm

    def make_kernel() -> tf.Tensor:
        return tf.cast(direction * scale, x.dtype)

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        # The control dependency delays the second computation of the kernel until the backward pass needs the kernel.
        with tf.control_dependencies([upstream]):
            again = make_kernel()
        x_gradient = compute_input_gradient(x, again, upstream)
        slope = tf.cast(compute_kernel_gradient(x, upstream), direction.dtype)
        gain_gradient = tf.reduce_sum(slope * direction, [0, 1, 2]) / norm
        # The gradient's component along V is removed, because the length of V has no effect on the kernel.
        return x_gradient, (slope - direction * (gain_gradient / norm)) * scale, gain_gradient

    return _choose_convolution(x, direction.shape[-1])(x, make_kernel()), gradient


def compute_input_gradient(x: tf.Tensor, kernel: tf.Tensor, upstream: tf.Tensor) -> tf.Tensor:
    """Returns the gradient with respect to the input x of a 3x3 convolution; `upstream` is the output's gradient."""
    neighbours = _count_packed_pixels(upstream, x.shape[-1])
    if neighbours > 1:
        return _convolve_packed(upstream, kernel, neighbours, reflected=True)
    return tf.raw_ops.Conv2DBackpropInput(input_sizes=get_sizes(x), filter=kernel, out_backprop=upstream, **_OPTIONS)


def compute_kernel_gradient(x: tf.Tensor, upstream: tf.Tensor) -> tf.Tensor:
    """Returns the gradient with respect to the kernel of a 3x3 convolution of x; `upstream`: the output's gradient."""
    inputs, outputs = x.shape[-1], upstream.shape[-1]
    is_swapped = _fills_registers(x) and _compute_filled_share(inputs) > _compute_filled_share(outputs)
    if is_swapped:
        x, upstream, inputs, outputs = upstream, x, outputs, inputs
    gradient = tf.raw_ops.Conv2DBackpropFilter(
        input=x, filter_sizes=[3, 3, inputs, outputs], out_backprop=upstream, **_OPTIONS
    )
    # If input and output were exchanged, `gradient` is reflected in height and width, and its channel axes are
    # exchanged; this line undoes both.
    return tf.transpose(tf.reverse(gradient, [0, 1]), [0, 1, 3, 2]) if is_swapped else gradient


def get_vector_size() -> int:
    """Returns how many float32 numbers fit into a vector register of this processor: 16 with AVX-512, else 8."""
    return 16 if "avx512f" in read_cpuinfo("flags").split() else 8


def _choose_convolution(x: tf.Tensor, outputs: int) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    if (neighbours := _count_packed_pixels(x, outputs)) > 1:
        return functools.partial(_convolve_packed, neighbours=neighbours)
    return functools.partial(tf.nn.conv2d, strides=1, padding="SAME")


def _convolve_packed(x: tf.Tensor, kernel: tf.Tensor, neighbours: int, reflected: bool = False) -> tf.Tensor:
    """Convolves maps x with a 3x3 kernel, computing `neighbours` pixels of a row at once; returns the convolved maps.

    A wider kernel contains `kernel` once for each of these pixels, and its stride is `neighbours` pixels. If
    `reflected`, `kernel` is first reflected in height and width, and its channel axes are exchanged; the result is then
    the gradient with respect to a convolution's input.
    """
    inputs, outputs = kernel.shape[2:]
    # Column i of the wider kernel has, for pixel j, the column columns[i, j] of `kernel`; the index 3 means zeros.
    columns = np.arange(neighbours + 2)[:, None] - np.arange(neighbours)
    columns[(columns < 0) | (columns > 2)] = 3
    # The nine positions in `kernel` have the indices 0 to 8; the index 9 means zeros.
    positions = np.arange(9).reshape(3, 3)
    if reflected:
        positions = positions[::-1, ::-1]
    positions = np.pad(positions, [[0, 0], [0, 1]], constant_values=9)[:, columns]
    wide = tf.gather(tf.pad(tf.reshape(kernel, [9, inputs, outputs]), [[0, 1], [0, 0], [0, 0]]), positions)
    wide = tf.transpose(wide, [0, 1, 4, 2, 3] if reflected else [0, 1, 3, 2, 4])
    wide = tf.reshape(wide, [3, neighbours + 2, x.shape[-1], -1])
    y = tf.nn.conv2d(x, wide, [1, neighbours], [[0, 0], [1, 1], [1, 1], [0, 0]])
    return tf.reshape(y, [*get_sizes(x)[:-1], inputs if reflected else outputs])


def _fills_registers(x: tf.Tensor) -> bool:
    """Returns whether convolutions of x are rearranged to fill vector registers: on CPUs, if x's size is known."""
    return x.shape[1:].is_fully_defined() and not tf.config.get_visible_devices("GPU")


def _count_packed_pixels(x: tf.Tensor, outputs: int) -> int:
    if not _fills_registers(x) or x.dtype == tf.bfloat16:
        return 1
    most = min(get_vector_size() // outputs, x.shape[2] // 2)
    return max((count for count in range(1, most + 1) if x.shape[2] % count == 0), default=1)


def _compute_filled_share(channels: int) -> float:
    return channels / (-(-channels // get_vector_size()) * get_vector_size())
