"""Functions for images of another size than the model's: shrinking, padding, checks, and the memory for them.

The flow and the dequantizer consist of convolutions, which work at any size. The encoder of z ends in a dense layer,
which works at one size only. So z is the code of the image shrunk to the size of the model's images, and v is the
output of the flow for the padded image, given this z.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Any, NamedTuple

import tensorflow as tf

from tfdecouple.config import ModelConfig
from tfdecouple.errors import DataError, UserError
from tfdecouple.networks.architecture import compute_weight_shapes, count_inference_bytes
from tfdecouple.runtime.devices import format_bytes, read_free_memory
from tfdecouple.runtime.numerics import get_sizes
from tfdecouple.runtime.precision import full_float32

# Longest side in pixels for which float32 holds all sums in `shrink_images` exactly.
LONGEST_SIDE = 32_767
# Largest number of pixels that are encoded or decoded at once, unless a single image has more.
_PIXELS_AT_ONCE = 2**20


class SizedCodes(NamedTuple):
    """The codes of images of another size than the model's; `decode(*codes)` returns the images.

    Attributes:
        z: the global code of the image shrunk to the model's size, float32 `[batch, d_z]`; None for a model without z.
        v: the local code of the padded image, float32 `[batch, padded height, padded width, channels]`.
        size: height and width of the images.
    """

    z: tf.Tensor | None
    v: tf.Tensor
    size: tuple[Any, Any]


@full_float32()
def shrink_images(images: tf.Tensor, height: int, width: int) -> tf.Tensor:
    """Returns images at another size, with each new pixel the average of the area that the new pixel covers.

    Columns of pixels are averaged first, then rows, and each average is rounded to a whole number, halves upwards. All
    sums are whole numbers that float32 holds exactly for sides up to `LONGEST_SIDE`, so every device and runtime
    computes the same pixels. All operations can be exported from TensorFlow graphs. Images are uint8
    `[batch, height, width, channels]`.

    >>> shrink_images(tf.constant([0, 1, 4, 8], tf.uint8)[None, :, None, None], 2, 1).numpy().ravel().tolist()
    [1, 6]
    """
    batch, rows, columns, channels = get_sizes(images)
    x = tf.reshape(tf.cast(images, tf.float32), [batch, rows, columns * channels])
    x = tf.reshape(_average_second_axis(x, height), [batch * height, columns, channels])
    return tf.cast(tf.reshape(_average_second_axis(x, width), [batch, height, width, channels]), tf.uint8)


def _average_second_axis(x: tf.Tensor, count: int) -> tf.Tensor:
    """Returns rounded averages `[n, count, k]` of `count` equal parts of the second axis of x `[n, length, k]`."""
    length = get_sizes(x)[1]
    # In units where old pixels have length `count` and new pixels `length`, all borders are whole numbers.
    old, new = tf.range(length + 1) * count, tf.range(count + 1)[:, None] * length
    shared = tf.maximum(tf.minimum(old[1:], new[1:]) - tf.maximum(old[:-1], new[:-1]), 0)
    total, length = tf.matmul(tf.cast(shared, tf.float32), x), tf.cast(length, tf.float32)
    return tf.floor((2 * total + length) / (2 * length))


def pad_and_shrink_images(config: ModelConfig, images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns `images` padded for the flow, and `images` shrunk for the encoder."""
    if images.shape[1:3] == config.image_shape[:2]:
        return images, images
    return pad_images(images, compute_size_multiple(config)), shrink_images(images, *config.image_shape[:2])


def pad_images(images: tf.Tensor, multiple: int) -> tf.Tensor:
    """Returns images padded to sides that are multiples of a number, by repeating the last row and column."""
    for axis, side in enumerate(get_sizes(images)[1:3], 1):
        padded = round_side_up(side, multiple)
        if not (isinstance(side, int) and side == padded):
            images = tf.gather(images, tf.minimum(tf.range(padded), side - 1), axis=axis)
    return images


def round_side_up(side: Any, multiple: int) -> Any:
    """Returns the smallest multiple of a number that is at least `side`, a number or a tensor."""
    # ONNX rounds quotients towards zero, which is rounding down for this positive quotient.
    return (side + multiple - 1) // multiple * multiple


@functools.lru_cache(maxsize=8)
def compute_size_multiple(config: ModelConfig) -> int:
    """Returns the number of which height and width must be multiples, so that the networks can halve them.

    >>> compute_size_multiple(ModelConfig(image_shape=(32, 32, 3), steps=(2, (6, 6), (6, 6), 4)))
    8
    """
    stages = itertools.chain(*config.levels, *config.dequantization_levels)
    halvings = len(config.dequantization_encoder_channels) if config.has_dequantizer else 0
    # All these numbers are powers of 2, so the largest number is a multiple of all.
    return max(2**halvings, *(stage.reduction for stage in stages))


@functools.lru_cache(maxsize=8)
def find_weight_of_fixed_size(config: ModelConfig) -> str:
    """Returns the name of a weight outside the encoder whose shape depends on the image size; "" if there is none."""
    height, width, channels = config.image_shape
    larger = dataclasses.replace(config, image_shape=(2 * height, 2 * width, channels))
    other = compute_weight_shapes(larger)
    fixed = (name for name, shape in compute_weight_shapes(config).items() if shape != other[name])
    return next((name for name in fixed if not name.startswith("encoder/")), "")


def require_any_size(config: ModelConfig, name: str, array: Any) -> None:
    """Raises DataError if a model cannot work on an array of another size than that of its images.

    This is so if the shape of a weight depends on the image size, or a side is longer than `LONGEST_SIDE`. The array
    holds images or local codes, `[batch, height, width, channels]`; `name` is its name in the message.
    """
    shape, needed = tuple(array.shape), f"[batch, {', '.join(map(str, config.image_shape))}]"
    if weight := find_weight_of_fixed_size(config):
        raise DataError(
            f"{name} is of shape {shape}; this model needs {needed}, for its weight {weight} has the size of its images"
        )
    if max(side or 0 for side in shape[1:3]) > LONGEST_SIDE:
        raise DataError(f"{name} is of shape {shape}; sides of images can have at most {LONGEST_SIDE:,} pixels")


def count_images_at_once(config: ModelConfig, height: int, width: int) -> int:
    """Returns the number of images of a size that are encoded or decoded at once, at least 1.

    An image that needs more memory than is free raises UserError.
    """
    needed, free = count_inference_bytes(config, height, width), read_free_memory()
    if needed > free:
        scale = (free / needed) ** 0.5
        raise UserError(
            f"an image of {width} x {height} pixels takes {format_bytes(needed)} of memory with this model; "
            f"{format_bytes(free)} are free: shrink it to {int(scale * width)} x {int(scale * height)} pixels or less"
        )
    return max(1, min(_PIXELS_AT_ONCE // (height * width), free // needed))
