"""Images of a data set at their own size: upright, neither cropped nor resized."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from tfdecouple.config.shapes import PILLOW_MODES
from tfdecouple.data.image_file import read_image
from tfdecouple.data.sample_images import PHOTOGRAPHS, find_band, open_photograph
from tfdecouple.errors import DataError

if TYPE_CHECKING:
    from tfdecouple.data import Source


def draw_whole_images(source: Source, split: str, count: int, seed: int) -> dict[str, Callable[[], np.ndarray]]:
    """Returns functions that read images of a split at their own size, uint8 `[H, W, channels]`, by name.

    They read `count` files of a folder, drawn with the seed, or 0 for all; or the band of each sample photograph that
    belongs to the split. DataError is raised for other data sets.
    """
    channels = source.image_shape[-1]
    if source.name.startswith("folder:"):
        folder = pathlib.Path(source.name.removeprefix("folder:")).expanduser()
        names = source.split(split).keys or ()
        images = {name: functools.partial(read_image, str(folder / name), (0, 0, channels), 0) for name in names}
    elif source.name == "photographs":
        images = {name: functools.partial(_read_band, name, split, channels) for name in source.label_names}
    else:
        raise DataError(f"{source.title} has no images of their own size; give folder:PATH or photographs as --data")
    chosen = np.random.default_rng(seed).permutation(len(images))[: count or None]
    return {name: images[name] for name in (list(images)[number] for number in chosen)}


def _read_band(name: str, split: str, channels: int) -> np.ndarray:
    photograph = open_photograph(PHOTOGRAPHS[name])
    band = photograph.crop(find_band(photograph.size, split)).convert(PILLOW_MODES[channels])
    return np.asarray(band).reshape(band.height, band.width, channels)
