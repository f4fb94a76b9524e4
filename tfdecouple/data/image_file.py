"""Image files, read with Pillow and fitted to the model: the one way in which training, commands and clients do it.

The centre of an image in the proportions of the model's is cut out and resized. The arithmetic is that of Pillow's
filter BILINEAR on 8-bit pixels: a triangle as wide as two pixels of the smaller of the two images, first along the
rows, then along the columns, each result rounded to 8 bits. `export/page/resize.js` does the same in JavaScript, to the
byte.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pathlib
import stat
import threading
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
import tensorflow as tf
from PIL import Image, ImageOps, UnidentifiedImageError

from tfdecouple.config.shapes import PILLOW_MODES, RGB_CHANNELS, Shape, describe_channels
from tfdecouple.errors import DataError, one_line


def resize_said(image_shape: Shape) -> str:
    """Returns what exported files and cards say of how images are resized."""
    channels = image_shape[-1]
    of = describe_channels(channels) if channels in PILLOW_MODES else "pixels, each channel by itself"
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


def fit_image(image: Image.Image, image_shape: Shape, centre_crop: int) -> np.ndarray:
    """Returns the centre of an image in the model's shape; an image of the right size passes bit for bit.

    Args:
        image: of the model's channels: RGB for three of them, L for one, RGBA or CMYK for four, LA for two.
        image_shape: height, width and channels of the result.
        centre_crop: as for `centre_box`.

    Returns:
        uint8 [height, width, channels].
    """
    return fit_pixels(np.asarray(image), image_shape, centre_crop)


def fit_pixels(pixels: np.ndarray, image_shape: Shape, centre_crop: int) -> np.ndarray:
    """As `fit_image`, of pixels, uint8 [H, W, channels], or [H, W] for one channel."""
    top, left, rows, columns = centre_box(pixels.shape[0], pixels.shape[1], image_shape, centre_crop)
    return _resized(pixels[top : top + rows, left : left + columns], image_shape)


def _resized(pixels: np.ndarray, shape: Shape) -> np.ndarray:
    height, width, channels = shape
    if pixels.shape[:2] == (height, width):
        return pixels.reshape(shape)

    def resized(part: np.ndarray) -> np.ndarray:
        image = Image.fromarray(np.ascontiguousarray(part))
        return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))

    if channels == RGB_CHANNELS:
        return resized(pixels)
    # Each channel by itself: Pillow would take the last of four for how much the others count.
    every = pixels.reshape(*pixels.shape[:2], channels)
    return np.stack([resized(every[..., channel]) for channel in range(channels)], -1)


def fit(image: tf.Tensor, image_shape: Shape, centre_crop: int) -> tf.Tensor:
    """Returns the centre of an image in the model's shape, as `fit_image` does, within a tf.data pipeline.

    Args:
        image: uint8 [H, W, channels], the channels known statically: those of the model, or 1, which are repeated.
        image_shape: height, width and channels of the result.
        centre_crop: as for `centre_box`.

    Returns:
        uint8 [height, width, channels].
    """
    if image.shape[-1] == 1 and image_shape[-1] == RGB_CHANNELS:
        image = tf.image.grayscale_to_rgb(image)
    if image.shape[-1] == RGB_CHANNELS and image_shape[-1] == 1:
        image = tf.numpy_function(grey, [image], tf.uint8, stateful=False)
    top, left, rows, columns = centre_box(tf.shape(image)[0], tf.shape(image)[1], image_shape, centre_crop)
    cut = image[top : top + rows, left : left + columns]

    def resized() -> tf.Tensor:
        # tf.image.resize rounds once, where Pillow rounds twice: a tenth of the values would differ by one level.
        return tf.numpy_function(lambda pixels: _resized(pixels, image_shape), [cut], tf.uint8, stateful=False)

    fits = tf.logical_and(tf.equal(rows, image_shape[0]), tf.equal(columns, image_shape[1]))
    return tf.ensure_shape(tf.cond(fits, lambda: cut, resized), image_shape)


def grey(pixels: np.ndarray) -> np.ndarray:
    """Returns RGB pixels, uint8 [H, W, 3], as Pillow makes them grey, [H, W, 1]."""
    return np.asarray(Image.fromarray(pixels).convert("L"))[..., None]


# Pixels that a file may have, 400 MB as RGB: few cameras take more, and a small file can claim any number.
MOST_PIXELS = 2**27

# What a file is opened as, by its ending: formats that need no other program. The common ones are often mistaken for
# each other in names, so the content decides between them; where the ending says nothing, between all.
_COMMON = ("BMP", "GIF", "JPEG", "PNG", "WEBP")
_FORMATS = {
    **dict.fromkeys((".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp"), _COMMON),
    **dict.fromkeys((".pgm", ".ppm"), ("PPM",)),
    **dict.fromkeys((".tif", ".tiff"), ("TIFF",)),
}
# Pixels as NumPy saves them, for images of more channels than the others take.
ARRAY_SUFFIX = ".npy"
SUFFIXES = tuple(sorted((*_FORMATS, ARRAY_SUFFIX)))
# Of images, too, but not read: whoever has such files is told.
UNREAD_SUFFIXES = (
    *(".avif", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".jxl"),
    *(".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".rw2"),
    *(".exr", ".pbm", ".pnm", ".psd", ".tga"),
)

# Pillow would clip these to 8 bits instead of scaling them.
_WIDE_MODES = ("I", "F")


@functools.cache
def _use_large_blocks() -> None:
    """Has Pillow keep pixels in blocks of 64 MiB: freed ones below 32 MB would stay with the thread that had them."""
    Image.core.set_block_size(2**26)


class PixelBudget:
    """A limit on the pixels that all threads together hold decoded: a small file can be large in memory.

    Args:
        pixels: the budget; no image has more.
    """

    def __init__(self, pixels: int) -> None:
        self._free = pixels
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def taken(self, pixels: int) -> Iterator[None]:
        """Waits until so many pixels are free, and takes them while it is entered."""
        with self._changed:
            self._changed.wait_for(lambda: pixels <= self._free)
            self._free -= pixels
        try:
            yield
        finally:
            with self._changed:
                self._free += pixels
                self._changed.notify_all()


_BUDGET = PixelBudget(MOST_PIXELS)


def read_image(path: str, image_shape: Shape, centre_crop: int, file: BinaryIO | None = None) -> np.ndarray:
    """Reads an image file, turned upright as its EXIF data say, and returns its centre in the model's shape.

    Of three channels: grey, palette and CMYK images become RGB, transparency is dropped. Of one: all become grey, as
    Pillow makes them ("L"). Of another number the file must have as many: LA, RGBA, CMYK, or an array of NumPy (.npy),
    uint8 [H, W, channels], which may have any number. `fit_image` says how images of another size are resized.

    Args:
        path: of the file.
        image_shape: height, width and channels of the result.
        centre_crop: pixels along the shorter side to keep; all that fits where it is 0 or there are not so many.
        file: its content, where it lies on no disk; `path` then only names it.

    Returns:
        uint8 [height, width, channels].

    Raises:
        DataError: where the file cannot be read, with its path: it is no regular file, no image of the formats that its
            ending allows, has more than `MOST_PIXELS`, or not the channels of the model.
    """
    _use_large_blocks()
    try:
        if pathlib.PurePath(path).suffix.lower() == ARRAY_SUFFIX:
            pixels = _array(path, file, image_shape[-1])
            with _BUDGET.taken(pixels.shape[0] * pixels.shape[1]):
                return fit_pixels(pixels, image_shape, centre_crop)
        with open_image(path, file) as opened, _BUDGET.taken(opened.width * opened.height):
            image = opened
            ImageOps.exif_transpose(image, in_place=True)
            if image.mode.startswith("I;16"):
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            if image.mode in _WIDE_MODES:
                raise ValueError(f"its pixels have the mode {image.mode}, not 8 or 16 bits")
            image.info.pop("transparency", None)  # convert() would drop a palette's with a warning.
            return fit_image(_with_channels(image, image_shape[-1]), image_shape, centre_crop)
    # Pillow's readers raise nearly anything at a damaged file: OSError, SyntaxError, ValueError, struct.error ...
    except Exception as error:
        raise DataError(
            f"cannot read the image {path}: {one_line(error)}; mend or remove it, "
            "or data.on_bad_image=skip skips such files"
        ) from error


def _with_channels(image: Image.Image, channels: int) -> Image.Image:
    """Returns an image with so many channels.

    Raises:
        ValueError: where it has others than the model, and they are no colours to be converted.
    """
    if channels in PILLOW_MODES:
        wanted = PILLOW_MODES[channels]
        return image if image.mode == wanted else image.convert(wanted)
    bands = image.getbands()
    if len(bands) != channels:
        raise ValueError(
            f"it has {len(bands)} channels ({', '.join(bands)}), and the model's images have {channels} "
            "(model.image_shape)"
        )
    return image


def _array(path: str, file: BinaryIO | None, channels: int) -> np.ndarray:
    """Returns the pixels of a file of NumPy, uint8 [H, W, channels].

    Raises:
        ValueError: where it holds something else.
    """
    if file is None:
        _require_regular(path)
    # An array that is mapped claims no memory: its header may say any size.
    pixels = np.load(path if file is None else file, mmap_mode="r" if file is None else None, allow_pickle=False)
    if not isinstance(pixels, np.ndarray):
        raise ValueError("it is an archive of several arrays; save one")
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[-1] != channels or not pixels.size:
        raise ValueError(
            f"it holds {pixels.dtype} {list(pixels.shape)}, and the model takes uint8 [height, width, {channels}] "
            "(model.image_shape)"
        )
    if pixels.shape[0] * pixels.shape[1] > MOST_PIXELS:
        raise ValueError(f"it has {pixels.shape[1]} x {pixels.shape[0]} pixels, more than {MOST_PIXELS:,}")
    return pixels


def _require_regular(path: str) -> None:
    if not stat.S_ISREG(os.stat(path).st_mode):
        # A pipe would be waited for without an end.
        raise ValueError("it is no regular file")


def open_image(path: str, file: BinaryIO | None = None) -> Image.Image:
    """Returns an image of which only the header was read.

    Raises:
        ValueError: where it is refused. Pillow raises other errors.
    """
    if file is None:
        _require_regular(path)
    formats = _FORMATS.get(pathlib.PurePath(path).suffix.lower(), (*_COMMON, "PPM", "TIFF"))
    try:
        image = Image.open(path if file is None else file, formats=formats)
    except UnidentifiedImageError:
        raise ValueError(f"it is no image of the formats {', '.join(formats)}") from None
    except Image.DecompressionBombError:
        raise ValueError(f"it has more than {MOST_PIXELS:,} pixels") from None
    if image.width * image.height > MOST_PIXELS:
        image.close()
        raise ValueError(f"it has {image.width} x {image.height} pixels, more than {MOST_PIXELS:,}")
    return image
