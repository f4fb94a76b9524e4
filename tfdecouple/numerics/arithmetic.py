"""Inverses and determinants in full precision, sizes of tensors, small tensors joined to one vector, and norms."""

import math
from collections.abc import Callable, Iterable, Sequence

import tensorflow as tf

from tfdecouple.tensorflow_internals import is_traced_for_xla

# Weights with at most this many entries are joined to one vector, so that a graph has fewer operations.
_LARGEST_JOINED_SIZE = 2**15


def invert_matrix(matrix: tf.Tensor) -> tf.Tensor:
    """Returns the inverses of matrices `[..., n, n]`, computed in float64 and rounded to the dtype of the matrices."""
    return tf.cast(tf.linalg.inv(tf.cast(matrix, tf.float64)), matrix.dtype)


@tf.custom_gradient
def compute_log_abs_det(matrix: tf.Tensor) -> tuple[tf.Tensor, Callable]:
    """Returns log |det W| of each matrix W in `matrix`, `[..., n, n]`; callers get `[...]`.

    The second result is the gradient, for the decorator. TensorFlow's own gradient is not used, because versions after
    2.21 compute it in TF32.
    """
    if is_traced_for_xla():
        # XLA has no determinants on CPUs.
        factors = tf.linalg.qr(tf.cast(matrix, tf.float64)).r
        value = tf.cast(tf.reduce_sum(tf.math.log(tf.abs(tf.linalg.diag_part(factors))), -1), matrix.dtype)
    else:
        value = tf.linalg.slogdet(matrix).log_abs_determinant

    def gradient(slope: tf.Tensor) -> tf.Tensor:
        return slope[..., None, None] * tf.linalg.matrix_transpose(invert_matrix(matrix))

    return value, gradient


def get_sizes(x: tf.Tensor) -> list[int | tf.Tensor]:
    """Returns the size of each axis of a tensor: an int if the size is known, otherwise a scalar tensor.

    Known sizes are not computed in the graph: that would take six operations, repeated in each layer of a flow.
    """
    known = x.shape.as_list()
    if None not in known:
        return known
    dynamic = tf.unstack(tf.shape(x), num=len(known))
    return [there if size is None else size for size, there in zip(known, dynamic, strict=True)]


def multiply_sizes(factors: Iterable[int | tf.Tensor], dtype: tf.DType) -> tf.Tensor:
    """Returns the product of sizes, ints or scalar tensors from `get_sizes`, as a scalar tensor of `dtype`."""
    count = math.prod(factors)
    # A known product becomes a constant, because a cast would be one more operation in the graph.
    return tf.constant(count, dtype) if isinstance(count, int) else tf.cast(count, dtype)


def sum_over_devices(values: tf.Tensor) -> tf.Tensor:
    """Returns the sums of `values`, tensors in any structure, over all devices of the strategy that runs the caller."""
    replica = tf.distribute.get_replica_context()
    if replica is None or replica.num_replicas_in_sync == 1:
        return values
    return replica.all_reduce(tf.distribute.ReduceOp.SUM, values)


def make_zero_log_det(x: tf.Tensor) -> tf.Tensor:
    """Returns the log-determinant of a volume-preserving map: a 0 for each image of x, `[batch]` of x's dtype."""
    return tf.zeros(get_sizes(x)[:1], x.dtype)


def flatten_and_join(values: Sequence[tf.Tensor]) -> tf.Tensor:
    """Returns the entries of all tensors in `values` as one vector, one tensor after the other."""
    # All tensors share one constant, because each operation of a training step lengthens the start of a run.
    flat = tf.constant([-1])
    return tf.concat([value if len(value.shape) == 1 else tf.reshape(value, flat) for value in values], 0)


def is_small_weight(shape: Sequence[int]) -> bool:
    """Returns whether a weight of this shape is small enough to be joined with other small weights to one vector."""
    return math.prod(shape) <= _LARGEST_JOINED_SIZE


def compute_gradient_norm(gradients: Sequence[tf.Tensor]) -> tf.Tensor:
    """Returns the Euclidean norm of all gradients together, a scalar."""
    # Small gradients are joined, because every separate gradient would add an operation to the graph.
    small = [gradient for gradient in gradients if is_small_weight(gradient.shape)]
    large = [gradient for gradient in gradients if not is_small_weight(gradient.shape)]
    return tf.linalg.global_norm([*large, flatten_and_join(small)] if small else large)
