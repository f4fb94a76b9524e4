"""Images of another size than `config.image_shape`: resizing, padding, checks of size and of memory.

The flow and the dequantizer consist of convolutions, which work at any size. The encoder of z ends in a dense layer,
which works at one size only. So z is the code of the image resized to `config.image_shape`, and v is the output of the
flow, given this z, for the image padded to sides that the flow can halve.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import tensorflow as tf

from tfdecouple.arguments import ArrayLike, as_images, as_whole_number
from tfdecouple.errors import DataError, UserError
from tfdecouple.networks.architecture import Architecture
from tfdecouple.numerics.arithmetic import get_sizes
from tfdecouple.numerics.tf32 import full_float32
from tfdecouple.system.devices import format_bytes, read_free_memory

T = TypeVar("T")

# Height and width of images, in pixels: numbers, or scalar tensors while a graph is traced for any size.
Size = tuple[int | tf.Tensor, int | tf.Tensor]
# Longest side of an image, in pixels, for which float32 holds all sums in `shrink_images` exactly.
LONGEST_SIDE = 32_767
# Images are encoded and decoded in groups of at most this many pixels; a larger image is a group of its own.
_PIXELS_AT_ONCE = 2**20


class FittedImages(NamedTuple):
    """Images of any size, fitted to the networks of a model.

    Attributes:
        padded: the images for the flow, uint8 `[batch, height, width, channels]`, with sides that it can halve.
        shrunk: the images for the encoder, resized to `config.image_shape`; the object `padded` if that is their size.
        size: height and width of the images without padding.
    """

    padded: tf.Tensor
    shrunk: tf.Tensor
    size: Size


class AnySize:
    """What a model does with images of any size: it pads, resizes and checks them, and runs within the free memory."""

    def __init__(self, architecture: Architecture):
        self._architecture, self._config = architecture, architecture.config

    @functools.cached_property
    def multiple(self) -> int:
        """The int that must divide an image's height and width, so that flow and dequantizer can halve the image.

        >>> from tfdecouple.config import ModelConfig
        >>> AnySize(Architecture(ModelConfig(image_shape=(32, 32, 3), steps=(2, (6, 6), (6, 6), 4)))).multiple
        8
        """
        config = self._config
        halvings = len(config.dequantization_encoder_channels) if config.has_dequantizer else 0
        # All factors by which the networks reduce an image are powers of 2, so the largest is a multiple of all.
        return max(2**halvings, *(stage.reduction for stage in self._architecture.stages))

    @functools.cached_property
    def weight_of_fixed_size(self) -> str:
        """The path of a weight outside the encoder whose shape depends on the image size; "" if there is none."""
        height, width, channels = self._config.image_shape
        larger = dataclasses.replace(self._config, image_shape=(2 * height, 2 * width, channels))
        other = Architecture(larger).compute_weight_shapes()
        fixed = (name for name, shape in self._architecture.compute_weight_shapes().items() if shape != other[name])
        return next((name for name in fixed if not name.startswith("encoder/")), "")

    def fit_images(self, images: ArrayLike) -> FittedImages:
        """Returns uint8 images as `FittedImages`; raises DataError if the model cannot encode images of their size."""
        images = as_images(images, self._config.image_shape, any_size=True)
        if not self._has_own_size(images):
            self._require_any_size("images", images)
        height, width = get_sizes(images)[1:3]
        return FittedImages(*self.pad_and_shrink_images(images), (height, width))

    def pad_and_shrink_images(self, images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns uint8 images padded for the flow, and the images resized to `config.image_shape` for the encoder."""
        if self._has_own_size(images):
            return images, images
        return pad_images(images, self.multiple), shrink_images(images, *self._config.image_shape[:2])

    def require_fitting_size(self, v: tf.Tensor, size: Size | None) -> None:
        """Raises DataError if the model cannot decode v, or UserError if v is not of the shape for images of `size`."""
        if not self._has_own_size(v):
            self._require_any_size("v", v)
        if size is not None and not any(map(tf.is_tensor, size)):
            padded = [round_side_up(as_whole_number(side, "a side in size"), self.multiple) for side in size]
            if not v.shape[1:3].is_compatible_with(padded):
                raise UserError(
                    f"size is {tuple(size)}, for which v is [batch, *{padded}, ...]; it is {tuple(v.shape)}"
                )

    def _has_own_size(self, array: tf.Tensor) -> bool:
        return array.shape[1:3] == self._config.image_shape[:2]

    def _require_any_size(self, name: str, array: tf.Tensor) -> None:
        """Raises DataError if the model accepts images of `config.image_shape` only, or a side of `array` is too long.

        If the shape of a weight outside the encoder depends on the image size, the model accepts one size only. A side
        is too long above `LONGEST_SIDE`. `array` is images or local codes, `[batch, height, width, channels]`, which
        the message calls `name`.
        """
        shape, needed = tuple(array.shape), f"[batch, {', '.join(map(str, self._config.image_shape))}]"
        if self.weight_of_fixed_size:
            raise DataError(
                f"{name} is of shape {shape}; this model accepts only {needed}, because the shape of its weight "
                f"{self.weight_of_fixed_size} depends on the image size"
            )
        if max(side or 0 for side in shape[1:3]) > LONGEST_SIDE:
            raise DataError(f"{name} is of shape {shape}; sides of images can have at most {LONGEST_SIDE:,} pixels")

    def run_within_memory(self, function: Callable[..., T], batch: tf.Tensor, *others: tf.Tensor) -> T:
        """Returns `function(batch, *others)`, computed for so few images at a time that the computation fits in memory.

        The function must treat each image separately; `others` are tensors `[batch, ...]` or None. Only images of
        another size than `config.image_shape` are divided, and not while a graph is traced.
        """
        if not tf.executing_eagerly() or self._has_own_size(batch):
            return function(batch, *others)
        count = self.count_images_at_once(*batch.shape[1:3])
        return function(batch, *others) if batch.shape[0] <= count else run_in_parts(function, count, batch, *others)

    def count_images_at_once(self, height: int, width: int) -> int:
        """Returns how many images of this size are processed at once; UserError if memory is too small for one."""
        needed, free = self._architecture.count_inference_bytes(height, width), read_free_memory()
        if needed > free:
            scale = (free / needed) ** 0.5
            raise UserError(
                f"an image of {width} x {height} pixels takes {format_bytes(needed)} of memory with this model; "
                f"{format_bytes(free)} are free: shrink it to {int(scale * width)} x {int(scale * height)} pixels or "
                "less"
            )
        return max(1, min(_PIXELS_AT_ONCE // (height * width), free // needed))


def find_both_bins(
    find_bins: Callable[[tf.Tensor], tf.Tensor], padded: tf.Tensor, shrunk: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the bins of `padded` and of `shrunk`, computed only once if both are the same tensor."""
    bins = find_bins(padded)
    return bins, bins if shrunk is padded else find_bins(shrunk)


def run_in_parts(function: Callable[..., T], count: int, *batches: tf.Tensor | None) -> T:
    """Calls `function` on `count` entries at a time of `batches`, each `[n, ...]` or None; returns joined results."""
    size = next(batch.shape[0] for batch in batches if batch is not None)
    slices = [slice(start, start + count) for start in range(0, size, count)]
    parts = [function(*(None if batch is None else batch[part] for batch in batches)) for part in slices]
    return tf.nest.map_structure(lambda *results: None if results[0] is None else tf.concat(results, 0), *parts)


@full_float32()
def shrink_images(images: tf.Tensor, height: int, width: int) -> tf.Tensor:
    """Resizes uint8 images `[batch, rows, columns, channels]` by averaging the area that each new pixel covers.

    Means along the height are computed first, then along the width; each is rounded to a whole number, halves upwards.
    All sums are whole numbers that float32 holds exactly for sides up to `LONGEST_SIDE`, so every device and runtime
    computes the same pixels. All operations can be exported to ONNX.

    >>> shrink_images(tf.constant([0, 1, 4, 8], tf.uint8)[None, :, None, None], 2, 1).numpy().ravel().tolist()
    [1, 6]
    """
    batch, rows, columns, channels = get_sizes(images)
    x = tf.reshape(tf.cast(images, tf.float32), [batch, rows, columns * channels])
    x = tf.reshape(_average_second_axis(x, height), [batch * height, columns, channels])
    return tf.cast(tf.reshape(_average_second_axis(x, width), [batch, height, width, channels]), tf.uint8)


def _average_second_axis(x: tf.Tensor, count: int) -> tf.Tensor:
    """Divides the second axis of x `[n, length, k]` into `count` parts; returns their rounded means `[n, count, k]`."""
    length = get_sizes(x)[1]
    # In units in which an old pixel is `count` long and a new pixel `length`, all pixel borders are whole numbers.
    old, new = tf.range(length + 1) * count, tf.range(count + 1)[:, None] * length
    shared = tf.maximum(tf.minimum(old[1:], new[1:]) - tf.maximum(old[:-1], new[:-1]), 0)
    total, length = tf.matmul(tf.cast(shared, tf.float32), x), tf.cast(length, tf.float32)
    return tf.floor((2 * total + length) / (2 * length))


def pad_images(images: tf.Tensor, multiple: int) -> tf.Tensor:
    """Pads images, by repeating the last row and column, to a height and a width divisible by `multiple`."""
    for axis, side in enumerate(get_sizes(images)[1:3], 1):
        padded = round_side_up(side, multiple)
        if not (isinstance(side, int) and side == padded):
            images = tf.gather(images, tf.minimum(tf.range(padded), side - 1), axis=axis)
    return images


def round_side_up(side: int | tf.Tensor, multiple: int) -> int | tf.Tensor:
    """Returns `side`, an int or an integer tensor, rounded up to a multiple of `multiple`."""
    # ONNX rounds quotients towards zero and Python rounds them down, which is the same for this positive quotient.
    return (side + multiple - 1) // multiple * multiple
