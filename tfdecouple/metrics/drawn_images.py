"""Images drawn from a split, read in batches, and their codes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from tfdecouple.errors import DataError
from tfdecouple.runtime.progress import Lines

if TYPE_CHECKING:
    from tfdecouple.data import Source
    from tfdecouple.model import DecoupledModel


def drawn_indices(source: Source, split: str, count: int, seed: int) -> np.ndarray:
    """Draws images without replacement from a whole split.

    The first images will not do, since folders are sorted by class.

    Args:
        source: the opened data set.
        split: "train", "validation" or "test".
        count: number of images.
        seed: of the draw, at least 0 and below 2**31.

    Returns:
        Their indices in random order, int64 `[count]`.

    Raises:
        DataError: for an unknown split, more images than there are, or a number out of range.
    """
    if not 0 <= seed < 2**31:
        raise DataError(f"the seed is {seed}; it must be at least 0 and below 2**31")
    if count < 1:
        raise DataError(f"the number of {split} images is {count}; it must be at least 1")
    size = source.split(split).size
    if count > size:
        raise DataError(f"{count} images of {split} were asked for, but {source.name} has {size}; ask for fewer")
    return np.random.default_rng(seed).permutation(size)[:count]


def subset_batches(
    source: Source, split: str, indices: np.ndarray, *, batch_size: int, say: Callable[[str], None]
) -> Iterator[dict[str, np.ndarray]]:
    """Yields what `chosen_batches` yields, images that are not augmented, and tells how far it is.

    Args:
        source: the opened data set.
        split: "train", "validation" or "test".
        indices: of the images, in any order; they come in ascending order.
        batch_size: images per batch; the last batch may be smaller.
        say: called with a line of progress now and then.

    Raises:
        DataError: for an unreadable image or an empty batch.
    """
    from tfdecouple.data import chosen_batches

    progress = Lines(say, len(indices), f"{split} images")
    for batch in chosen_batches(source, split, indices, batch_size=batch_size):
        yield batch
        progress.advance(len(batch["label"]))


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
