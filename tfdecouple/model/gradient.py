"""Functions that join small weights and gradients to one vector, and the norm of a gradient."""

import math
from collections.abc import Sequence

import tensorflow as tf

# Weights with at most this many entries are joined to one vector, so that a graph has fewer operations.
_LARGEST_JOINED_SIZE = 2**15


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
