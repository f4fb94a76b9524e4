"""Images of any size made square and of the model's size, in TensorFlow."""

from __future__ import annotations

import tensorflow as tf


def centre_square(height: tf.Tensor | int, width: tf.Tensor | int, side: tf.Tensor | int) -> tuple:
    """Returns the first row and the first column of the centred square of `side` pixels, rounded down."""
    return (height - side) // 2, (width - side) // 2


def fit(image: tf.Tensor, image_size: int, centre_crop: int) -> tf.Tensor:
    """Returns the centre of an image at the model's size.

    An image of the right size passes bit for bit; others are resized bilinearly with antialiasing.

    Args:
        image: uint8 [H, W, 1 or 3], the channels known statically; grey is repeated to three channels.
        image_size: side S of the result in pixels.
        centre_crop: side in pixels of the centre square to keep; the largest square where it is 0 or does not fit.

    Returns:
        uint8 [S, S, 3].
    """
    if image.shape[-1] == 1:
        image = tf.image.grayscale_to_rgb(image)
    height, width = tf.shape(image)[0], tf.shape(image)[1]
    side = tf.minimum(height, width)
    if centre_crop:
        side = tf.minimum(side, centre_crop)
    top, left = centre_square(height, width, side)
    square = image[top : top + side, left : left + side]

    def resized() -> tf.Tensor:
        pixels = tf.image.resize(square, [image_size, image_size], method="bilinear", antialias=True)
        return tf.saturate_cast(tf.round(pixels), tf.uint8)

    return tf.ensure_shape(tf.cond(tf.equal(side, image_size), lambda: square, resized), [image_size, image_size, 3])
