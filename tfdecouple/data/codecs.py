"""Bits per dimension of lossless image codecs, to compare with the model's (paper Table 1)."""

from __future__ import annotations

import concurrent.futures
import io
from typing import Any

import numpy as np
from PIL import Image

from tfdecouple.config.shapes import RGB_CHANNELS

# Options of Pillow for the smallest files; `exact` also preserves the colours of transparent pixels.
_OPTIONS: dict[str, dict[str, Any]] = {
    "webp": {"format": "WEBP", "lossless": True, "quality": 100, "method": 6, "exact": True},
    "png": {"format": "PNG", "optimize": True},
}


def codec_bits_per_dim(images: np.ndarray, codec: str = "webp") -> np.ndarray:
    """Returns the bits per subpixel of a lossless codec for each image, coded in a file of its own with its header.

    Args:
        images: the images, uint8 [N, H, W, C]. Images without exactly three channels are coded as one grey picture for
            each channel.
        codec: "webp" or "png".

    Returns:
        Bits for each of the H*W*C subpixels of an image, float64 [N].
    """

    def count_bytes(image: np.ndarray) -> int:
        total = 0
        for picture in [image] if image.shape[-1] == RGB_CHANNELS else np.moveaxis(image, -1, 0):
            file = io.BytesIO()
            Image.fromarray(picture).save(file, **_OPTIONS[codec])
            total += len(file.getvalue())
        return total

    with concurrent.futures.ThreadPoolExecutor() as pool:
        return 8 * np.array(list(pool.map(count_bytes, images))) / images[0].size
