"""Matrix products, inverses and determinants in full precision on any device; tensor sizes as constants."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import tensorflow as tf
from tensorflow.python.ops import control_flow_util

from tfdecouple.runtime.precision import current_net_precision


def full_product(a: tf.Tensor, b: tf.Tensor, transpose_b: bool = False) -> tf.Tensor:
    """Returns a matrix product that is never computed in TF32; nor are its gradients.

    TensorFlow's switch for TF32 applies to whole graphs. Where it may be on (`net_precision("tf32")`), the product is
    computed in float64, which the switch does not affect; elsewhere the switch is off.
    """
    if current_net_precision() != "tf32" or a.dtype == tf.float64:
        return tf.matmul(a, b, transpose_b=transpose_b)
    product = tf.matmul(tf.cast(a, tf.float64), tf.cast(b, tf.float64), transpose_b=transpose_b)
    return tf.cast(product, a.dtype)


def channel_product(x: tf.Tensor, matrix: tf.Tensor, transpose: bool = False, full: bool = False) -> tf.Tensor:
    """Returns `[..., outputs]`: the last axis of x times a matrix, in one matrix product over all positions.

    A 1x1 convolution computes the same, but its gradient for the kernel takes a tenth more time.

    Args:
        x: `[..., channels]`.
        matrix: `[channels, outputs]`, of the dtype of x.
        transpose: whether the matrix is given as `[outputs, channels]`.
        full: whether the product is a `full_product`.
    """
    multiply = full_product if full else tf.matmul
    product = multiply(tf.reshape(x, [-1, x.shape[-1]]), matrix, transpose_b=transpose)
    return tf.reshape(product, [*sizes(x)[:-1], product.shape[-1]])


def lu_product(factors: tf.Tensor, permutation: tf.Tensor) -> tf.Tensor:
    """Returns P L U, `[n, n]`, of packed factors `[n, n]` and a permutation `[n]` as returned by `tf.linalg.lu`.

    The product is as precise as a `full_product`.
    """
    dtype = tf.float64 if current_net_precision() == "tf32" else factors.dtype
    return tf.cast(tf.linalg.lu_reconstruct(tf.cast(factors, dtype), permutation), factors.dtype)


def inverse_matrix(matrix: tf.Tensor) -> tf.Tensor:
    """Returns the inverse of `[..., n, n]`, computed in float64 and rounded to the dtype of the matrix."""
    return tf.cast(tf.linalg.inv(tf.cast(matrix, tf.float64)), matrix.dtype)


def in_xla() -> bool:
    """Returns whether a `tf.function(jit_compile=True)` is being traced, at any level; XLA lacks some operations."""
    return bool(control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph()))


def log_abs_det(matrix: tf.Tensor) -> tf.Tensor:
    """Returns log |det W| of each matrix of `[..., n, n]`, `[...]`."""
    return _log_abs_det_by_qr(matrix) if in_xla() else tf.linalg.slogdet(matrix).log_abs_determinant


@tf.custom_gradient
def _log_abs_det_by_qr(matrix: tf.Tensor) -> tuple[tf.Tensor, Callable]:
    """Returns log |det W| for XLA, which has no operation for determinants on CPUs."""
    factors = tf.linalg.qr(tf.cast(matrix, tf.float64)).r
    value = tf.reduce_sum(tf.math.log(tf.abs(tf.linalg.diag_part(factors))), -1)

    def gradient(slope: tf.Tensor) -> tf.Tensor:
        return slope[..., None, None] * tf.linalg.matrix_transpose(inverse_matrix(matrix))

    return tf.cast(value, matrix.dtype), gradient


# To ask a tensor for its size while a graph runs takes six operations, and a deep flow would ask everywhere. So a size
# that is known while tracing is a number.


def sizes(x: tf.Tensor) -> list[int | tf.Tensor]:
    """Returns the size of each axis: a number where it is known, else a scalar tensor."""
    known = x.shape.as_list()
    if None not in known:
        return known
    dynamic = tf.unstack(tf.shape(x), num=len(known))
    return [there if size is None else size for size, there in zip(known, dynamic, strict=True)]


def product(factors: Iterable[int | tf.Tensor], dtype: tf.DType) -> tf.Tensor:
    """Returns the product of some sizes as a scalar of `dtype`."""
    count = math.prod(factors)
    # A constant, since a cast would be one more operation.
    return tf.constant(count, dtype) if isinstance(count, int) else tf.cast(count, dtype)


def zero_per_image(x: tf.Tensor) -> tf.Tensor:
    """Returns the log-determinant of a map that preserves volumes: 0 for each image of x, `[batch]`, of its dtype."""
    return tf.zeros(sizes(x)[:1], x.dtype)
