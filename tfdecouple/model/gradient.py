"""The check whether a training step is applied, and functions that join small weights and gradients to one vector."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from tfdecouple.model.objective import DeviceResult

# Largest inversion error (relative difference between stored and recovered activations of an image) with which a step
# is applied. At the bound for float32, gradients change by less than 1e-4 of the largest entry; at the other bounds, by
# a tenth of the change from rounding the nets' operands. Usual errors are below 1/10 of the bound (docs/training.md).
INVERSION_BOUND = {"float32": 1e-4, "tf32": 4e-3, "mixed_bfloat16": 6e-2}

# Weights with at most this many entries are joined to one vector, so that a graph has fewer operations.
_LARGEST_JOINED_SIZE = 2**15


class Verdict(NamedTuple):
    """The verdict on a training step: whether the step can be applied, and the norm of its gradient.

    Attributes:
        finite: whether loss and gradient are finite, a boolean scalar.
        inverted: whether the inversion error is within `INVERSION_BOUND`, a boolean scalar.
        norm: the Euclidean norm of all gradients together, a scalar.
    """

    finite: tf.Tensor
    inverted: tf.Tensor
    norm: tf.Tensor


def check_step(result: DeviceResult, precision: str) -> Verdict:
    """Returns the `Verdict` on a training step, given the sum of all devices' results and the `training.precision`."""
    norm = compute_gradient_norm(result.gradients)
    finite = tf.math.is_finite(tf.add_n(result.terms)) & tf.math.is_finite(norm)
    # The comparison is false for NaN, so an inversion error of NaN counts as too large.
    return Verdict(finite, result.inversion_error <= INVERSION_BOUND[precision], norm)


def place_in_vector(value: tf.Tensor, position: int | tf.Tensor, length: int) -> tf.Tensor:
    """Returns a vector `[length]` with the scalar `value` at the index `position`, and 0 elsewhere.

    The vectors of all devices and micro-batches, each with another `position`, are added up. The sum contains all their
    values, so its largest entry is the maximum, which a sum of the scalars would not give.
    """
    return tf.where(tf.equal(tf.range(length), position), value, tf.zeros_like(value))


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
