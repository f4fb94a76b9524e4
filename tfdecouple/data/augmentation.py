"""Random changes of training images (paper appendix C.1)."""

from __future__ import annotations

import tensorflow as tf

from tfdecouple.data.split import ALGORITHM


def augment(image: tf.Tensor, seed: tf.Tensor, *, horizontal_flip: bool, pad_and_crop: int) -> tf.Tensor:
    """Returns the image shifted at random over its reflected border, then mirrored with probability 1/2.

    Args:
        image: uint8 [height, width, channels], known statically.
        seed: int64 [2]; the result is a pure function of image and seed.
        horizontal_flip: whether to mirror at all.
        pad_and_crop: pixels of reflected border (as `numpy.pad`'s "reflect") that the random crop may reach
            into, below height and width; 0 for no crop.

    Returns:
        uint8 [height, width, channels].
    """
    if not (horizontal_flip or pad_and_crop):
        return image
    height, width = image.shape[:2]
    rows, columns = tf.range(height), tf.range(width)
    draws = tf.random.stateless_uniform([3], seed, alg=ALGORITHM)
    if pad_and_crop:
        # Padding, cropping and mirroring only choose pixels, so the indices take it all and the image moves once.
        shifts = tf.cast(tf.floor(draws[:2] * (2 * pad_and_crop + 1)), tf.int32) - pad_and_crop
        rows, columns = _reflected(rows + shifts[0], height), _reflected(columns + shifts[1], width)
    if horizontal_flip:
        columns = tf.where(draws[2] < 0.5, tf.reverse(columns, [0]), columns)
    return tf.gather(tf.gather(image, rows), columns, axis=1)


def _reflected(indices: tf.Tensor, size: int) -> tf.Tensor:
    last = size - 1
    return last - tf.abs(last - tf.abs(indices))
