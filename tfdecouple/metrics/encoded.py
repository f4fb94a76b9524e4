"""The codes of many images, encoded a batch at a time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tfdecouple.model import DecoupledModel
from tfdecouple.runtime.progress import Lines


def encode_images(
    model: DecoupledModel, images: np.ndarray, batch_size: int, say: Callable[[str], None]
) -> tuple[np.ndarray | None, np.ndarray]:
    """Encodes images.

    Args:
        model: with weights.
        images: uint8 `[n, height, width, channels]`.
        batch_size: images at once.
        say: called with lines of progress.

    Returns:
        z, float32 `[n, d_z]` (None without z), and v, float32 of the shape of images.
    """
    z: list[np.ndarray] = []
    v = np.empty(images.shape, np.float32)
    progress = Lines(say, len(images), "images encoded")
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        # Batches of one size, or TensorFlow would trace everything once more for the last.
        filled = np.concatenate([batch, np.zeros((batch_size - len(batch), *batch.shape[1:]), np.uint8)])
        codes = model.encode(filled)
        if codes.z is not None:
            z.append(np.asarray(codes.z)[: len(batch)])
        v[start : start + len(batch)] = codes.v[: len(batch)]
        progress.advance(len(batch))
    return np.concatenate(z) if z else None, v
