"""The sample photographs: crops of the pictures that scikit-image and scikit-learn install."""

from __future__ import annotations

import concurrent.futures
import functools
import importlib.metadata
import math
from typing import NamedTuple

import numpy as np
from PIL import Image

from tfdecouple.config import DataConfig
from tfdecouple.config.shapes import RGB_CHANNELS, Shape
from tfdecouple.data.splits import Arrays, MemorySplit, Source
from tfdecouple.errors import DataError, nearest
from tfdecouple.runtime.devices import machine_memory


class Photograph(NamedTuple):
    """A photograph in a file of an installed package.

    The file lies at `path` below the folder that packages are installed in; author and licence are as the package
    states them.
    """

    name: str
    package: str
    path: str
    author: str
    licence: str


# Colour photographs by name; `config/data.py` has the default names. Grey pictures are left out because no density on
# RGB fits three equal channels; the deep field and the retina because they are mostly one flat dark colour; and the
# right motorcycle because the bands of a stereo pair show the same things.
_SKIMAGE, _SKLEARN = ("scikit-image", "skimage/data"), ("scikit-learn", "sklearn/datasets/images")
PHOTOGRAPHS = {
    name: Photograph(name, package, f"{folder}/{name}{suffix}", author, licence)
    for (package, folder), name, suffix, author, licence in (
        (_SKIMAGE, "astronaut", ".png", "NASA", "public domain"),
        (_SKIMAGE, "chelsea", ".png", "Stefan van der Walt", "CC0"),
        (_SKLEARN, "china", ".jpg", "danielbuechele", "CC BY 2.0"),
        (_SKIMAGE, "coffee", ".png", "Rachel Michetti", "CC0"),
        (_SKLEARN, "flower", ".jpg", "danielbuechele", "CC BY 2.0"),
        (_SKIMAGE, "motorcycle_left", ".png", "the Middlebury 2014 stereo benchmark", "no stated licence"),
        (_SKIMAGE, "rocket", ".jpg", "SpaceX", "public domain"),
    )
}

# Splits and their fractions of a photograph's longer side, in order. Training gets the middle, where most photographs
# have their subject.
BANDS = (("test", 0.2), ("train", 0.6), ("validation", 0.2))

# Number of pixels between neighbouring bands. A JPEG block with halved colour is 16 wide, so no block is in two bands.
MARGIN = 16

_HELD_OUT_CROPS = {"validation": 512, "test": 1000}
_SEEDS = {"train": 1, "validation": 2, "test": 3}

Box = tuple[int, int, int, int]


def open_photographs(config: DataConfig, image_shape: Shape) -> Source:
    """Returns the source of the sample photographs, which needs no download.

    Raises:
        DataError: where a photograph is unknown or missing in the installed package, or the shape is too large or has
            neither 1 nor 3 channels; with one channel the crops are grey.
    """
    height, width, channels = image_shape
    if channels not in (1, RGB_CHANNELS):
        raise DataError(
            f"the embedded photographs have 3 channels, or 1 where they are made grey, and the model's images have "
            f"{channels}; use another data.source"
        )
    longer = max(height, width)
    photographs = find_photographs(config)
    pictures = tuple(open_photograph(photograph) for photograph in photographs)
    for photograph, picture in zip(photographs, pictures, strict=True):
        largest = largest_side(picture.size)
        if longer > largest:
            raise DataError(
                f"the images have a side of {longer} pixels, but the photograph {photograph.name} has room for crops "
                f"of {largest}; use at most that, or another data.source"
            )
    # A run folder from an untrusted source may ask for any number of crops.
    if config.photograph_crops * math.prod(image_shape) > machine_memory():
        raise DataError(
            f"data.photograph_crops is {config.photograph_crops}, which takes more memory than this machine has; use "
            "fewer"
        )
    counts = {"train": config.photograph_crops, **_HELD_OUT_CROPS}
    splits = {
        name: MemorySplit(
            count,
            f"{count} random crops of each photograph's {name} band",
            functools.partial(cut_crops, pictures, name, count, image_shape),
        )
        for name, count in counts.items()
    }
    return Source(
        name="photographs",
        title="embedded photographs",
        label_names=config.photographs,
        image_shape=image_shape,
        splits=splits,
    )


def find_photographs(config: DataConfig) -> tuple[Photograph, ...]:
    """Returns the photographs that a config names; raises DataError for an unknown name, with the nearest name."""
    for name in config.photographs:
        if name not in PHOTOGRAPHS:
            raise DataError(
                f"data.photographs names {name!r}, and there is no such photograph{nearest(name, list(PHOTOGRAPHS))}; "
                f"there are {', '.join(PHOTOGRAPHS)}"
            )
    return tuple(PHOTOGRAPHS[name] for name in config.photographs)


def find_band(size: tuple[int, int], split: str) -> Box:
    """Returns left, top, right and bottom (exclusive) of a split's band in a photograph of this width and height."""
    width, height = size
    length = max(size) - MARGIN * (len(BANDS) - 1)
    start = 0
    for name, fraction in BANDS:
        end = start + int(fraction * length)
        if name == split:
            break
        start = end + MARGIN
    return (start, 0, end, height) if width >= height else (0, start, width, end)


def largest_side(size: tuple[int, int]) -> int:
    """Returns the side in pixels of the largest square that fits into each band of a photograph.

    No crop of any split is larger, so that all three splits show things at the same scales.
    """
    boxes = [find_band(size, name) for name, _ in BANDS]
    return min(min(right - left, bottom - top) for left, top, right, bottom in boxes)


def draw_boxes(size: tuple[int, int], split: str, sides: tuple[int, int], draws: np.ndarray) -> np.ndarray:
    """Returns left, top, right and bottom (exclusive) of random rectangles in a split's band, int64 [N, 4], in pixels.

    They have the proportions of the crops, whose height and width are `sides`. Their longer side is log-uniform between
    that of the crops and `largest_side`, so that all scales occur equally often. The uniform numbers `draws`, float64
    [N, 3], decide on side, column and row.
    """
    left, top, right, bottom = find_band(size, split)
    least = np.array(sides)
    ratio = largest_side(size) / least.max()
    heights, widths = np.rint(least[:, None] * ratio ** draws[:, 0]).astype(np.int64)
    lefts = left + (draws[:, 1] * (right - left - widths + 1)).astype(np.int64)
    tops = top + (draws[:, 2] * (bottom - top - heights + 1)).astype(np.int64)
    return np.stack([lefts, tops, lefts + widths, tops + heights], axis=1)


def cut_crops(pictures: tuple[Image.Image, ...], split: str, count: int, image_shape: Shape) -> Arrays:
    """Returns the crops of a split, the same in every call, and the index of each crop's picture, int32 [count]."""
    height, width, channels = image_shape
    if channels == 1:
        pictures = tuple(picture.convert("L") for picture in pictures)
    # The band is cut out first, because a filter on the whole photograph would reach over the band's border.
    bands = [picture.crop(find_band(picture.size, split)) for picture in pictures]
    labels = np.arange(count, dtype=np.int32) % len(pictures)
    # The seed depends on the split alone, so that the crops are the same for every run on every machine.
    draws = np.random.default_rng(_SEEDS[split]).random((count, 3))
    images = np.empty((count, *image_shape), np.uint8)

    def fill(label: int) -> None:
        numbers = np.flatnonzero(labels == label)
        left, top, _, _ = find_band(pictures[label].size, split)
        boxes = draw_boxes(pictures[label].size, split, (height, width), draws[numbers]) - (left, top, left, top)
        for number, box in zip(numbers, boxes.tolist(), strict=True):
            crop = bands[label].resize((width, height), Image.Resampling.LANCZOS, box=box)
            images[number] = np.asarray(crop).reshape(image_shape)

    with concurrent.futures.ThreadPoolExecutor() as pool:
        list(pool.map(fill, range(len(pictures))))
    return images, labels


def open_photograph(photograph: Photograph) -> Image.Image:
    """Returns a photograph of an installed package, in RGB; raises DataError if its file is missing or damaged."""
    # The file is located without importing its package, because the import would take seconds.
    package = importlib.metadata.distribution(photograph.package)
    try:
        with Image.open(str(package.locate_file(photograph.path))) as file:
            return file.convert("RGB")
    except OSError:
        raise DataError(
            f"the photograph {photograph.path} is missing or damaged in the installed {photograph.package} "
            f"{package.version}; install a version that ships it, or use another data.source"
        ) from None
