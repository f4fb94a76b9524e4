"""3x3 convolutions of maps with few channels, arranged so that processors compute them at full speed.

TensorFlow's kernels for CPUs fill the lanes of a vector register with channels, most often with those of the output. A
coupling net ends in 2 to 48 channels, and the gradient for its input has as many: 2 channels take as long as 16. Here
neighbouring pixels share a register, and the gradient for a kernel is taken with input and output exchanged where that
fills registers better. On a GPU, and where height and width are unknown, TensorFlow's operations are used as they are.

oneDNN, which computes them, reads beyond a row in convolutions with a stride where a row gives a single output (the
result is NaN or arbitrary), and with the matrix unit of AMX, which takes bfloat16, for other widths, too (seen in
version 3.7.3). So a row never becomes one vector, and where there may be AMX nothing is packed in bfloat16.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from tfdecouple.runtime.numerics import sizes

_OPTIONS = {"strides": [1, 1, 1, 1], "padding": "SAME"}


@tf.custom_gradient
def convolve(x: tf.Tensor, kernel: tf.Tensor) -> tuple[tf.Tensor, Callable]:
    """Returns a 3x3 convolution with zero padding, `[batch, height, width, outputs]`.

    Args:
        x: `[batch, height, width, inputs]`.
        kernel: `[3, 3, inputs, outputs]`, of the dtype of x.
    """
    return _convolution(x, kernel), lambda upstream: (
        input_gradient(x, kernel, upstream),
        kernel_gradient(x, upstream),
    )


@tf.custom_gradient
def convolve_normed(x: tf.Tensor, direction: tf.Tensor, gain: tf.Tensor) -> tuple[tf.Tensor, Callable]:
    """Returns a 3x3 convolution as `convolve` does, with a weight-normalised kernel g V / ||V||.

    The backward pass computes the kernel again, by one multiplication a weight: stored kernels of all nets would be
    another copy of these weights for each shard of a batch.

    Args:
        x: `[batch, height, width, inputs]`.
        direction: V, `[3, 3, inputs, outputs]`.
        gain: g, `[outputs]`, of the dtype of direction; the kernel is used in the dtype of x.
    """
    norm = tf.sqrt(tf.reduce_sum(tf.square(direction), [0, 1, 2]))
    scale = gain / norm

    def kernel() -> tf.Tensor:
        return tf.cast(direction * scale, x.dtype)

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        # The kernel must not be computed before the backward pass arrives here.
        with tf.control_dependencies([upstream]):
            again = kernel()
        x_gradient = input_gradient(x, again, upstream)
        slope = tf.cast(kernel_gradient(x, upstream), direction.dtype)
        gain_gradient = tf.reduce_sum(slope * direction, [0, 1, 2]) / norm
        # The component along V would only change its length, on which nothing depends.
        return x_gradient, (slope - direction * (gain_gradient / norm)) * scale, gain_gradient

    return _convolution(x, kernel()), gradient


def input_gradient(x: tf.Tensor, kernel: tf.Tensor, upstream: tf.Tensor) -> tf.Tensor:
    """Returns the gradient of a convolution for its input x, given the gradient for its output."""
    neighbours = _neighbours(upstream, x.shape[-1])
    if neighbours > 1:
        return _packed_convolution(upstream, kernel, neighbours, reflected=True)
    return tf.raw_ops.Conv2DBackpropInput(input_sizes=sizes(x), filter=kernel, out_backprop=upstream, **_OPTIONS)


def kernel_gradient(x: tf.Tensor, upstream: tf.Tensor) -> tf.Tensor:
    """Returns the gradient of a convolution for its kernel, given its input and the gradient for its output."""
    inputs, outputs = x.shape[-1], upstream.shape[-1]
    is_swapped = _fills_registers(x) and _filled_part(inputs) > _filled_part(outputs)
    if is_swapped:
        x, upstream, inputs, outputs = upstream, x, outputs, inputs
    gradient = tf.raw_ops.Conv2DBackpropFilter(
        input=x, filter_sizes=[3, 3, inputs, outputs], out_backprop=upstream, **_OPTIONS
    )
    # The result is the kernel from outputs to inputs.
    return tf.transpose(tf.reverse(gradient, [0, 1]), [0, 1, 3, 2]) if is_swapped else gradient


def vector_size() -> int:
    """Returns how many channels the kernels take at a time: as many as a vector register has float32 numbers."""
    return 16 if "avx512f" in processor_text() else 8


def _convolution(x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    neighbours = _neighbours(x, kernel.shape[-1])
    return tf.nn.conv2d(x, kernel, 1, "SAME") if neighbours == 1 else _packed_convolution(x, kernel, neighbours)


def _packed_convolution(x: tf.Tensor, kernel: tf.Tensor, neighbours: int, reflected: bool = False) -> tf.Tensor:
    """Returns a convolution by a kernel, or its reflection, that computes some neighbouring pixels of a row together.

    A wider kernel with that number of pixels as stride holds the kernel once for each of them.
    """
    inputs, outputs = kernel.shape[2:]
    # For each column of the wider kernel and each pixel, the kernel's column there; 3 stands for a column of zeros.
    columns = np.arange(neighbours + 2)[:, None] - np.arange(neighbours)
    columns[(columns < 0) | (columns > 2)] = 3
    # The number of each of the kernel's nine positions; the tenth holds zeros.
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
    """Returns whether convolutions of x are arranged to fill registers: on CPUs, for known heights and widths."""
    return x.shape[1:].is_fully_defined() and not tf.config.get_visible_devices("GPU")


def _neighbours(x: tf.Tensor, outputs: int) -> int:
    """Returns how many pixels of a row share a vector register."""
    if not _fills_registers(x) or (x.dtype == tf.bfloat16 and not packs_bfloat16()):
        return 1
    most = min(vector_size() // outputs, x.shape[2] // 2)
    return max((count for count in range(1, most + 1) if x.shape[2] % count == 0), default=1)


def _filled_part(channels: int) -> float:
    """Returns which part of the registers for so many channels is in use."""
    return channels / (-(-channels // vector_size()) * vector_size())


def packs_bfloat16() -> bool:
    """Returns whether pixels may share a register in bfloat16: not where there may be AMX."""
    return bool(processor_text()) and "amx" not in processor_text()


@functools.cache
def processor_text(file: str = "/proc/cpuinfo") -> str:
    """Returns Linux' description of this machine's processor; "" where there is none."""
    try:
        return pathlib.Path(file).read_text(encoding="utf-8")
    except OSError:
        return ""
