"""Test images that carry their index in their first red value, as arrays, files and data sources."""

import pathlib
from collections.abc import Callable

import numpy as np
from PIL import Image

from helpers.refusals import message_of
from tfdecouple.config import DataConfig
from tfdecouple.data.batches import make_training_batches
from tfdecouple.data.sources import Source
from tfdecouple.data.splits import MemorySplit
from tfdecouple.errors import DataError

SIZE = 8
TRAINING_IMAGES = 26
PLAIN = DataConfig()
AUGMENTED = DataConfig(horizontal_flip=True, pad_and_crop=3)


def numbered_images(count: int, size: int = SIZE) -> np.ndarray:
    """Returns images of noise, uint8 `[count, size, size, 3]`; the first red value of each image is its index."""
    images = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(count)
    return images


def write_images(folder: pathlib.Path, images: np.ndarray, first: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images, first):
        Image.fromarray(image).save(folder / f"{number:03d}.png")


def one_line_error(call: Callable[[], object]) -> str:
    """Asserts that `call()` raises DataError with a message of one line; returns the message."""
    return message_of(DataError, call)


def make_memory_source(**splits: tuple[np.ndarray, list[int]] | tuple[np.ndarray]) -> Source:
    """Returns a source in memory, given (images, labels) of each split; without labels, each label is the index."""

    def make_split(images, labels=None):
        labels = np.asarray(range(len(images)) if labels is None else labels, np.int32)
        return MemorySplit(len(images), "all", lambda: (images, labels))

    names = {"name": "numbers", "title": "numbers", "label_names": ("red", "green", "blue")}
    parts = {name: make_split(*given) for name, given in splits.items()}
    return Source(**names, image_shape=(SIZE, SIZE, 3), splits=parts)


def take_batches(source: Source, config: DataConfig, count: int, **options: int) -> list[dict]:
    """Returns the first `count` training batches, by default of 4 images and with seed 1."""
    batches = make_training_batches(source, config, **{"batch_size": 4, "seed": 1, **options})
    return list(batches.take(count).as_numpy_iterator())


def assert_same(first: list[dict], second: list[dict]) -> None:
    assert first
    np.testing.assert_equal(first, second)


def read_numbers(batches: list[dict]) -> list[int]:
    return [int(number) for batch in batches for number in batch["image"][:, 0, 0, 0]]
