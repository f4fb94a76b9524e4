"""Folders of image files: `folder:PATH`."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import hashlib
import itertools
import math
import os
import pathlib
import unicodedata
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from tfdecouple.config import DataConfig
from tfdecouple.config.shapes import Shape
from tfdecouple.data.image_file import SUFFIXES, UNREAD_SUFFIXES, read_image
from tfdecouple.data.splits import BadImages, MemorySplit, Source, Split, Tensors
from tfdecouple.errors import DataError

# Shares of the images that the hash gives to test and to validation.
TEST_SHARE, VALIDATION_SHARE = 0.05, 0.05
# Where there are few images, test and validation get at least a tenth each, up to this number.
LEAST_HELD_OUT = 8

# Sub-folders that are splits, by their names.
SPLIT_FOLDERS = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}

# Numbers of image files by ending.
Counts = collections.Counter[str]
# An image, its label and whether the file was readable.
Read = tuple[np.ndarray, np.int32, np.bool_]


@dataclasses.dataclass(frozen=True)
class ImageFile:
    """An image file below a folder.

    Attributes:
        path: of the file.
        key: its path from the folder of its split, with "/" between folders.
        label_name: the sub-folder it lies in, or "" where it lies in none.
    """

    path: str
    key: str
    label_name: str


def open_folder(config: DataConfig, image_shape: Shape) -> Source:
    """Opens a folder of images; sub-folders are labels.

    Images that decoded take at most `cache_gib` are read at once, so that a bad image shows now. Larger folders are
    only listed, and a bad image shows when it is first read (see `Source.guard`): the headers of millions of files
    take long to read, and would not show that a file is cut short.

    Args:
        config: options `source` ("folder:PATH"), `centre_crop`, `on_bad_image` and `cache_gib`.
        image_shape: height, width and channels of the images.

    Raises:
        DataError: where the folder is missing, holds too few images for three splits or contradictory sub-folders, or
            an image in it cannot be read.
    """
    # os.path.expanduser leaves the path of an unknown user as it is, where Path.expanduser raises an error.
    folder = pathlib.Path(os.path.expanduser(config.source.removeprefix("folder:")))
    if not config.source.removeprefix("folder:"):
        raise DataError(f"data.source is {config.source!r}; name the folder, as in folder:PATH")
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}; data.source=folder:PATH needs a folder of images")
    unread: Counts = collections.Counter()
    files = _split_files(folder, unread)
    label_names = sorted({file.label_name for split_files, _ in files.values() for file in split_files} - {""})
    labels = {name: label for label, name in enumerate(label_names)}
    bad_images = BadImages(config.on_bad_image)
    decoded_bytes = sum(len(split_files) for split_files, _ in files.values()) * math.prod(image_shape)
    splits: dict[str, Split] = {}
    for name, (split_files, description) in files.items():
        split = FileSplit(
            [file.path for file in split_files],
            [labels.get(file.label_name, -1) for file in split_files],
            description,
            image_shape=image_shape,
            centre_crop=config.centre_crop,
            bad_images=bad_images,
            keys=[pathlib.Path(file.path).relative_to(folder).as_posix() for file in split_files],
        )
        splits[name] = split.read_all() if decoded_bytes <= config.cache_gib * 2**30 else split
    note = f"passed over: {_list_counts(unread)}, which are not read; convert them to PNG or JPEG"
    return Source(
        name=config.source,
        title=f"images in {folder}",
        label_names=tuple(label_names),
        image_shape=image_shape,
        splits=splits,
        bad_images=bad_images,
        notes=(note,) if unread else (),
    )


def hash_split(files: Sequence[ImageFile]) -> dict[str, list[ImageFile]]:
    """Splits files by a hash of their keys: about 90 % for training, 5 % for validation, 5 % for test.

    A file's split depends on its own key alone: it is the same on every machine and stays when files come or go. Only
    in small folders, where a split would have less than a tenth of the files and less than `LEAST_HELD_OUT`, do the
    files with the nearest hashes fill it.

    Args:
        files: at least 3.

    Returns:
        The files of "train", "validation" and "test", each in the order of `files` and none empty.
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
    """Returns a number in [0, 1) for a file's key, which decides on the file's split."""
    # File systems spell accented letters in different ways; the normal form is the same for all.
    digest = hashlib.sha256(unicodedata.normalize("NFC", key).encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _split_files(folder: pathlib.Path, unread: Counts) -> dict[str, tuple[list[ImageFile], str]]:
    """Returns the files and the description of each split, and counts in `unread` the files of unread formats."""
    present = sorted(name for name in SPLIT_FOLDERS if (folder / name).is_dir())
    chosen = "{} images {}chosen by a hash of their names"
    if "train" not in present:
        if present:
            raise DataError(
                f"the folder {folder} has a sub-folder {present[0]} but none named train; "
                "put the training images into train, or rename the other"
            )
        splits = hash_split(_list_images(folder, 3, unread))
        return {name: (files, chosen.format(len(files), "")) for name, files in splits.items()}
    if {"val", "validation"} <= set(present):
        raise DataError(f"the folder {folder} has the sub-folders val and validation; keep one of them")
    files = {SPLIT_FOLDERS[name]: (_list_images(folder / name, 1, unread), f"{name}/") for name in present}
    if missing := {"validation", "test"} - set(files):
        training, _ = files["train"]
        _require_images(training, 3, folder / "train", unread)
        # The hash gives the same three splits whichever is missing; a split that is not needed stays in training.
        splits = hash_split(training)
        for name in missing:
            files[name] = (splits[name], chosen.format(len(splits[name]), "of train/ "))
        held_out = {file.key for name in missing for file in splits[name]}
        rest = [file for file in training if file.key not in held_out]
        files["train"] = (rest, f"train/ without {' and '.join(sorted(missing))}")
    return {name: files[name] for name in ("train", "validation", "test")}


def _list_images(folder: pathlib.Path, least: int, unread: Counts) -> list[ImageFile]:
    """Returns the images below a folder, sorted by key, without names that begin with a dot; there must be `least`."""
    files = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if name.startswith("."):
                continue
            if name.lower().endswith(UNREAD_SUFFIXES):
                unread[pathlib.Path(name).suffix.lower()] += 1
            if name.lower().endswith(SUFFIXES):
                path = pathlib.Path(parent, name)
                parts = path.relative_to(folder).parts
                files.append(ImageFile(str(path), "/".join(parts), parts[0] if len(parts) > 1 else ""))
    _require_images(files, least, folder, unread)
    return sorted(files, key=lambda file: file.key)


def _require_images(files: Sequence[ImageFile], least: int, folder: pathlib.Path, unread: Counts) -> None:
    if len(files) < least:
        hint = f"; {_list_counts(unread)} are not read, convert them to PNG or JPEG" if unread else ""
        raise DataError(
            f"the folder {folder} holds {len(files)} images ({', '.join(SUFFIXES)}); at least {least} are needed{hint}"
        )


def _list_counts(unread: Counts) -> str:
    return ", ".join(f"{count:,} {suffix} files" for suffix, count in sorted(unread.items()))


class FileSplit(Split):
    """A split of image files, each of which is read when it is decoded; see `Split` and `read_image`."""

    def __init__(
        self,
        paths: Sequence[str],
        labels: Sequence[int],
        description: str,
        *,
        image_shape: Shape,
        centre_crop: int,
        bad_images: BadImages,
        keys: Sequence[str],
    ) -> None:
        super().__init__(len(paths), description, keys)
        self._paths = list(paths)
        self._labels = np.asarray(labels, np.int32)
        self._image_shape = image_shape
        self._centre_crop = centre_crop
        self._bad_images = bad_images

    def read_all(self) -> MemorySplit:
        """Reads all images now, and returns the split of the readable ones.

        Raises:
            DataError: where none is readable, or one is not and the rule is to stop.
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
            raise DataError(
                f"none of the {self.size} images of a split can be read, the first is {self._paths[0]}; mend them"
            )
        images = images if readable.all() else images[readable]
        labels, keys = self._labels[readable], list(itertools.compress(self.keys or (), readable))
        return MemorySplit(len(images), self.description, lambda: (images, labels), keys)

    def decode(self, record: tf.Tensor) -> Tensors:
        """See `Split.decode`; the record is an index, int64 [].

        The next image stands in for a skipped one: were it left out, the batches after it would move, and a resumed
        run could not know how far without reading all images before.
        """
        return self._call(self._read_or_next, record)[:2]

    def examples(self, start: int = 0, stop: int | None = None) -> tf.data.Dataset:
        """See `Split.examples`; skipped images are left out."""

        def example(index: tf.Tensor) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
            image, label, readable = self._call(self._read_or_zeros, index)
            return {"image": image, "label": label, "index": index}, readable

        records = self.records().take(self.size if stop is None else stop).skip(start)
        read = records.map(example, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        return read.filter(lambda _, readable: readable).map(lambda example, _: example)

    def _call(self, function: Callable[[int], Read], index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        image, label, readable = tf.numpy_function(function, [index], [tf.uint8, tf.int32, tf.bool])
        return tf.ensure_shape(image, self._image_shape), tf.ensure_shape(label, []), readable

    def _read(self, index: int) -> np.ndarray | None:
        path = self._paths[index]
        if path in self._bad_images.skipped:
            return None
        try:
            return read_image(path, self._image_shape, self._centre_crop)
        except DataError as error:
            self._bad_images.skip(path, error)
            return None

    def _read_or_zeros(self, index: int) -> Read:
        image = self._read(index)
        is_readable = np.bool_(image is not None)
        return np.zeros(self._image_shape, np.uint8) if image is None else image, self._labels[index], is_readable

    def _read_or_next(self, index: int) -> Read:
        for other in (*range(index, self.size), *range(index)):
            image = self._read(other)
            if image is not None:
                return image, self._labels[other], np.bool_(True)
        raise self._bad_images.keep_error(f"none of the {self.size} images can be read, the first is {self._paths[0]}")
