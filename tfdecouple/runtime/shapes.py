"""Sizes of tensors and what is filled by them: numbers where a size is known while a program is traced.

Asking a tensor at run time for what is known costs six operations each time, and a deep flow asks everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import tensorflow as tf


def sizes(x: tf.Tensor) -> list[int | tf.Tensor]:
    """Returns the size of each axis: a number where it is known, else a scalar tensor."""
    known = x.shape.as_list()
    if None not in known:
        return known
    asked = tf.unstack(tf.shape(x), num=len(known))
    return [there if size is None else size for size, there in zip(known, asked, strict=True)]


def product(factors: Iterable[int | tf.Tensor], dtype: tf.DType) -> tf.Tensor:
    """Returns the product of some sizes as a scalar of `dtype`."""
    found = math.prod(factors)
    # A constant of the dtype at once, where a cast would be one more operation.
    return tf.constant(found, dtype) if isinstance(found, int) else tf.cast(found, dtype)


def side_by_side(values: Sequence[tf.Tensor], axis: int = -1) -> tf.Tensor:
    """Returns tensors side by side along an axis.

    Where their sizes are known, their gradients are one split; TensorFlow's own asks for the shapes and slices for
    each of them.
    """
    counts = [value.shape[axis] for value in values]

    @tf.custom_gradient
    def run(*values: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        return tf.concat(values, axis), lambda upstream: tf.split(upstream, counts, axis)

    return tf.concat(values, axis) if None in counts else run(*values)


def zero_per_image(x: tf.Tensor) -> tf.Tensor:
    """Returns the log-determinant of what changes no volume: 0 for each image of x, `[batch]`, of the dtype of x."""
    return tf.zeros(sizes(x)[:1], x.dtype)
