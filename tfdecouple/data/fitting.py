"""Images of any size made square and of the model's size: the one way in which training, commands and clients do it.

The arithmetic is that of Pillow's filter BILINEAR on 8-bit pixels: a triangle as wide as two pixels of the smaller of
the two images, first along the rows, then along the columns, each result rounded to 8 bits. `export/page/resize.js`
does the same in JavaScript, to the byte.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from PIL import Image

# What exported files and cards say of it.
RESIZE = (
    "bilinear with antialiasing: Pillow's Image.resize(size, BILINEAR) on 8-bit RGB; an image of the right size passes"
)


def centre_square(height: tf.Tensor | int, width: tf.Tensor | int, side: tf.Tensor | int) -> tuple:
    """Returns the first row and the first column of the centred square of `side` pixels, rounded down."""
    return (height - side) // 2, (width - side) // 2


def fit_image(image: Image.Image, image_size: int, centre_crop: int) -> np.ndarray:
    """Returns the centre of an image at the model's size; an image of the right size passes bit for bit.

    Args:
        image: RGB, of any size.
        image_size: side S of the result in pixels.
        centre_crop: side in pixels of the centre square to keep; the largest square where it is 0 or does not fit.

    Returns:
        uint8 [S, S, 3].
    """
    side = min(image.size)
    if centre_crop:
        side = min(side, centre_crop)
    top, left = centre_square(image.height, image.width, side)
    image = image.crop((left, top, left + side, top + side))
    if side != image_size:
        image = image.resize((image_size, image_size), Image.Resampling.BILINEAR)
    return np.asarray(image)


def fit(image: tf.Tensor, image_size: int, centre_crop: int) -> tf.Tensor:
    """Returns the centre of an image at the model's size, as `fit_image` does, within a tf.data pipeline.

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
        # tf.image.resize rounds once, where Pillow rounds twice: a tenth of the values would differ by one level.
        return tf.numpy_function(
            lambda pixels: fit_image(Image.fromarray(pixels), image_size, 0), [square], tf.uint8, stateful=False
        )

    return tf.ensure_shape(tf.cond(tf.equal(side, image_size), lambda: square, resized), [image_size, image_size, 3])
