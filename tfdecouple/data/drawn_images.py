"""Functions that draw random images of a split, pair them, read them (also at their original size), and encode them."""

from __future__ import annotations

import functools
import itertools
import pathlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from tfdecouple.data.image_formats import PILLOW_MODES
from tfdecouple.errors import DataError
from tfdecouple.system.progress import Counter

if TYPE_CHECKING:
    from tfdecouple.data.sources import Source
    from tfdecouple.model import DecoupledModel


def draw_image_indices(source: Source, split: str, count: int, seed: int) -> np.ndarray:
    """Returns indices of at most `count` images of a split in random order, without repetition, int64 `[n]`.

    The first images of a split would not be a fair sample, because an image folder is sorted by class.
    """
    return np.random.default_rng(seed).permutation(source.open_split(split).size)[:count]


def read_drawn_images(
    model: DecoupledModel, source: Source, split: str, indices: np.ndarray, batch_size: int = 256
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the images with `indices` in a split, quantised to the model's number of bits, and the images' labels.

    The images are uint8 `[n, height, width, channels]`, in the order of `indices`, and the labels int32 `[n]`.
    """
    from tfdecouple.data.batches import read_chosen_batches

    images, labels = np.empty((len(indices), *model.config.image_shape), np.uint8), np.empty(len(indices), np.int32)
    order, done = np.argsort(indices), 0
    for batch in read_chosen_batches(source, split, indices, batch_size=batch_size):
        rows = order[done : done + len(batch["label"])]
        images[rows], labels[rows] = model.quantizer.quantize_pixels(batch["image"]), batch["label"]
        done += len(rows)
    return images, labels


def encode_drawn_images(
    model: DecoupledModel, images: np.ndarray, batch_size: int = 64
) -> tuple[np.ndarray | None, np.ndarray]:
    """Encodes images: returns z, float32 `[n, d_z]` (None without z), and v, float32 `[n, height, width, channels]`."""
    z: list[np.ndarray] = []
    v, done = np.empty(images.shape, np.float32), 0
    with Counter("encoding", len(images)) as counter:
        for batch, count in make_padded_batches(images, batch_size):
            codes = model.encode(batch)
            if codes.z is not None:
                z.append(np.asarray(codes.z)[:count])
            v[done : done + count] = codes.v[:count]
            counter(done := done + count)
    return np.concatenate(z) if z else None, v


def decode_images(model: DecoupledModel, z: np.ndarray, v: np.ndarray, batch_size: int = 64) -> np.ndarray:
    """Returns the images that the model decodes from each row of `z` and the same row of `v`, uint8 like `v`."""
    images, done = [], 0
    batches = zip(make_padded_batches(z, batch_size), make_padded_batches(v, batch_size), strict=True)
    with Counter("decoding", len(z)) as counter:
        for (z_batch, count), (v_batch, _) in batches:
            images.append(np.asarray(model.decode(z_batch, v_batch))[:count])
            counter(done := done + count)
    return np.concatenate(images)


def make_padded_batches(values: np.ndarray, batch_size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Yields pairs (batch of rows of `values`, count of rows that are not padding); all batches have the same size."""
    size = min(batch_size, len(values))
    for start in range(0, len(values), size):
        batch = values[start : start + size]
        yield np.concatenate([batch, np.repeat(batch[:1], size - len(batch), 0)]), len(batch)


def draw_uncropped_images(source: Source, split: str, count: int, seed: int) -> dict[str, Callable[[], np.ndarray]]:
    """Returns {image name: function that reads the image at its original size, uint8 `[H, W, channels]`}.

    The images are `count` images of a split, drawn with `seed`; all images if `count` is 0. The data set `folder:PATH`
    has its files as images, and `photographs` the split's band of each photograph. Others raise DataError.
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


def pair_images(labels: np.ndarray, pairing: str, count: int) -> np.ndarray:
    """Returns at most `count` pairs of indices of images, int64 `[pairs, 2]`; each image is in one pair at most.

    The labels are int `[n]`, -1 for an image without a label. `pairing` is "within", for pairs with equal labels;
    "across", for pairs with different labels; or "any". The pairs alternate between labels, to show many labels.
    """
    groups = [np.flatnonzero(labels == label).tolist() for label in dict.fromkeys(labels.tolist()) if label >= 0]
    pairs = _alternate_groups([list(range(len(labels)))] if pairing == "any" else groups)
    if pairing == "across" and groups:
        # `images` begins with one image of the first label, two of the second, two of the third, and so on. So the
        # first and second image, the third and fourth, and so on, have different labels.
        images = [groups[0][0], *itertools.chain(*_alternate_groups([*groups[1:], groups[0][1:]]))]
        pairs = [pair for pair in zip(images[::2], images[1::2], strict=False) if labels[pair[0]] != labels[pair[1]]]
    return np.array(pairs[:count], np.int64).reshape(-1, 2)


def _alternate_groups(groups: list[list[int]]) -> list[tuple[int, ...]]:
    pairs = (zip(group[::2], group[1::2], strict=False) for group in groups)
    return [pair for turn in itertools.zip_longest(*pairs) for pair in turn if pair]
