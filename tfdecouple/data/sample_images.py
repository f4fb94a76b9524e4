"""The data source `photographs`: crops of photographs that scikit-image and scikit-learn install."""

import concurrent.futures
import functools
import importlib.metadata
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from tfdecouple.config.shapes import RGB_CHANNELS, ImageShape
from tfdecouple.data.sources import Source, SourceKind
from tfdecouple.data.splits import ImagesAndLabels, MemorySplit
from tfdecouple.errors import DataError, nearest
from tfdecouple.system.devices import read_total_memory


class Photograph(NamedTuple):
    """A photograph of an installed package, which states author and licence; `path` is below the folder of packages."""

    name: str
    package: str
    path: str
    author: str
    licence: str


# The photographs that `data.photographs` can name. Other pictures in the two packages are left out: grey ones, because
# a density over RGB degenerates on three equal channels; the deep field and the retina, because one dark colour fills
# most of them; the right motorcycle of a stereo pair, because it shows the same scene as the left one.
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

# Each photograph is cut along its longer side into three bands, one for each split, in this order and with these
# fractions of the side. Training gets the middle, where most photographs have their subject.
BANDS = {"test": 0.2, "train": 0.6, "validation": 0.2}

# Pixels between two neighbouring bands that no split uses. A JPEG block with halved colour resolution is 16 pixels
# wide, so no block lies in two bands.
MARGIN = 16

_HELD_OUT_CROPS = {"validation": 512, "test": 1000}
_SEEDS = {"train": 1, "validation": 2, "test": 3}


class SamplePhotographs(SourceKind):
    """The data source `photographs`: random crops of the sample photographs; grey for images of one channel."""

    def locate_images(self) -> None:
        """Returns None, because no option of the config holds the path of the sample photographs."""

    def describe_image_rights(self) -> str:
        photographs = find_photographs(self.config.photographs)
        listed = ", ".join(f"{item.name} by {item.author} ({item.licence})" for item in photographs)
        return f"Photographs that come with scikit-image and scikit-learn: {listed}."

    def open(self, image_shape: ImageShape, download: bool) -> Source:
        """Returns the `Source` of the crops.

        DataError is raised if a photograph is unknown, missing in the installed package or too small for crops of
        `image_shape`; if the images have neither 1 nor 3 channels; or if the crops need more memory than the machine
        has.
        """
        config = self.config
        height, width, channels = image_shape
        if channels not in (1, RGB_CHANNELS):
            raise DataError(
                f"the sample photographs have 3 channels, or 1 as grey images, and the model's images have {channels}; "
                "use another data.source"
            )
        pictures = tuple(map(open_photograph, find_photographs(config.photographs)))
        for name, picture in zip(config.photographs, pictures, strict=True):
            if max(height, width) > (largest := find_largest_crop_side(picture.size)):
                raise DataError(
                    f"the images have a side of {max(height, width)} pixels, but the photograph {name} allows crops "
                    f"of {largest}; use at most that, or another data.source"
                )
        # The config in an untrusted run folder can ask for any count of crops, more than the machine's memory can hold.
        if config.photograph_crops * math.prod(image_shape) > read_total_memory():
            raise DataError(
                f"data.photograph_crops is {config.photograph_crops}, more than this machine's memory holds; use fewer"
            )
        counts = {"train": config.photograph_crops, **_HELD_OUT_CROPS}
        splits = {
            name: MemorySplit(
                count,
                f"{count} random crops of each photograph's {name} band",
                functools.partial(cut_photograph_crops, pictures, name, count, image_shape),
            )
            for name, count in counts.items()
        }
        return Source(
            name="photographs",
            title="sample photographs",
            label_names=config.photographs,
            image_shape=image_shape,
            splits=splits,
            note="validation and test crops show different parts of the photographs, so their bits/dim differ",
        )


def find_photographs(names: Sequence[str]) -> tuple[Photograph, ...]:
    """Returns a tuple of the `Photograph`s with these `names`; raises DataError for an unknown name."""
    for name in names:
        if name not in PHOTOGRAPHS:
            hint = f"{nearest(name, PHOTOGRAPHS)}; there are {', '.join(PHOTOGRAPHS)}"
            raise DataError(f"data.photographs names {name!r}, and there is no such photograph{hint}")
    return tuple(PHOTOGRAPHS[name] for name in names)


def find_split_band(size: tuple[int, int], split: str) -> tuple[int, int, int, int]:
    """Returns a split's part of a photograph of `size` (width, height): (left, top, right, bottom), exclusive."""
    width, height = size
    length = max(size) - MARGIN * (len(BANDS) - 1)
    start = 0
    for name, fraction in BANDS.items():
        end = start + int(fraction * length)
        if name == split:
            break
        start = end + MARGIN
    return (start, 0, end, height) if width >= height else (0, start, width, end)


def find_largest_crop_side(size: tuple[int, int]) -> int:
    """Returns the side, in pixels, of the largest square that fits into all bands of a photograph of `size`.

    No crop of any split has a longer side, so that all splits show objects at the same scales.
    """
    boxes = [find_split_band(size, name) for name in BANDS]
    return min(min(right - left, bottom - top) for left, top, right, bottom in boxes)


def draw_crop_boxes(size: tuple[int, int], split: str, sides: tuple[int, int], draws: np.ndarray) -> np.ndarray:
    """Returns random rectangles (left, top, right, bottom) in a split's band of a photograph of `size`, int64 [N, 4].

    Coordinates begin at the band's corner. The rectangles have the proportions of `sides`, the (height, width) of the
    model's images. A rectangle's longer side is log-uniform between the longer one of `sides` and
    `find_largest_crop_side(size)`, so that all scales are equally frequent. Each row of `draws`, uniform numbers in
    [0, 1), float64 [N, 3], decides on side, column and row of one.
    """
    left, top, right, bottom = find_split_band(size, split)
    least = np.array(sides)
    ratio = find_largest_crop_side(size) / least.max()
    heights, widths = np.rint(least[:, None] * ratio ** draws[:, 0]).astype(np.int64)
    lefts = (draws[:, 1] * (right - left - widths + 1)).astype(np.int64)
    tops = (draws[:, 2] * (bottom - top - heights + 1)).astype(np.int64)
    return np.stack([lefts, tops, lefts + widths, tops + heights], axis=1)


def cut_photograph_crops(
    pictures: tuple[Image.Image, ...], split: str, count: int, image_shape: ImageShape
) -> ImagesAndLabels:
    """Returns `count` random crops of a split's bands, uint8 [count, *image_shape], and their labels, int32 [count].

    The label of a crop is the index of its picture. Every call with the same arguments returns the same crops.
    """
    height, width, channels = image_shape
    if channels == 1:
        pictures = tuple(picture.convert("L") for picture in pictures)
    # Bands are cut out first, because resizing a crop of the complete photograph would mix in pixels of another split.
    bands = [picture.crop(find_split_band(picture.size, split)) for picture in pictures]
    labels = np.arange(count, dtype=np.int32) % len(pictures)
    # The seed depends only on the split, so that all runs on all machines have the same crops.
    draws = np.random.default_rng(_SEEDS[split]).random((count, 3))
    images = np.empty((count, *image_shape), np.uint8)

    def fill(label: int) -> None:
        numbers = np.flatnonzero(labels == label)
        boxes = draw_crop_boxes(pictures[label].size, split, (height, width), draws[numbers])
        for number, box in zip(numbers, boxes.tolist(), strict=True):
            crop = bands[label].resize((width, height), Image.Resampling.LANCZOS, box=box)
            images[number] = np.asarray(crop).reshape(image_shape)

    with concurrent.futures.ThreadPoolExecutor() as pool:
        list(pool.map(fill, range(len(pictures))))
    return images, labels


def open_photograph(photograph: Photograph) -> Image.Image:
    """Reads the file of a photograph as an RGB Pillow image; raises DataError if the file is missing or damaged."""
    # The package's metadata tell the path of the file without an import of the package, which would take seconds.
    package = importlib.metadata.distribution(photograph.package)
    try:
        with Image.open(str(package.locate_file(photograph.path))) as file:
            return file.convert("RGB")
    except OSError:
        raise DataError(
            f"the photograph {photograph.path} is missing or damaged in the installed {photograph.package} "
            f"{package.version}; install a version that ships it, or use another data.source"
        ) from None
