"""The operations that layers leave to their caller: convolutions, the precision and memory of nets, parts of a batch.

A layer calls `get_kernels()`. The default, `Kernels`, computes by TensorFlow's own operations in float32. Inside
`use_kernels`, layers compute by other operations, such as those of a `RunMode` (`runtime/run_mode.py`), so that layers
need not know how they are run.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator

import tensorflow as tf


def normalize_kernel(direction: tf.Tensor, gain: tf.Tensor) -> tf.Tensor:
    """Returns the weight-normalised kernel g V / ||V||; the norm of V is over all axes but the last, the outputs."""
    squares = tf.reduce_sum(tf.square(direction), list(range(len(direction.shape) - 1)))
    return direction * (gain / tf.sqrt(squares))


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
