"""Image files, read with Pillow and fitted to the model: the one way of training, commands and exported clients.

The centre of an image, in the proportions of the model's images, is cut out and resized as Pillow's filter BILINEAR
does it on 8-bit pixels: a triangle as wide as two pixels of the smaller of the two images, first along the rows, then
along the columns, each result rounded to 8 bits. `export/page/resize.js` does the same in JavaScript, to the byte.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pathlib
import stat
import threading
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
import tensorflow as tf
from PIL import Image, ImageOps, UnidentifiedImageError

from tfdecouple.config.shapes import PILLOW_MODES, RGB_CHANNELS, Shape, describe_channels
from tfdecouple.errors import DataError, one_line

# 400 MB as RGB: few cameras take more pixels, and a small file can claim any number.
MOST_PIXELS = 2**27

# The formats as which a file may be opened, by its ending; none of them needs another program. File names often mistake
# the common formats for each other, so the content decides between these, and without a known ending between all.
_COMMON = ("BMP", "GIF", "JPEG", "PNG", "WEBP")
_FORMATS = {
    **dict.fromkeys((".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp"), _COMMON),
    **dict.fromkeys((".pgm", ".ppm"), ("PPM",)),
    **dict.fromkeys((".tif", ".tiff"), ("TIFF",)),
}
# Files of NumPy, for images with more channels than image files have.
ARRAY_SUFFIX = ".npy"
SUFFIXES = tuple(sorted((*_FORMATS, ARRAY_SUFFIX)))
# Endings of image files that are not read; users who have such files are told.
UNREAD_SUFFIXES = (
    *(".avif", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".jxl"),
    *(".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".rw2"),
    *(".exr", ".pbm", ".pnm", ".psd", ".tga"),
)


def describe_resizing(image_shape: Shape) -> str:
    """Returns how images are resized, for exported files and cards."""
    channels = image_shape[-1]
    kind = describe_channels(channels) if channels in PILLOW_MODES else "pixels, each channel by itself"
    return (
        f"bilinear with antialiasing: Pillow's Image.resize(size, BILINEAR) on 8-bit {kind}; an image of the right "
        "size passes"
    )


def describe_cropping(image_shape: Shape, centre_crop: int) -> str:
    """Returns how images are cropped, for exported files and cards; its only number, if any, is `centre_crop`."""
    if image_shape[0] == image_shape[1]:
        return f"centre square of {centre_crop} pixels, or the largest" if centre_crop else "largest centre square"
    centre = "centre in the proportions of the model's images"
    return (
        f"{centre}, {centre_crop} pixels along its shorter side, or the largest" if centre_crop else f"largest {centre}"
    )


def centre_box(height: int, width: int, image_shape: Shape, centre_crop: int) -> tuple[int, int, int, int]:
    """Returns the rectangle to cut out of an image: the first row and column, and the numbers of rows and columns.

    Args:
        height: of the image in pixels.
        width: likewise.
        image_shape: shape of the model's images, whose proportions the rectangle has.
        centre_crop: pixels along the shorter side to keep, where there are so many; 0 for all that fits.

    >>> centre_box(100, 300, (32, 32, 3), 0)
    (0, 100, 100, 100)
    >>> centre_box(100, 300, (48, 64, 3), 0), centre_box(100, 300, (48, 64, 3), 60)
    ((0, 83, 100, 133), (20, 110, 60, 80))
    """
    rows_as, columns_as, _ = image_shape
    rows = min(height, max(width * rows_as // columns_as, 1))
    columns = min(width, max(height * columns_as // rows_as, 1))
    if centre_crop:
        shorter = min(rows_as, columns_as)
        rows = min(rows, centre_crop * rows_as // shorter)
        columns = min(columns, centre_crop * columns_as // shorter)
    return (height - rows) // 2, (width - columns) // 2, rows, columns


def fit_pixels(pixels: np.ndarray, image_shape: Shape, centre_crop: int) -> np.ndarray:
    """Returns the centre of an image in the model's shape; an image of the right size passes bit for bit.

    Args:
        pixels: uint8 [H, W, channels], or [H, W] for one channel.
        image_shape: height, width and channels of the result; (0, 0, channels) for all pixels, neither cropped nor
            resized.
        centre_crop: see `centre_box`.

    Returns:
        uint8 [height, width, channels].
    """
    if image_shape[:2] == (0, 0):
        return pixels.reshape(*pixels.shape[:2], image_shape[2])
    top, left, rows, columns = centre_box(pixels.shape[0], pixels.shape[1], image_shape, centre_crop)
    return _resize(pixels[top : top + rows, left : left + columns], image_shape)


def _resize(pixels: np.ndarray, image_shape: Shape) -> np.ndarray:
    height, width, channels = image_shape
    if pixels.shape[:2] == (height, width):
        return pixels.reshape(image_shape)

    def resize(part: np.ndarray) -> np.ndarray:
        image = Image.fromarray(np.ascontiguousarray(part))
        return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))

    if channels == RGB_CHANNELS:
        return resize(pixels)
    # Each channel is resized alone: Pillow would take the last of four as the weight of the others.
    pixels = pixels.reshape(*pixels.shape[:2], channels)
    return np.stack([resize(pixels[..., channel]) for channel in range(channels)], -1)


def fit_tensor(image: tf.Tensor, image_shape: Shape, centre_crop: int) -> tf.Tensor:
    """Returns the centre of an image in the model's shape, as `fit_pixels` does, within a tf.data pipeline.

    Args:
        image: uint8 [H, W, channels], the channels known statically: as in `image_shape`, or grey for RGB, or RGB for
            grey.
        image_shape: height, width and channels of the result.
        centre_crop: see `centre_box`.

    Returns:
        uint8 [height, width, channels].
    """
    if image.shape == image_shape and not centre_crop:
        return image

    def convert_and_fit(pixels: np.ndarray) -> np.ndarray:
        if pixels.shape[-1] != image_shape[-1]:
            mode = PILLOW_MODES[image_shape[-1]]
            pixels = np.asarray(Image.fromarray(pixels.squeeze(-1) if mode == "RGB" else pixels).convert(mode))
        return fit_pixels(pixels, image_shape, centre_crop)

    # tf.image.resize rounds once, where Pillow rounds twice: a tenth of the values would differ by 1.
    return tf.ensure_shape(tf.numpy_function(convert_and_fit, [image], tf.uint8, stateful=False), image_shape)


class PixelBudget:
    """A limit on the pixels that all threads together hold decoded: a small file can be large in memory.

    Args:
        pixels: the limit, which no single image exceeds.
    """

    def __init__(self, pixels: int) -> None:
        self._free = pixels
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def taken(self, pixels: int) -> Iterator[None]:
        """Waits until so many pixels are free, and takes them while the context is entered."""
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


@functools.cache
def _use_large_blocks() -> None:
    """Sets Pillow's block size to 64 MiB: smaller freed blocks would stay with the thread that had them."""
    Image.core.set_block_size(2**26)


def read_image(path: str, image_shape: Shape, centre_crop: int, file: BinaryIO | None = None) -> np.ndarray:
    """Reads an image file, turned upright by its EXIF data, and returns its centre in the model's shape.

    For three channels, grey, palette and CMYK images become RGB and transparency is dropped. For one channel, all
    images become grey, as Pillow's "L". For any other number the file must have that number of channels: LA, RGBA,
    CMYK, or an array of NumPy (.npy), uint8 [H, W, channels]. See `fit_pixels` for images of another size.

    Args:
        path: of the file.
        image_shape: height, width and channels of the result, as for `fit_pixels`.
        centre_crop: see `centre_box`.
        file: the open file, where it is not on a disk; `path` then only names it.

    Returns:
        uint8 [height, width, channels].

    Raises:
        DataError: where the file cannot be read, with its path: it is no regular file, no image of the formats that its
            ending allows, has more than `MOST_PIXELS`, or not the channels of the model.
    """
    _use_large_blocks()
    channels = image_shape[-1]
    try:
        if pathlib.PurePath(path).suffix.lower() == ARRAY_SUFFIX:
            pixels = _open_array(path, file, channels)
            with _BUDGET.taken(_count_pixels(pixels.shape[1], pixels.shape[0])):
                return fit_pixels(pixels, image_shape, centre_crop)
        with open_image(path, file) as opened, _BUDGET.taken(opened.width * opened.height):
            image: Image.Image = opened
            ImageOps.exif_transpose(image, in_place=True)
            # Pillow would clip more than 8 bits instead of scaling them.
            if image.mode.startswith("I;16"):
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            if image.mode in ("I", "F"):
                raise ValueError(f"its pixels have the mode {image.mode}, not 8 or 16 bits")
            image.info.pop("transparency", None)  # convert() would drop a palette's with a warning.
            if channels in PILLOW_MODES:
                mode = PILLOW_MODES[channels]
                image = image if image.mode == mode else image.convert(mode)
            elif len(bands := image.getbands()) != channels:
                raise ValueError(
                    f"it has {len(bands)} channels ({', '.join(bands)}), and the model's images have {channels} "
                    "(model.image_shape)"
                )
            return fit_pixels(np.asarray(image), image_shape, centre_crop)
    # Pillow raises nearly anything for a damaged file: OSError, SyntaxError, ValueError, struct.error ...
    except Exception as error:
        raise DataError(
            f"cannot read the image {path}: {one_line(error)}; mend or remove it, "
            "or data.on_bad_image=skip skips such files"
        ) from error


def _open_array(path: str, file: BinaryIO | None, channels: int) -> np.ndarray:
    """Returns the pixels of a file of NumPy, uint8 [H, W, channels]; ValueError where it holds something else."""
    if file is None:
        _require_regular(path)
    # A mapped array claims no memory: the header may state any size.
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
    return pixels


def open_image(path: str, file: BinaryIO | None = None) -> Image.Image:
    """Returns an image whose header alone was read.

    Raises:
        ValueError: where the file is refused. Pillow raises other errors.
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
    try:
        _count_pixels(*image.size)
    except ValueError:
        image.close()
        raise
    return image


def _require_regular(path: str) -> None:
    if not stat.S_ISREG(os.stat(path).st_mode):
        # Reading from a pipe would wait for ever.
        raise ValueError("it is no regular file")


def _count_pixels(width: int, height: int) -> int:
    if width * height > MOST_PIXELS:
        raise ValueError(f"it has {width} x {height} pixels, more than {MOST_PIXELS:,}")
    return width * height
