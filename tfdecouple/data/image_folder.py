"""The data source `folder:PATH`: a folder of image files, split by sub-folders or by a hash of the files' names."""

from __future__ import annotations

import concurrent.futures
import hashlib
import itertools
import math
import os
import pathlib
import unicodedata
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfdecouple.config import DataConfig
from tfdecouple.config.shapes import Shape
from tfdecouple.data.image_file import SUFFIXES, read_image
from tfdecouple.data.splits import BadImages, MemorySplit, Source, Split, Tensors
from tfdecouple.errors import DataError

# Fractions of the images that the hash gives to test and to validation.
TEST_SHARE, VALIDATION_SHARE = 0.05, 0.05
# Smallest number of test and of validation images, unless it is more than a tenth of all images.
LEAST_HELD_OUT = 8

# Names of the splits by names of sub-folders.
SPLIT_FOLDERS = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}


class ImageFile(NamedTuple):
    """An image file below a folder.

    Attributes:
        path: path of the file.
        key: path of the file below the folder of its split, with "/" between folders.
        label_name: name of the sub-folder that the file lies in; "" for none.
    """

    path: str
    key: str
    label_name: str


def open_folder(config: DataConfig, image_shape: Shape) -> Source:
    """Returns the source of the images in a folder, whose sub-folders are labels.

    If all decoded images take at most `cache_gib`, they are read at once, and an unreadable image raises its error now.
    A larger folder is only listed, and an unreadable image raises its error when it is read (see `Source.guard`),
    because reading even the headers of millions of files takes long.

    Raises:
        DataError: where the folder is missing, has too few images for three splits or contradictory sub-folders, or
            holds an image that cannot be read.
    """
    # os.path.expanduser is used because Path.expanduser raises an error for the path of an unknown user.
    folder = pathlib.Path(os.path.expanduser(config.source.removeprefix("folder:")))
    if config.source == "folder:" or not folder.is_dir():
        raise DataError(f"there is no folder {folder}; data.source=folder:PATH needs a folder of images")
    files = _split_files(folder)
    label_names = sorted({file.label_name for split_files, _ in files.values() for file in split_files} - {""})
    labels = {name: label for label, name in enumerate(label_names)}
    bad_images = BadImages(config.on_bad_image)
    decoded_bytes = sum(len(split_files) for split_files, _ in files.values()) * math.prod(image_shape)
    splits: dict[str, Split] = {}
    for name, (split_files, description) in files.items():
        split = FileSplit(split_files, folder, labels, description, image_shape, config.centre_crop, bad_images)
        splits[name] = split.read_all() if decoded_bytes <= config.cache_gib * 2**30 else split
    return Source(
        name=config.source,
        title=f"images in {folder}",
        label_names=tuple(label_names),
        image_shape=image_shape,
        splits=splits,
        bad_images=bad_images,
    )


def hash_split(files: Sequence[ImageFile]) -> dict[str, list[ImageFile]]:
    """Returns the files of each split by a hash of their keys: about 90 % train, 5 % validation and 5 % test.

    The split of a file depends only on its key: it is the same on every machine, and stays when other files are added
    or removed. In small folders, where a split would have less than a tenth of the files and less than
    `LEAST_HELD_OUT`, the files with the nearest hashes are added to this split. Of at least 3 files each split gets at
    least one, in the order of `files`.
    """
    hashes = [hash_key(file.key) for file in files]
    order = sorted(range(len(files)), key=hashes.__getitem__)
    count = len(files)
    least = min(max(count // 10, 1), LEAST_HELD_OUT)
    test = sum(value < TEST_SHARE for value in hashes)
    held_out = sum(value < TEST_SHARE + VALIDATION_SHARE for value in hashes)
    test = min(max(test, least), count - 2)
    held_out = min(max(held_out, test + least), count - 1)
    splits = {"train": order[held_out:], "validation": order[test:held_out], "test": order[:test]}
    return {name: [files[index] for index in sorted(indices)] for name, indices in splits.items()}


def hash_key(key: str) -> float:
    """Returns the hash of a file's key, a number in [0, 1), which decides on the file's split."""
    # The key is brought into Unicode's normal form, because file systems encode accented letters in different ways.
    digest = hashlib.sha256(unicodedata.normalize("NFC", key).encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _split_files(folder: pathlib.Path) -> dict[str, tuple[list[ImageFile], str]]:
    """Returns the files and the description of each split."""
    present = sorted(name for name in SPLIT_FOLDERS if (folder / name).is_dir())
    chosen = "{} images {}chosen by a hash of their names"
    if "train" not in present:
        if present:
            raise DataError(
                f"the folder {folder} has a sub-folder {present[0]} but none named train; "
                "put the training images into train, or rename the other"
            )
        splits = hash_split(_list_images(folder, 3))
        return {name: (files, chosen.format(len(files), "")) for name, files in splits.items()}
    if {"val", "validation"} <= set(present):
        raise DataError(f"the folder {folder} has the sub-folders val and validation; keep one of them")
    missing = {"validation", "test"} - {SPLIT_FOLDERS[name] for name in present}
    least = {name: 3 if missing and name == "train" else 1 for name in present}
    files = {SPLIT_FOLDERS[name]: (_list_images(folder / name, least[name]), f"{name}/") for name in present}
    if missing:
        training, _ = files["train"]
        # The hash always makes three splits, of which only the missing ones are taken out of the training images.
        splits = hash_split(training)
        for name in missing:
            files[name] = (splits[name], chosen.format(len(splits[name]), "of train/ "))
        held_out = {file.key for name in missing for file in splits[name]}
        rest = [file for file in training if file.key not in held_out]
        files["train"] = (rest, f"train/ without {' and '.join(sorted(missing))}")
    return {name: files[name] for name in ("train", "validation", "test")}


def _list_images(folder: pathlib.Path, least: int) -> list[ImageFile]:
    """Returns at least `least` image files below a folder, sorted by key; names that begin with a dot are left out."""
    files = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                path = pathlib.Path(parent, name)
                parts = path.relative_to(folder).parts
                files.append(ImageFile(str(path), "/".join(parts), parts[0] if len(parts) > 1 else ""))
    if len(files) < least:
        raise DataError(
            f"the folder {folder} holds {len(files)} images ({', '.join(SUFFIXES)}); at least {least} are needed"
        )
    return sorted(files, key=lambda file: file.key)


class FileSplit(Split):
    """A split of image files, each of which is read only when its record is decoded."""

    def __init__(
        self,
        files: Sequence[ImageFile],
        folder: pathlib.Path,
        labels: Mapping[str, int],
        description: str,
        image_shape: Shape,
        centre_crop: int,
        bad_images: BadImages,
    ) -> None:
        keys = [pathlib.Path(file.path).relative_to(folder).as_posix() for file in files]
        super().__init__(len(files), description, keys)
        self._paths = [file.path for file in files]
        self._labels = np.array([labels.get(file.label_name, -1) for file in files], np.int32)
        self._image_shape = image_shape
        self._centre_crop = centre_crop
        self._bad_images = bad_images

    def read_all(self) -> MemorySplit:
        """Returns a split in memory of all readable images, which it reads now.

        Raises:
            DataError: where no image is readable, or one is unreadable and `data.on_bad_image` is "stop".
        """
        images = np.empty((self.size, *self._image_shape), np.uint8)

        def read(index: int) -> bool:
            image = self._read(index)
            if image is not None:
                images[index] = image
            return image is not None

        with concurrent.futures.ThreadPoolExecutor() as pool:
            readable = np.fromiter(pool.map(read, range(self.size)), bool, self.size)
        if not readable.any():
            raise self._none_readable()
        images = images if readable.all() else images[readable]
        labels, keys = self._labels[readable], list(itertools.compress(self.keys or (), readable))
        return MemorySplit(len(images), self.description, lambda: (images, labels), keys)

    def decode(self, record: tf.Tensor) -> Tensors:
        """Returns image and label of a record, which is an index, int64 [].

        The next image replaces a skipped image. Without a replacement all later batches would shift, and a resumed run
        would have to read all earlier images to know how far.
        """
        image, label, _ = self._decode(record)
        return image, label

    def examples(self, indices: np.ndarray | None = None) -> tf.data.Dataset:
        """Returns all images or those with some indices, as `Split.examples` does; skipped images are left out."""

        def example(index: tf.Tensor) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
            image, label, found = self._decode(index)
            return {"image": image, "label": label, "index": index}, tf.equal(found, index)

        records = self.records() if indices is None else self.records_at(indices)
        read = records.map(example, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        return read.filter(lambda _, readable: readable).map(lambda example, _: example)

    def _decode(self, index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Returns the first readable image from an index on, its label and its index."""

        def read(index: int) -> tuple[np.ndarray, np.int32, np.int64]:
            for other in itertools.chain(range(index, self.size), range(index)):
                if (image := self._read(other)) is not None:
                    return image, self._labels[other], np.int64(other)
            raise self._bad_images.keep_error(self._none_readable())

        image, label, found = tf.numpy_function(read, [index], [tf.uint8, tf.int32, tf.int64])
        return tf.ensure_shape(image, self._image_shape), tf.ensure_shape(label, []), found

    def _read(self, index: int) -> np.ndarray | None:
        path = self._paths[index]
        if path in self._bad_images.skipped:
            return None
        try:
            return read_image(path, self._image_shape, self._centre_crop)
        except DataError as error:
            self._bad_images.skip(path, error)
            return None

    def _none_readable(self) -> DataError:
        return DataError(f"none of the {self.size} images can be read, the first is {self._paths[0]}; mend them")
