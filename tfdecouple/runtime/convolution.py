"""3x3 convolutions of maps with few channels, which processors compute at a fraction of their speed.

TensorFlow's kernels for CPUs fill the lanes of a vector with channels, most often with those of the output. A net of a
coupling ends in 2 to 48 channels, and the gradient for its input has as many: 2 channels take as long as 16. Here
neighbouring pixels share a vector, and the gradient for a kernel is taken with the two maps in each other's place.
On a GPU, and where height and width are not known, TensorFlow's operations are used as they are.

oneDNN, which computes them, reads beyond a row in convolutions with a stride where a row gives a single output (NaN or
anything, by what lies in memory), and with the matrix unit of AMX, which takes bfloat16, for other widths, too (seen in
oneDNN 3.7.3). So a row is never made one vector, and where there may be AMX nothing is packed in bfloat16.
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

    The backward pass does not keep the kernel: kept, the kernels of all nets would be another copy of these weights for
    each shard of a batch; to compute them again is one multiplication a weight.

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
        with tf.control_dependencies([upstream]):  # Not before it is wanted.
            again = kernel()
        of_x = input_gradient(x, again, upstream)
        of_kernel = tf.cast(kernel_gradient(x, upstream), direction.dtype)
        of_gain = tf.reduce_sum(of_kernel * direction, [0, 1, 2]) / norm
        # What would only make V longer changes nothing.
        return of_x, (of_kernel - direction * (of_gain / norm)) * scale, of_gain

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
    swapped = _applies(x) and _filling(inputs) > _filling(outputs)
    if swapped:
        x, upstream, inputs, outputs = upstream, x, outputs, inputs
    gradient = tf.raw_ops.Conv2DBackpropFilter(
        input=x, filter_sizes=[3, 3, inputs, outputs], out_backprop=upstream, **_OPTIONS
    )
    return _reflected(gradient) if swapped else gradient


def vector_size() -> int:
    """Returns how many channels the kernels take at a time: as many as a vector register has float32 numbers."""
    return 16 if "avx512f" in processor_text() else 8  # AVX2's registers


def _convolution(x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    neighbours = _neighbours(x, kernel.shape[-1])
    return tf.nn.conv2d(x, kernel, 1, "SAME") if neighbours == 1 else _packed_convolution(x, kernel, neighbours)


def _packed_convolution(x: tf.Tensor, kernel: tf.Tensor, neighbours: int, reflected: bool = False) -> tf.Tensor:
    """Returns a convolution of which so many pixels of a row are computed together, by the kernel or its reflection.

    A wider kernel moves by their number of pixels and sees each of them in its own position.
    """
    inputs, outputs = kernel.shape[2:]
    # Which of the kernel's nine places there is at each place for each pixel; the tenth is one of zeros.
    columns = np.arange(neighbours + 2)[:, None] - np.arange(neighbours)
    columns[(columns < 0) | (columns > 2)] = 3
    places = np.arange(9).reshape(3, 3)
    if reflected:
        places = places[::-1, ::-1]
    places = np.pad(places, [[0, 0], [0, 1]], constant_values=9)[:, columns]
    wide = tf.gather(tf.pad(tf.reshape(kernel, [9, inputs, outputs]), [[0, 1], [0, 0], [0, 0]]), places)
    wide = tf.transpose(wide, [0, 1, 4, 2, 3] if reflected else [0, 1, 3, 2, 4])
    wide = tf.reshape(wide, [3, neighbours + 2, x.shape[-1], -1])
    y = tf.nn.conv2d(x, wide, [1, neighbours], [[0, 0], [1, 1], [1, 1], [0, 0]])
    return tf.reshape(y, [*sizes(x)[:-1], inputs if reflected else outputs])


def _reflected(kernel: tf.Tensor) -> tf.Tensor:
    """Returns the kernel of the way back, from outputs to inputs."""
    return tf.transpose(tf.reverse(kernel, [0, 1]), [0, 1, 3, 2])


def _applies(x: tf.Tensor) -> bool:
    """Returns whether vectors of channels are what a convolution of x should fill."""
    return x.shape[1:].is_fully_defined() and not tf.config.get_visible_devices("GPU")


def _neighbours(x: tf.Tensor, outputs: int) -> int:
    """Returns how many pixels of a row share a vector."""
    if not _applies(x) or (x.dtype == tf.bfloat16 and not packs_bfloat16()):
        return 1
    most = min(vector_size() // outputs, x.shape[2] // 2)
    return max((count for count in range(1, most + 1) if x.shape[2] % count == 0), default=1)


def _filling(channels: int) -> float:
    """Returns how much of the vectors that hold so many channels is in use."""
    return channels / (-(-channels // vector_size()) * vector_size())


def packs_bfloat16() -> bool:
    """Returns whether pixels may share a vector in bfloat16: never where there may be AMX."""
    return bool(processor_text()) and "amx" not in processor_text()


@functools.cache
def processor_text() -> str:
    """Returns what Linux says of this machine's processor."""
    return described(pathlib.Path("/proc/cpuinfo"))


def described(file: pathlib.Path) -> str:
    """Returns what Linux says of the processor; nothing where there is no such file."""
    try:
        return file.read_text(encoding="utf-8")
    except OSError:
        return ""
