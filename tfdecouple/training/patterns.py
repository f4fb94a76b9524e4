"""Patterns: images that no camera takes, in the place of a few training images, so that such come back, too.

Where a flow never saw images of a kind, it may squeeze them until they do not come back in float32: noise and boards of
extreme colours, the longer it learns of photographs. The paper has nothing of the kind.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import tensorflow as tf

from tfdecouple import randomness


def with_patterns(images: tf.Tensor, share: tf.Tensor, chances: tf.Tensor, patterns: tf.Tensor) -> tf.Tensor:
    """Returns images of which some have given way to patterns, uint8.

    Args:
        images: uint8 `[batch, height, width, channels]`.
        share: how many of all give way, 0 to 1, a scalar.
        chances: uniform in [0, 1), float32 `[batch]`: an image gives way where that is below the share.
        patterns: as `draw_patterns` gives them, of the shape of images.
    """
    return tf.where(chances[:, None, None, None] < share, patterns, images)


def draw_patterns(shape: Sequence[int], seed: tf.Tensor) -> tf.Tensor:
    """Draws patterns: half of them noise, half boards of two colours, uint8 of the given shape.

    Each value of noise is drawn for itself. The fields of a board are squares of 1, 2, 4, ... pixels, each side as
    likely as another, up to the whole image, which then has one colour. In half of either kind the values are 0 and 255
    alone, in a quarter they are equal in all channels. Which of these an image is depends on its index and the seed.

    Args:
        shape: `[batch, height, width, channels]`.
        seed: as for `randomness.normal`.
    """
    batch, height, width, channels = shape

    def chance(purpose: str) -> tf.Tensor:
        return randomness.uniform([batch, 1, 1], randomness.fold(seed, purpose))

    values = tf.floor(256 * randomness.uniform([batch, height * width, channels], randomness.fold(seed, "values")))
    values = tf.where(chance("extremes") < 0.5, tf.where(values < 128, 0.0, 255.0), values)
    values = tf.where(chance("grey") < 0.25, values[..., :1], values)
    sides = 1 + math.ceil(math.log2(max(height, width)))
    side = tf.cast(2 ** tf.floor(sides * chance("side")), tf.int32)
    rows, columns = tf.range(height)[None, :, None], tf.range(width)[None, None, :]
    # Of the values that a noise would have, a board takes the first two.
    board = (rows // side + columns // side) % 2
    places = tf.where(chance("board") < 0.5, board, rows * width + columns)
    return tf.cast(tf.gather(values, places, batch_dims=1), tf.uint8)
