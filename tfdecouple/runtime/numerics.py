"""Functions for matrix products, inverses and determinants in full precision, and for sizes of tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import tensorflow as tf
from tensorflow.python.ops import control_flow_util

from tfdecouple.runtime.precision import current_net_precision


def full_product(a: tf.Tensor, b: tf.Tensor, transpose_b: bool = False) -> tf.Tensor:
    """Returns a matrix product that is computed, like its gradients, in full precision and never in TF32.

    TensorFlow's switch for TF32 applies to whole graphs. If the switch may be on (`net_precision("tf32")`), the product
    is computed in float64, which the switch does not affect; otherwise the switch is off.
    """
    if current_net_precision() != "tf32" or a.dtype == tf.float64:
        return tf.matmul(a, b, transpose_b=transpose_b)
    product = tf.matmul(tf.cast(a, tf.float64), tf.cast(b, tf.float64), transpose_b=transpose_b)
    return tf.cast(product, a.dtype)


def channel_product(x: tf.Tensor, matrix: tf.Tensor, transpose: bool = False, full: bool = False) -> tf.Tensor:
    """Returns the product of the last axis of x with a matrix, `[..., outputs]`, computed for all positions at once.

    A 1x1 convolution computes the same, but its gradient for the kernel takes a tenth more time.

    Args:
        x: array `[..., channels]`.
        matrix: matrix `[channels, outputs]` of the dtype of x.
        transpose: whether the matrix is given as `[outputs, channels]`.
        full: whether to compute the product by `full_product`, never in TF32.
    """
    multiply = full_product if full else tf.matmul
    product = multiply(tf.reshape(x, [-1, x.shape[-1]]), matrix, transpose_b=transpose)
    return tf.reshape(product, [*sizes(x)[:-1], product.shape[-1]])


def inverse_matrix(matrix: tf.Tensor) -> tf.Tensor:
    """Returns the inverse of each matrix of `[..., n, n]`, computed in float64 and rounded to the matrices' dtype."""
    return tf.cast(tf.linalg.inv(tf.cast(matrix, tf.float64)), matrix.dtype)


def in_xla() -> bool:
    """Returns whether the code is being traced for XLA (`tf.function(jit_compile=True)`, at any level of nesting)."""
    return bool(control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph()))


def log_abs_det(matrix: tf.Tensor) -> tf.Tensor:
    """Returns log |det W|, `[...]`, of each matrix W of `[..., n, n]`."""
    return _log_abs_det_by_qr(matrix) if in_xla() else tf.linalg.slogdet(matrix).log_abs_determinant


@tf.custom_gradient
def _log_abs_det_by_qr(matrix: tf.Tensor) -> tuple[tf.Tensor, Callable]:
    """Returns log |det W| by a QR factorisation, since XLA has no operation for determinants on CPUs."""
    factors = tf.linalg.qr(tf.cast(matrix, tf.float64)).r
    value = tf.reduce_sum(tf.math.log(tf.abs(tf.linalg.diag_part(factors))), -1)

    def gradient(slope: tf.Tensor) -> tf.Tensor:
        return slope[..., None, None] * tf.linalg.matrix_transpose(inverse_matrix(matrix))

    return tf.cast(value, matrix.dtype), gradient


# A size that is known while tracing is returned as a number, because reading the size of a tensor while a graph runs
# takes six operations, which a deep flow would repeat everywhere.


def sizes(x: tf.Tensor) -> list[int | tf.Tensor]:
    """Returns the size of each axis of a tensor: a number if the size is known, otherwise a scalar tensor."""
    known = x.shape.as_list()
    if None not in known:
        return known
    dynamic = tf.unstack(tf.shape(x), num=len(known))
    return [there if size is None else size for size, there in zip(known, dynamic, strict=True)]


def product(factors: Iterable[int | tf.Tensor], dtype: tf.DType) -> tf.Tensor:
    """Returns the product of sizes (numbers or tensors) as a scalar tensor of `dtype`."""
    count = math.prod(factors)
    # A known product becomes a constant, because a cast would be one more operation in the graph.
    return tf.constant(count, dtype) if isinstance(count, int) else tf.cast(count, dtype)


def zero_per_image(x: tf.Tensor) -> tf.Tensor:
    """Returns a 0 for each image of x, `[batch]` of the dtype of x: the log-determinant of a volume-preserving map."""
    return tf.zeros(sizes(x)[:1], x.dtype)
