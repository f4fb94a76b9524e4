"""Images drawn from a split, read in batches: what measurements on fewer than all images are made on."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from tfdecouple.data import Source, chosen_batches
from tfdecouple.errors import DataError
from tfdecouple.runtime.progress import Lines


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
    progress = Lines(say, len(indices), f"{split} images")
    for batch in chosen_batches(source, split, indices, batch_size=batch_size):
        yield batch
        progress.advance(len(batch["label"]))
