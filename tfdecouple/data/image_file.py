"""One image file, read with Pillow."""

from __future__ import annotations

import os
import pathlib
import stat
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from tfdecouple.data.fitting import fit_image
from tfdecouple.errors import DataError, one_line

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
SUFFIXES = tuple(sorted(_FORMATS))
# Of images, too, but not read: whoever has such files is told.
UNREAD_SUFFIXES = (
    *(".avif", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".jxl"),
    *(".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".rw2"),
    *(".exr", ".pbm", ".pnm", ".psd", ".tga"),
)

# Pillow would clip these to 8 bits instead of scaling them.
_WIDE_MODES = ("I", "F")


def read_image(path: str, image_size: int, centre_crop: int, file: BinaryIO | None = None) -> np.ndarray:
    """Reads an image file, turned upright as its EXIF data say, and returns its centre at the model's size.

    Grey, palette and CMYK images become RGB, transparency is dropped. `fit_image` says how images of another
    size are resized.

    Args:
        path: of the file.
        image_size: side S of the result in pixels.
        centre_crop: side in pixels of the centre square to keep; the largest square where it is 0 or does not fit.
        file: its content, where it lies on no disk; `path` then only names it.

    Returns:
        uint8 [S, S, 3].

    Raises:
        DataError: where the file cannot be read, with its path: it is no regular file, no image of the formats that its
            ending allows, or has more than `MOST_PIXELS`.
    """
    try:
        with _opened(path, file) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I;16"):
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            if image.mode in _WIDE_MODES:
                raise ValueError(f"its pixels have the mode {image.mode}, not 8 or 16 bits")
            image.info.pop("transparency", None)  # convert() would drop a palette's with a warning.
            image = image.convert("RGB")
    # Pillow's readers raise nearly anything at a damaged file: OSError, SyntaxError, ValueError, struct.error ...
    except Exception as error:
        raise DataError(
            f"cannot read the image {path}: {one_line(error)}; mend or remove it, "
            "or data.on_bad_image=skip skips such files"
        ) from error
    return fit_image(image, image_size, centre_crop)


def _opened(path: str, file: BinaryIO | None) -> Image.Image:
    """Returns an image of which only the header was read.

    Raises:
        ValueError: where it is refused. Pillow raises other errors.
    """
    if file is None and not stat.S_ISREG(os.stat(path).st_mode):
        # A pipe would be waited for without an end.
        raise ValueError("it is no regular file")
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
