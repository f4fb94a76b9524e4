"""Synthetic images that are hard to encode and decode exactly: noise, checkerboards, one colour."""

from typing import Any

import numpy as np

from tfdecouple.config.shapes import RGB_CHANNELS, ImageShape


def make_hard_images(image_shape: ImageShape, count: int) -> dict[str, np.ndarray]:
    """Returns images that are hard to encode, such as checkerboards: {name: uint8 `[n, height, width, channels]`}.

    `doctor`, benchmarks and the verification of exports test with them whether decoding is exact. There are `count`
    images of each kind of noise.
    """
    rng, odd = np.random.default_rng(0), np.indices(image_shape[:2]).sum(0)[..., None] % 2
    pairs: dict[str, Any] = {"black and white": (0, 255)}
    kinds: dict[str, Any] = {"black, white": [0, 255]}
    if image_shape[-1] == RGB_CHANNELS:
        kinds["plain red, green, blue"] = 255 * np.eye(3, dtype=int)
        # Each colour is paired with its opposite or a neighbour, so that neighbouring pixels differ most.
        pairs["red and blue"] = (255, 0, 0), (0, 0, 255)
        pairs["green and magenta"] = (0, 255, 0), (255, 0, 255)
        pairs["cyan and yellow"] = (0, 255, 255), (255, 255, 0)
    for name, (a, b) in pairs.items():
        kinds[f"checkerboard, {name}"] = [np.where(odd == 0, a, b), np.where(odd == 0, b, a)]
    kinds["noise"] = rng.integers(0, 256, (count, *image_shape), dtype=np.uint8)
    kinds["noise of 0 and 255"] = 255 * rng.integers(0, 2, (count, *image_shape))
    if image_shape[-1] > 1:
        kinds["grey noise of 0 and 255"] = 255 * rng.integers(0, 2, (count, *image_shape[:2], 1))
    return {
        kind: np.stack([np.broadcast_to(image, image_shape) for image in images]).astype(np.uint8)
        for kind, images in kinds.items()
    }
