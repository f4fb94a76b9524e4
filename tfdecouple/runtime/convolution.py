"""3x3 convolutions of maps with few channels, arranged so that processors compute them at full speed.

TensorFlow's kernels for CPUs fill the lanes of a vector register with channels, most often with output channels. A
coupling net ends in 2 to 48 channels, and 2 channels take as long as 16. Here neighbouring pixels share a register, and
the gradient for a kernel is computed with input and output exchanged if that fills registers better. On a GPU, and for
unknown height and width, TensorFlow's own operations are used.

TensorFlow computes convolutions by oneDNN, which (version 3.7.3) reads beyond a row in strided convolutions if a row
gives a single output (the result is NaN or arbitrary), and on processors with AMX in bfloat16 for further widths. So a
row is never packed into one vector, and nothing is packed in bfloat16.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from tfdecouple.runtime.devices import read_cpuinfo
from tfdecouple.runtime.numerics import sizes

_OPTIONS = {"strides": [1, 1, 1, 1], "padding": "SAME"}


@tf.custom_gradient
def convolve(x: tf.Tensor, kernel: tf.Tensor) -> tuple[tf.Tensor, Callable]:
    """Returns the 3x3 convolution of maps with zero padding, `[batch, height, width, outputs]`.

    Args:
        x: maps, `[batch, height, width, inputs]`.
        kernel: kernel `[3, 3, inputs, outputs]` of the dtype of x.
    """
    return _choose_convolution(x, kernel.shape[-1])(x, kernel), lambda upstream: (
        input_gradient(x, kernel, upstream),
        kernel_gradient(x, upstream),
    )


@tf.custom_gradient
def convolve_normed(x: tf.Tensor, direction: tf.Tensor, gain: tf.Tensor) -> tuple[tf.Tensor, Callable]:
    """Returns the 3x3 convolution of maps, as `convolve` does, with the weight-normalised kernel g V / ||V||.

    The backward pass computes the kernel again, by one multiplication a weight: to store the kernels of all nets would
    take another copy of these weights for each shard of a batch.

    Args:
        x: maps, `[batch, height, width, inputs]`.
        direction: V, `[3, 3, inputs, outputs]`.
        gain: g, `[outputs]`, of the dtype of `direction`; the kernel is cast to the dtype of x.
    """
    norm = tf.sqrt(tf.reduce_sum(tf.square(direction), [0, 1, 2]))
    scale = gain / norm

    def kernel() -> tf.Tensor:
        return tf.cast(direction * scale, x.dtype)

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        # The kernel is computed only when the backward pass arrives here, so that it is not held in memory until then.
        with tf.control_dependencies([upstream]):
            again = kernel()
        x_gradient = input_gradient(x, again, upstream)
        slope = tf.cast(kernel_gradient(x, upstream), direction.dtype)
        gain_gradient = tf.reduce_sum(slope * direction, [0, 1, 2]) / norm
        # The gradient's component along V is removed: it would only change the length of V, which has no effect.
        return x_gradient, (slope - direction * (gain_gradient / norm)) * scale, gain_gradient

    return _choose_convolution(x, direction.shape[-1])(x, kernel()), gradient


def input_gradient(x: tf.Tensor, kernel: tf.Tensor, upstream: tf.Tensor) -> tf.Tensor:
    """Returns the gradient of a 3x3 convolution for its input x, given `upstream`, the gradient for its output."""
    neighbours = _neighbours(upstream, x.shape[-1])
    if neighbours > 1:
        return _convolve_packed(upstream, kernel, neighbours, reflected=True)
    return tf.raw_ops.Conv2DBackpropInput(input_sizes=sizes(x), filter=kernel, out_backprop=upstream, **_OPTIONS)


def kernel_gradient(x: tf.Tensor, upstream: tf.Tensor) -> tf.Tensor:
    """Returns the gradient of a 3x3 convolution for its kernel, given its input and the gradient for its output."""
    inputs, outputs = x.shape[-1], upstream.shape[-1]
    is_swapped = _fills_registers(x) and _filled_part(inputs) > _filled_part(outputs)
    if is_swapped:
        x, upstream, inputs, outputs = upstream, x, outputs, inputs
    gradient = tf.raw_ops.Conv2DBackpropFilter(
        input=x, filter_sizes=[3, 3, inputs, outputs], out_backprop=upstream, **_OPTIONS
    )
    # With input and output exchanged the result is for a reflected and transposed kernel, so both are undone.
    return tf.transpose(tf.reverse(gradient, [0, 1]), [0, 1, 3, 2]) if is_swapped else gradient


def vector_size() -> int:
    """Returns how many float32 numbers a vector register holds: kernels for CPUs take so many channels at a time."""
    return 16 if "avx512f" in read_cpuinfo("flags").split() else 8


def _choose_convolution(x: tf.Tensor, outputs: int) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """Returns the function of maps like x and a kernel with so many outputs that convolves them fastest."""
    if (neighbours := _neighbours(x, outputs)) > 1:
        return functools.partial(_convolve_packed, neighbours=neighbours)
    return functools.partial(tf.nn.conv2d, strides=1, padding="SAME")


def _convolve_packed(x: tf.Tensor, kernel: tf.Tensor, neighbours: int, reflected: bool = False) -> tf.Tensor:
    """Returns the convolution by a kernel, or by its reflection, computed for several neighbouring pixels at once.

    A wider kernel, whose stride is the number of these pixels, holds the kernel once for each of them.
    """
    inputs, outputs = kernel.shape[2:]
    # Each entry is the kernel's column at one column of the wider kernel, for one pixel; 3 stands for zeros.
    columns = np.arange(neighbours + 2)[:, None] - np.arange(neighbours)
    columns[(columns < 0) | (columns > 2)] = 3
    # The kernel's nine positions are numbered from 0 to 8; number 9 stands for zeros.
    positions = np.arange(9).reshape(3, 3)
    if reflected:
        positions = positions[::-1, ::-1]
    positions = np.pad(positions, [[0, 0], [0, 1]], constant_values=9)[:, columns]
    wide = tf.gather(tf.pad(tf.reshape(kernel, [9, inputs, outputs]), [[0, 1], [0, 0], [0, 0]]), positions)
    wide = tf.transpose(wide, [0, 1, 4, 2, 3] if reflected else [0, 1, 3, 2, 4])
    wide = tf.reshape(wide, [3, neighbours + 2, x.shape[-1], -1])
    y = tf.nn.conv2d(x, wide, [1, neighbours], [[0, 0], [1, 1], [1, 1], [0, 0]])
    return tf.reshape(y, [*sizes(x)[:-1], inputs if reflected else outputs])


def _fills_registers(x: tf.Tensor) -> bool:
    """Returns whether convolutions of x are arranged to fill registers: true on CPUs, if height and width are known."""
    return x.shape[1:].is_fully_defined() and not tf.config.get_visible_devices("GPU")


def _neighbours(x: tf.Tensor, outputs: int) -> int:
    """Returns how many neighbouring pixels of a row share a vector register in a convolution of x."""
    if not _fills_registers(x) or x.dtype == tf.bfloat16:
        return 1
    most = min(vector_size() // outputs, x.shape[2] // 2)
    return max((count for count in range(1, most + 1) if x.shape[2] % count == 0), default=1)


def _filled_part(channels: int) -> float:
    """Returns which part of the vector registers is in use, between 0 and 1, if they hold so many channels."""
    return channels / (-(-channels // vector_size()) * vector_size())
