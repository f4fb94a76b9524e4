"""The options of the images: `DataConfig`."""

from __future__ import annotations

import dataclasses
from typing import Literal

from tfdecouple.config.values import Count, NonNegative, Positive, require, validate_options

# Names of the sample photographs whose licences let anybody use them; `data/sample_images.py` has their files.
PHOTOGRAPHS = ("astronaut", "chelsea", "china", "coffee", "flower", "rocket")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The source of the images and their preparation (paper appendix C.1).

    >>> DataConfig(source="folder:holiday", horizontal_flip=True).validation_examples
    1000

    Attributes:
        source: "photographs" (sample images of the installation), the name of a TFDS data set ("cifar10", "tfds:NAME")
            or "folder:PATH".
        data_dir: folder of prepared TFDS data sets; null for TFDS' own default.
        horizontal_flip: whether to mirror each training image with probability 1/2.
        pad_and_crop: number of pixels by which training images are reflect-padded at each side, before a random crop
            to their old size; 0 for none.
        centre_crop: side in pixels of the square that is cut from the centre of an image before resizing; 0 for the
            largest square. If `model.image_shape` is no square, a rectangle of its proportions is cut, whose shorter
            side is `centre_crop`.
        validation_examples: number of training images to hold out if a data set has no validation split.
        on_bad_image: what happens at an image that cannot be read: "stop" the program, or "skip" the image and count
            it.
        cache_gib: size limit, in GiB, for keeping all decoded images in memory; a larger data set is decoded anew in
            each epoch.
        photographs: names of the sample photographs to use (docs/data.md).
        photograph_crops: number of training crops of the sample photographs.
    """

    source: str = "photographs"
    data_dir: str | None = None
    horizontal_flip: bool = False
    pad_and_crop: Count = 0
    centre_crop: Count = 0
    validation_examples: Positive = 1000
    on_bad_image: Literal["stop", "skip"] = "stop"
    cache_gib: NonNegative = 4.0
    photographs: tuple[str, ...] = PHOTOGRAPHS
    photograph_crops: Positive = 32768

    def __post_init__(self) -> None:
        validate_options(self, "data.")
        require(bool(self.source), "data.source is empty; give photographs, a TFDS name or folder:PATH")
        require(bool(self.photographs), "data.photographs is empty; leave it out to use all with a known licence")
