"""Functions that draw images from a split at random, read them in batches, and encode them."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from tfdecouple.config.shapes import PILLOW_MODES
from tfdecouple.errors import DataError
from tfdecouple.runtime.progress import Counter

if TYPE_CHECKING:
    from tfdecouple.data import Source
    from tfdecouple.model import DecoupledModel


def draw_indices(source: Source, split: str, count: int, seed: int) -> np.ndarray:
    """Returns indices of `count` images drawn at random from a split, int64 `[count]`; of all images if it has fewer.

    The first images of a split are no fair sample, because folders are sorted by class.

    Raises:
        DataError: if the split is unknown.
    """
    return np.random.default_rng(seed).permutation(source.open_split(split).size)[:count]


def read_batches(source: Source, split: str, indices: np.ndarray, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
    """Yields the batches of `read_chosen_batches` with a progress bar."""
    from tfdecouple.data import read_chosen_batches

    done = 0
    with Counter(f"reading {split}", len(indices)) as counter:
        for batch in read_chosen_batches(source, split, indices, batch_size=batch_size):
            yield batch
            counter(done := done + len(batch["label"]))


def read_images(
    model: DecoupledModel, source: Source, split: str, indices: np.ndarray, batch_size: int = 256
) -> tuple[np.ndarray, np.ndarray]:
    """Returns images of a split, quantised to the model's number of bits, and their labels, in the order of `indices`.

    The images are uint8 `[n, height, width, channels]`; the labels are int32 `[n]`, -1 for an image without one.
    """
    images, labels = np.empty((len(indices), *model.config.image_shape), np.uint8), np.empty(len(indices), np.int32)
    order, done = np.argsort(indices), 0
    for batch in read_batches(source, split, indices, batch_size):
        rows = order[done : done + len(batch["label"])]
        images[rows], labels[rows] = model.quantize_images(batch["image"]), batch["label"]
        done += len(rows)
    return images, labels


def encode_images(model: DecoupledModel, images: np.ndarray, batch_size: int) -> tuple[np.ndarray | None, np.ndarray]:
    """Returns the codes of images: z, float32 `[n, d_z]` (None for a model without z), and v, float32."""
    z: list[np.ndarray] = []
    v, done = np.empty(images.shape, np.float32), 0
    with Counter("encoding", len(images)) as counter:
        for batch, count in pad_batches(images, batch_size):
            codes = model.encode(batch)
            if codes.z is not None:
                z.append(np.asarray(codes.z)[:count])
            v[done : done + count] = codes.v[:count]
            counter(done := done + count)
    return np.concatenate(z) if z else None, v


def pad_batches(values: np.ndarray, batch_size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Yields batches of rows of `values`, padded to one size, each with its number of rows without padding."""
    size = min(batch_size, len(values))
    for start in range(0, len(values), size):
        batch = values[start : start + size]
        yield np.concatenate([batch, np.repeat(batch[:1], size - len(batch), 0)]), len(batch)


def draw_uncropped_images(source: Source, split: str, count: int, seed: int) -> dict[str, Callable[[], np.ndarray]]:
    """Returns functions that read images of a split at their own size, uint8 `[H, W, channels]`, by name.

    They read `count` files of a folder, drawn with the seed, or 0 for all; or the band of each sample photograph that
    belongs to the split. DataError is raised for other data sets.
    """
    from tfdecouple.data.image_file import read_image
    from tfdecouple.data.sample_images import PHOTOGRAPHS, find_split_band, open_photograph

    channels = source.image_shape[-1]

    def read_band(name: str) -> np.ndarray:
        photograph = open_photograph(PHOTOGRAPHS[name])
        band = photograph.crop(find_split_band(photograph.size, split)).convert(PILLOW_MODES[channels])
        return np.asarray(band).reshape(band.height, band.width, channels)

    if source.name.startswith("folder:"):
        folder = pathlib.Path(source.name.removeprefix("folder:")).expanduser()
        names = source.open_split(split).keys or ()
        images = {name: functools.partial(read_image, str(folder / name), (0, 0, channels), 0) for name in names}
    elif source.name == "photographs":
        images = {name: functools.partial(read_band, name) for name in source.label_names}
    else:
        raise DataError(f"{source.title} has no images of their own size; give folder:PATH or photographs as --data")
    chosen = np.random.default_rng(seed).permutation(len(images))[: count or None]
    return {name: images[name] for name in (list(images)[number] for number in chosen)}
