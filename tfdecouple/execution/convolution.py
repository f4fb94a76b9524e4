"""3x3 convolutions, and their gradients, by the fastest of the ways that a processor has.

A coupling net has few channels at its ends and many between them. TensorFlow's kernels for CPUs, those of the library
oneDNN as well as TensorFlow's own, are slow where a convolution has few outputs: they compute 8 or 16 outputs at a
time. Where the inputs are many enough (`_LEAST_RATIO`), a matrix product replaces such a convolution. TensorFlow's own
kernels, which compute if oneDNN is off, have two more slow cases, which this module avoids, too: the gradient for a
kernel with more inputs than outputs, and the gradient for the input. `import tfdecouple` switches oneDNN on for all
processors, unless TensorFlow was imported before. On a GPU, and for images of unknown height or width, TensorFlow's own
operations are used. docs/results/scaling.md has the speeds.
"""

from collections.abc import Callable

import tensorflow as tf

from tfdecouple.numerics.arithmetic import get_sizes
from tfdecouple.numerics.kernels import multiply_channels
from tfdecouple.tensorflow_internals import is_onednn_on

_OPTIONS = {"strides": [1, 1, 1, 1], "padding": "SAME"}
# {oneDNN is on: smallest ratio of input to output channels at which a matrix product is faster than a convolution}.
_LEAST_RATIO = {True: 32, False: 12}


@tf.custom_gradient
def convolve(x: tf.Tensor, kernel: tf.Tensor) -> tuple[tf.Tensor, Callable]:
    """Convolves feature maps x with a kernel `[3, 3, inputs, outputs]` of the dtype of x, and zero padding.

    Callers get maps `[batch, height, width, outputs]`; the second result, the gradient function, is for the decorator.
    """
    return _convolve(x, kernel), lambda upstream: (
        compute_input_gradient(x, kernel, upstream),
        compute_kernel_gradient(x, upstream),
    )


@tf.custom_gradient
def convolve_normed(x: tf.Tensor, direction: tf.Tensor, gain: tf.Tensor) -> tuple[tf.Tensor, Callable]:
    """Returns what `convolve` returns, for the weight-normalised kernel g V / ||V||, which is cast to the dtype of x.

    `direction` is V, `[3, 3, inputs, outputs]`, and `gain` is g, `[outputs]`. The gradient function computes the kernel
    again: stored kernels would take as much memory as all weights, for each shard (part) of a batch.
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

    return _convolve(x, make_kernel()), gradient


def compute_input_gradient(x: tf.Tensor, kernel: tf.Tensor, upstream: tf.Tensor) -> tf.Tensor:
    """Returns the gradient with respect to the input x of a 3x3 convolution; `upstream` is the output's gradient."""
    if _is_on_cpu(x) and (not is_onednn_on() or _is_product(upstream, x.shape[-1])):
        return _convolve(upstream, _transpose_kernel(kernel))
    return tf.raw_ops.Conv2DBackpropInput(input_sizes=get_sizes(x), filter=kernel, out_backprop=upstream, **_OPTIONS)


def compute_kernel_gradient(x: tf.Tensor, upstream: tf.Tensor) -> tf.Tensor:
    """Returns the gradient with respect to the kernel of a 3x3 convolution of x; `upstream`: the output's gradient."""
    is_swapped = _is_on_cpu(x) and x.shape[-1] > upstream.shape[-1]
    if is_swapped:
        x, upstream = upstream, x
    gradient = tf.raw_ops.Conv2DBackpropFilter(
        input=x, filter_sizes=[3, 3, x.shape[-1], upstream.shape[-1]], out_backprop=upstream, **_OPTIONS
    )
    return _transpose_kernel(gradient) if is_swapped else gradient


def _convolve(x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    outputs = kernel.shape[-1]
    if not _is_product(x, outputs):
        return tf.nn.conv2d(x, kernel, 1, "SAME")
    # One product computes the nine terms of each output, [batch, height, width, 9 * outputs]. Then the three rows of
    # the kernel are shifted and added, and then its three columns.
    terms = multiply_channels(x, tf.reshape(tf.transpose(kernel, [2, 0, 1, 3]), [-1, 9 * outputs]))
    rows = tf.pad(terms, [[0, 0], [1, 1], [0, 0], [0, 0]])
    above, here, below = tf.split(rows, 3, -1)
    columns = tf.pad(above[:, :-2] + here[:, 1:-1] + below[:, 2:], [[0, 0], [0, 0], [1, 1], [0, 0]])
    left, here, right = tf.split(columns, 3, -1)
    return left[:, :, :-2] + here[:, :, 1:-1] + right[:, :, 2:]


def _is_product(x: tf.Tensor, outputs: int) -> bool:
    # In bfloat16 each of the nine terms would be rounded.
    return _is_on_cpu(x) and x.dtype != tf.bfloat16 and x.shape[-1] >= _LEAST_RATIO[is_onednn_on()] * outputs


def _is_on_cpu(x: tf.Tensor) -> bool:
    return x.shape[1:].is_fully_defined() and not tf.config.get_visible_devices("GPU")


def _transpose_kernel(kernel: tf.Tensor) -> tf.Tensor:
    """Reflects a kernel in height and width, and exchanges its inputs and outputs."""
    return tf.transpose(tf.reverse(kernel, [0, 1]), [0, 1, 3, 2])
