"""From the name in `data.source` to the opened data set."""

from __future__ import annotations

import os

from tfdecouple.config import DataConfig
from tfdecouple.data.folder import open_folder
from tfdecouple.data.photographs import open_photographs
from tfdecouple.data.source import Source
from tfdecouple.data.tfds import KNOWN_NAMES, open_tfds
from tfdecouple.errors import DataError, nearest


def place_of(config: DataConfig) -> str | None:
    """Returns the folder that a config takes its images from; None where it names none."""
    if config.source.startswith("folder:"):
        return os.path.expanduser(config.source.removeprefix("folder:"))
    return os.path.expanduser(config.data_dir) if config.data_dir and config.source != "photographs" else None


def crop_of_own_images(config: DataConfig) -> int:
    """Returns the side in pixels of the centre square that a user's own images keep; 0 for the largest.

    Those of a folder are taken to be like the user's own. The centre crop of another data set says where its subjects
    are, and nothing of other images.
    """
    return config.centre_crop if config.source.startswith("folder:") else 0


def open_source(config: DataConfig, image_size: int, download: bool = False) -> Source:
    """Opens a data set; fails at once where its data are missing (paper appendix C.1).

    Args:
        config: which data set, where it lies and how it is split.
        image_size: side of the square images in pixels.
        download: whether TFDS may download and prepare what is missing.

    Returns:
        The source, whose images are uint8 [image_size, image_size, 3].

    Raises:
        DataError: for an unknown name, missing or unusable data.
    """
    if image_size < 1:
        raise DataError(f"the image size is {image_size}; it must be at least 1")
    if config.source == "photographs":
        return open_photographs(config, image_size)
    if config.source.startswith("folder:"):
        return open_folder(config, image_size)
    if config.source in KNOWN_NAMES or config.source.startswith("tfds:"):
        return open_tfds(config, image_size, download)
    names = ("photographs", *KNOWN_NAMES)
    raise DataError(
        f"there is no data.source {config.source!r}{nearest(config.source, names)}; "
        f"there are {', '.join(names)}, tfds:NAME and folder:PATH"
    )
