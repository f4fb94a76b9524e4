"""One image file, read with Pillow."""

from __future__ import annotations

import contextlib
import os
import pathlib
import stat
import threading
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from tfdecouple.data.fitting import fit_image, fit_pixels
from tfdecouple.errors import DataError, one_line
from tfdecouple.image_shapes import CONVERTED, Shape, whole

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


# Pillow keeps pixels in blocks of this size. Freed blocks below 32 MB would stay with the thread that had them.
Image.core.set_block_size(2**26)


class PixelBudget:
    """Pixels that all threads together may have decoded at a time: files that are small can be large in memory.

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


def read_image(path: str, image_shape: int | Shape, centre_crop: int, file: BinaryIO | None = None) -> np.ndarray:
    """Reads an image file, turned upright as its EXIF data say, and returns its centre in the model's shape.

    Of three channels: grey, palette and CMYK images become RGB, transparency is dropped. Of one: all become grey, as
    Pillow makes them ("L"). Of another number the file must have as many: LA, RGBA, CMYK, or an array of NumPy (.npy),
    uint8 [H, W, channels], which may have any number. `fit_image` says how images of another size are resized.

    Args:
        path: of the file.
        image_shape: height, width and channels of the result; a number for a square of RGB.
        centre_crop: pixels along the shorter side to keep; all that fits where it is 0 or there are not so many.
        file: its content, where it lies on no disk; `path` then only names it.

    Returns:
        uint8 [height, width, channels].

    Raises:
        DataError: where the file cannot be read, with its path: it is no regular file, no image of the formats that its
            ending allows, has more than `MOST_PIXELS`, or not the channels of the model.
    """
    shape = whole(image_shape)
    try:
        if pathlib.PurePath(path).suffix.lower() == ARRAY_SUFFIX:
            pixels = _array(path, file, shape[-1])
            with _BUDGET.taken(pixels.shape[0] * pixels.shape[1]):
                return fit_pixels(pixels, shape, centre_crop)
        with _opened(path, file) as opened, _BUDGET.taken(opened.width * opened.height):
            image = opened
            ImageOps.exif_transpose(image, in_place=True)
            if image.mode.startswith("I;16"):
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            if image.mode in _WIDE_MODES:
                raise ValueError(f"its pixels have the mode {image.mode}, not 8 or 16 bits")
            image.info.pop("transparency", None)  # convert() would drop a palette's with a warning.
            return fit_image(_with_channels(image, shape[-1]), shape, centre_crop)
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
    if channels in CONVERTED:
        wanted = CONVERTED[channels]
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


def _opened(path: str, file: BinaryIO | None) -> Image.Image:
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
