"""Matrix products: of the channels at every position, and such that keep their precision whatever the device."""

from __future__ import annotations

import tensorflow as tf

from tfdecouple.runtime.precision import current_net_precision
from tfdecouple.runtime.shapes import sizes


def full_product(a: tf.Tensor, b: tf.Tensor, transpose_b: bool = False) -> tf.Tensor:
    """Returns a matrix product that is never computed in TF32, and neither are its gradients.

    TensorFlow's switch for TF32 holds for whole graphs. Where it may be on (`net_precision("tf32")`) the product is
    computed in float64, which the switch does not touch; elsewhere the switch is off.
    """
    if current_net_precision() != "tf32" or a.dtype == tf.float64:
        return tf.matmul(a, b, transpose_b=transpose_b)
    product = tf.matmul(tf.cast(a, tf.float64), tf.cast(b, tf.float64), transpose_b=transpose_b)
    return tf.cast(product, a.dtype)


def channel_product(x: tf.Tensor, matrix: tf.Tensor, transpose: bool = False, full: bool = False) -> tf.Tensor:
    """Returns `[..., outputs]`: the last axis of x times a matrix, in one matrix product over all positions.

    It is what a 1x1 convolution computes, whose gradient for the kernel takes a tenth more time.

    Args:
        x: `[..., channels]`.
        matrix: `[channels, outputs]`, of the dtype of x.
        transpose: whether the matrix is given as `[outputs, channels]`.
        full: whether the product is a `full_product`.
    """
    multiply = full_product if full else tf.matmul
    product = multiply(tf.reshape(x, [-1, x.shape[-1]]), matrix, transpose_b=transpose)
    return tf.reshape(product, [*sizes(x)[:-1], product.shape[-1]])
