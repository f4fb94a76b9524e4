"""One image file, read with Pillow."""

from __future__ import annotations

from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from tfdecouple.data.fitting import centre_square
from tfdecouple.data.messages import one_line
from tfdecouple.errors import DataError

# Pillow would clip these to 8 bits instead of scaling them.
_WIDE_MODES = ("I", "F")


def read_image(path: str, image_size: int, centre_crop: int, file: BinaryIO | None = None) -> np.ndarray:
    """Reads an image file, turned upright as its EXIF data say, and returns its centre at the model's size.

    Grey, palette and CMYK images become RGB, transparency is dropped. An image of the right size is not resampled;
    others are resized bilinearly with antialiasing.

    Args:
        path: of the file.
        image_size: side S of the result in pixels.
        centre_crop: side in pixels of the centre square to keep; the largest square where it is 0 or does not fit.
        file: its content, where it lies on no disk; `path` then only names it.

    Returns:
        uint8 [S, S, 3].

    Raises:
        DataError: where the file cannot be read, with its path.
    """
    try:
        with Image.open(path if file is None else file) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I;16"):
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            if image.mode in _WIDE_MODES:
                raise ValueError(f"its pixels have the mode {image.mode}, not 8 or 16 bits")
            image = image.convert("RGB")
    # Pillow's readers raise nearly anything at a damaged file: OSError, SyntaxError, ValueError, struct.error ...
    except Exception as error:
        raise DataError(
            f"cannot read the image {path}: {one_line(error)}; mend or remove it, "
            "or data.on_bad_image=skip skips such files"
        ) from error
    side = min(image.size)
    if centre_crop:
        side = min(side, centre_crop)
    top, left = centre_square(image.height, image.width, side)
    image = image.crop((left, top, left + side, top + side))
    if side != image_size:
        image = image.resize((image_size, image_size), Image.Resampling.BILINEAR)
    return np.asarray(image)
