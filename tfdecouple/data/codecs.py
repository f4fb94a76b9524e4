"""Bits per dimension of lossless image codecs, to compare with the model's (paper Table 1)."""

from __future__ import annotations

import concurrent.futures
import io
from typing import Any

import numpy as np
from PIL import Image

from tfdecouple.config.shapes import RGB_CHANNELS
from tfdecouple.errors import DataError

_OPTIONS: dict[str, dict[str, Any]] = {
    # `exact` also preserves the colours of transparent pixels, although no image here has any.
    "webp": {"format": "WEBP", "lossless": True, "quality": 100, "method": 6, "exact": True},
    "png": {"format": "PNG", "optimize": True},
}
# Largest number of rows in a WebP file.
_MOST_ROWS = 16383


def lossless_bits_per_dim(images: np.ndarray, codec: str = "webp") -> float:
    """Returns the bits per subpixel of a lossless codec, as the mean over images, each in a file of its own."""
    return float(codec_bits_per_dim(images, codec).mean())


def codec_bits_per_dim(images: np.ndarray, codec: str = "webp") -> np.ndarray:
    """Returns the bits per subpixel of a lossless codec for each image, coded in a file of its own with its header.

    Args:
        images: the images, uint8 [N, H, W, C], N at least 1. Images without exactly three channels are coded as grey
            pictures, one channel below the other, in as few files as can hold them.
        codec: name of the codec, "webp" (the slowest setting, with the smallest files) or "png" (optimised).

    Returns:
        Bits for each of the H*W*C subpixels of an image, float64 [N].

    Raises:
        DataError: where the codec is unknown, or the images have another shape or dtype.
    """
    if codec not in _OPTIONS:
        raise DataError(f"the codec is {codec!r}; it must be one of {', '.join(_OPTIONS)}")
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or not images.size:
        raise DataError(f"the images are {images.dtype} {list(images.shape)}; a codec needs uint8 [N, H, W, C]")

    def coded_bytes(image: np.ndarray) -> int:
        total = 0
        for picture in _split_channels(image):
            file = io.BytesIO()
            Image.fromarray(picture).save(file, **_OPTIONS[codec])
            total += len(file.getvalue())
        return total

    with concurrent.futures.ThreadPoolExecutor() as pool:
        return 8 * np.array(list(pool.map(coded_bytes, images))) / images[0].size


def _split_channels(image: np.ndarray) -> list[np.ndarray]:
    """Returns an image as a list of pictures that a file can hold: an RGB image unchanged, else grey pictures."""
    height, _, channels = image.shape
    if channels == RGB_CHANNELS:
        return [image]
    most = max(_MOST_ROWS // height, 1)
    parts = np.split(image, range(most, channels, most), -1)
    return [np.concatenate(np.split(part, part.shape[-1], -1))[..., 0] for part in parts]
