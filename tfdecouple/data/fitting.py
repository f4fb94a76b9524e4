"""Images of any size made those of the model: the one way in which training, commands and clients do it.

The centre of an image in the proportions of the model's is cut out and resized. The arithmetic is that of Pillow's
filter BILINEAR on 8-bit pixels: a triangle as wide as two pixels of the smaller of the two images, first along the
rows, then along the columns, each result rounded to 8 bits. `export/page/resize.js` does the same in JavaScript, to the
byte.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
from PIL import Image

from tfdecouple.image_shapes import COLOURS, CONVERTED, Shape, colours, whole


def resize_said(image_shape: Shape) -> str:
    """Returns what exported files and cards say of how images are resized."""
    channels = image_shape[-1]
    of = colours(channels) if channels in CONVERTED else "pixels, each channel by itself"
    return (
        f"bilinear with antialiasing: Pillow's Image.resize(size, BILINEAR) on 8-bit {of}; an image of the right size "
        "passes"
    )


def crop_said(image_shape: Shape, centre_crop: int) -> str:
    """Returns what exported files and cards say of `centre_box`: the only number in it is that of `centre_crop`."""
    if image_shape[0] == image_shape[1]:
        return f"centre square of {centre_crop} pixels, or the largest" if centre_crop else "largest centre square"
    what = "centre in the proportions of the model's images"
    return f"{what}, {centre_crop} pixels along its shorter side, or the largest" if centre_crop else f"largest {what}"


def centre_box(height: Any, width: Any, image_shape: Shape, centre_crop: int) -> tuple[Any, Any, Any, Any]:
    """Returns what is cut out of an image: the first row and column, and how many rows and columns, rounded down.

    Args:
        height: of the image, a number or a tensor.
        width: likewise.
        image_shape: of the model's images, in whose proportions it is cut.
        centre_crop: pixels along the shorter side to keep, where there are so many; 0 for all that fits.

    >>> centre_box(100, 300, (32, 32, 3), 0)
    (0, 100, 100, 100)
    >>> centre_box(100, 300, (48, 64, 3), 0), centre_box(100, 300, (48, 64, 3), 60)
    ((0, 83, 100, 133), (20, 110, 60, 80))
    """
    rows_as, columns_as, _ = image_shape
    least, most = (tf.minimum, tf.maximum) if tf.is_tensor(height) else (min, max)
    rows = least(height, most(width * rows_as // columns_as, 1))
    columns = least(width, most(height * columns_as // rows_as, 1))
    if centre_crop:
        shorter = min(rows_as, columns_as)
        rows = least(rows, centre_crop * rows_as // shorter)
        columns = least(columns, centre_crop * columns_as // shorter)
    return (height - rows) // 2, (width - columns) // 2, rows, columns


def fit_image(image: Image.Image, image_shape: int | Shape, centre_crop: int) -> np.ndarray:
    """Returns the centre of an image in the model's shape; an image of the right size passes bit for bit.

    Args:
        image: of the model's channels: RGB for three of them, L for one, RGBA or CMYK for four, LA for two.
        image_shape: height, width and channels of the result; a number for a square of RGB.
        centre_crop: as for `centre_box`.

    Returns:
        uint8 [height, width, channels].
    """
    return fit_pixels(np.asarray(image), image_shape, centre_crop)


def fit_pixels(pixels: np.ndarray, image_shape: int | Shape, centre_crop: int) -> np.ndarray:
    """As `fit_image`, of pixels, uint8 [H, W, channels], or [H, W] for one channel."""
    shape = whole(image_shape)
    top, left, rows, columns = centre_box(pixels.shape[0], pixels.shape[1], shape, centre_crop)
    return _resized(pixels[top : top + rows, left : left + columns], shape)


def _resized(pixels: np.ndarray, shape: Shape) -> np.ndarray:
    height, width, channels = shape
    if pixels.shape[:2] == (height, width):
        return pixels.reshape(shape)

    def resized(part: np.ndarray) -> np.ndarray:
        image = Image.fromarray(np.ascontiguousarray(part))
        return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))

    if channels == COLOURS:
        return resized(pixels)
    # Each channel by itself: Pillow would take the last of four for how much the others count.
    every = pixels.reshape(*pixels.shape[:2], channels)
    return np.stack([resized(every[..., channel]) for channel in range(channels)], -1)


def fit(image: tf.Tensor, image_shape: int | Shape, centre_crop: int) -> tf.Tensor:
    """Returns the centre of an image in the model's shape, as `fit_image` does, within a tf.data pipeline.

    Args:
        image: uint8 [H, W, channels], the channels known statically: those of the model, or 1, which are repeated.
        image_shape: height, width and channels of the result; a number for a square of RGB.
        centre_crop: as for `centre_box`.

    Returns:
        uint8 [height, width, channels].
    """
    shape = whole(image_shape)
    if image.shape[-1] == 1 and shape[-1] == COLOURS:
        image = tf.image.grayscale_to_rgb(image)
    if image.shape[-1] == COLOURS and shape[-1] == 1:
        image = tf.numpy_function(grey, [image], tf.uint8, stateful=False)
    top, left, rows, columns = centre_box(tf.shape(image)[0], tf.shape(image)[1], shape, centre_crop)
    cut = image[top : top + rows, left : left + columns]

    def resized() -> tf.Tensor:
        # tf.image.resize rounds once, where Pillow rounds twice: a tenth of the values would differ by one level.
        return tf.numpy_function(lambda pixels: _resized(pixels, shape), [cut], tf.uint8, stateful=False)

    fits = tf.logical_and(tf.equal(rows, shape[0]), tf.equal(columns, shape[1]))
    return tf.ensure_shape(tf.cond(fits, lambda: cut, resized), shape)


def grey(pixels: np.ndarray) -> np.ndarray:
    """Returns RGB pixels, uint8 [H, W, 3], as Pillow makes them grey, [H, W, 1]."""
    return np.asarray(Image.fromarray(pixels).convert("L"))[..., None]
