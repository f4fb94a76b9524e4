"""The operations that layers leave to their caller: linear maps, the precision and memory of nets, parts of a batch.

A layer calls `get_kernels()`. The default, `Kernels`, computes by TensorFlow's own operations in float32. Inside
`use_kernels`, layers compute by other operations, such as those of a `RunMode` (`execution/run_mode.py`), so that
layers need not know how they are run.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Sequence

import tensorflow as tf

from tfdecouple.numerics.arithmetic import get_sizes


def normalize_kernel(direction: tf.Tensor, gain: tf.Tensor) -> tf.Tensor:
    """Returns the weight-normalised kernel g V / ||V||; the norm of V is over all axes but the last, the outputs."""
    squares = tf.reduce_sum(tf.square(direction), list(range(len(direction.shape) - 1)))
    return direction * (gain / tf.sqrt(squares))


@tf.custom_gradient
def _scale_channels(x: tf.Tensor, scale: tf.Tensor, shift: tf.Tensor) -> tuple[tf.Tensor, Callable]:
    """Returns scale * x + shift for each channel; the custom gradient needs half as many operations as TensorFlow's."""

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        axes = list(range(len(x.shape) - 1))
        return upstream * scale, tf.reduce_sum(upstream * x, axes), tf.reduce_sum(upstream, axes)

    return x * scale + shift, gradient


class Kernels:
    """The default operations of nets: TensorFlow's convolutions in float32, and a batch in one part.

    Attributes:
        net_dtype: dtype of the hidden maps in coupling nets of images, such as "bfloat16"; None for the net's dtype.
        allows_tf32: whether TensorFlow's switch for TF32 may be on, so that products must exclude TF32 themselves.
    """

    net_dtype: str | None = None
    allows_tf32: bool = False

    def convolve(self, x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        """Convolves maps x `[batch, height, width, inputs]` with a kernel `[3, 3, inputs, outputs]`, zero padding."""
        return tf.nn.conv2d(x, kernel, 1, "SAME")

    def convolve_normed(self, x: tf.Tensor, direction: tf.Tensor, gain: tf.Tensor) -> tf.Tensor:
        """Convolves maps x with the weight-normalised kernel g V / ||V||; V is `[3, 3, inputs, outputs]`."""
        return self.convolve(x, tf.cast(normalize_kernel(direction, gain), x.dtype))

    def convolve_padded(self, x: tf.Tensor, kernel: tf.Tensor, step: int) -> tf.Tensor:
        """Convolves maps with a kernel of side 1 or 3 and zero padding, and keeps each `step`-th row and column."""
        if kernel.shape[0] == 1:
            # Pixels are left out before the convolution, so that the 1x1 kernel needs no stride. In the gradient of a
            # strided 1x1 kernel oneDNN 3.7.3 writes beyond its memory for an odd number of images, and with AVX-512
            # for maps of fewer than 16 channels and more than 40 rows.
            return tf.nn.conv2d(x[:, ::step, ::step] if step > 1 else x, kernel, 1, "VALID")
        if step == 1:
            return tf.nn.conv2d(x, kernel, 1, "SAME")
        return tf.nn.conv2d(tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]]), kernel, step, "VALID")

    def multiply_channels(self, x: tf.Tensor, matrix: tf.Tensor, transpose: bool, full: bool) -> tf.Tensor:
        """Returns the result of the function `multiply_channels` for the same arguments."""
        multiply = multiply_in_full_precision if full else tf.matmul
        product = multiply(tf.reshape(x, [-1, x.shape[-1]]), matrix, transpose_b=transpose)
        return tf.reshape(product, [*get_sizes(x)[:-1], product.shape[-1]])

    def scale_channels(self, x: tf.Tensor, scale: tf.Tensor, shift: tf.Tensor) -> tf.Tensor:
        """Returns scale * x + shift for x `[batch, ..., channels]`; scale and shift are `[channels]`."""
        return _scale_channels(x, scale, shift)

    def unscale_channels(self, y: tf.Tensor, factor: tf.Tensor, shift: tf.Tensor) -> tf.Tensor:
        """Returns (y - shift) * factor for y `[batch, ..., channels]`; factor and shift are `[channels]`."""
        return (y - shift) * factor

    def select(self, labels: tf.Tensor, count: int, dtype: tf.DType) -> tf.Tensor:
        """Returns for each label `[batch]` a row `[count]` with a 1 at the label, zeros for a label out of range."""
        return tf.one_hot(labels, count, dtype=dtype)

    def add_bias(self, x: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
        """Returns x + bias for x `[batch, ..., channels]` and a bias `[channels]`."""
        return x + bias

    def split_channels(self, x: tf.Tensor, counts: Sequence[int]) -> Sequence[tf.Tensor]:
        """Splits the channels of x, `[batch, ..., channels]`, into parts that have `counts` channels."""
        return tf.split(x, counts, -1)

    def spread_vectors(self, x: tf.Tensor) -> tf.Tensor:
        """Returns vectors `[batch, channels]` as images of one pixel, which can be added to maps."""
        return tf.reshape(x, [-1, 1, 1, x.shape[-1]])

    # The next two methods transpose a matrix with two rows, which takes half the time of `tf.stack` on the last axis.

    def interleave_channels(self, even: tf.Tensor, odd: tf.Tensor) -> tf.Tensor:
        """Returns a map `[..., 2n]` with channels 0, 2, 4, ... from `even`, `[..., n]`, and 1, 3, 5, ... from `odd`."""
        pairs = tf.transpose(tf.stack([tf.reshape(even, [-1]), tf.reshape(odd, [-1])]))
        return tf.reshape(pairs, [*get_sizes(even)[:-1], 2 * even.shape[-1]])

    def split_even_and_odd(self, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Splits a map x, `[..., 2n]`, into its channels 0, 2, 4, ... and 1, 3, 5, ..., each `[..., n]`."""
        even, odd = tf.unstack(tf.transpose(tf.reshape(x, [-1, 2])), num=2)
        shape = [*get_sizes(x)[:-1], x.shape[-1] // 2]
        return tf.reshape(even, shape), tf.reshape(odd, shape)

    def run_net(
        self, net: Callable[..., tf.Tensor], x: tf.Tensor, condition: tf.Tensor | None, *weights: tf.Tensor
    ) -> tf.Tensor:
        """Returns the output of a coupling net, a function that maps each image separately.

        Args:
            net: the function; its arguments are x, `condition` and the weights.
            x: feature maps, `[batch, height, width, channels]`.
            condition: the images' conditions, vectors or maps, or None.
            *weights: weights of the net; the last axis of the first weight is as long as a hidden map has channels.
        """
        return net(x, condition, *weights)

    def split_batch(self, x: tf.Tensor) -> list[tf.Tensor]:
        """Splits a batch `[batch, ...]` into the parts that are computed in parallel; by default one part."""
        return [x]


_kernels: contextvars.ContextVar[Kernels] = contextvars.ContextVar("kernels", default=Kernels())  # noqa: B039
# Returns the operations that the innermost context `use_kernels` sets, by default `Kernels()`.
get_kernels = _kernels.get


@contextlib.contextmanager
def use_kernels(kernels: Kernels) -> Iterator[None]:
    """A context in which layers compute by the operations `kernels`."""
    before = _kernels.set(kernels)
    try:
        yield
    finally:
        _kernels.reset(before)


def multiply_in_full_precision(a: tf.Tensor, b: tf.Tensor, transpose_b: bool = False) -> tf.Tensor:
    """Returns the matrix product a b; neither the product nor its gradients are computed in TF32.

    TensorFlow's switch for TF32 applies to whole graphs. In training with TF32 the switch can be on, so the product is
    computed in float64, which the switch does not affect. Elsewhere the switch is off.
    """
    if not get_kernels().allows_tf32 or a.dtype == tf.float64:
        return tf.matmul(a, b, transpose_b=transpose_b)
    product = tf.matmul(tf.cast(a, tf.float64), tf.cast(b, tf.float64), transpose_b=transpose_b)
    return tf.cast(product, a.dtype)


def multiply_channels(x: tf.Tensor, matrix: tf.Tensor, transpose: bool = False, full: bool = False) -> tf.Tensor:
    """Multiplies the channels of x by a matrix, as a 1x1 convolution does, and returns `[..., outputs]`.

    TensorFlow's 1x1 convolution is not used, because its gradient for the kernel takes a tenth more time.

    Args:
        x: array `[..., channels]`.
        matrix: matrix `[channels, outputs]` of the dtype of x.
        transpose: whether `matrix` is transposed, `[outputs, channels]`.
        full: whether TF32 is excluded, by `multiply_in_full_precision`.
    """
    return get_kernels().multiply_channels(x, matrix, transpose, full)
