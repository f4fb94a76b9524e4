"""The codes of many images, encoded a batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator

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
    done, progress = 0, Lines(say, len(images), "images encoded")
    for batch, count in full_batches(images, batch_size):
        codes = model.encode(batch)
        if codes.z is not None:
            z.append(np.asarray(codes.z)[:count])
        v[done : done + count] = codes.v[:count]
        done += count
        progress.advance(count)
    return np.concatenate(z) if z else None, v


def full_batches(values: np.ndarray, batch_size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Yields batches of one size, the last one filled up, and how many of each count: each size is traced anew."""
    size = min(batch_size, len(values))
    for start in range(0, len(values), size):
        batch = values[start : start + size]
        yield np.concatenate([batch, np.repeat(batch[:1], size - len(batch), 0)]), len(batch)
