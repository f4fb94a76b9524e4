"""Folders of image files: `folder:PATH`."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import hashlib
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
from tfdecouple.data.source import BadImages, Source
from tfdecouple.data.splits import MemorySplit, Split, Tensors
from tfdecouple.errors import DataError

# Shares of the images that the hash gives to test and to validation.
TEST_SHARE, VALIDATION_SHARE = 0.05, 0.05
# Of few images each of the two has a tenth at least, until it has so many.
LEAST_HELD_OUT = 8

# Sub-folders that are splits, by their names.
SPLIT_FOLDERS = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}


@dataclasses.dataclass(frozen=True)
class ImageFile:
    """An image file below a folder.

    Attributes:
        path: of the file.
        key: its path from the folder, with "/" between its folders.
        label_name: the sub-folder it lies in, or "" where it lies in none.
    """

    path: str
    key: str
    label_name: str


def open_folder(config: DataConfig, image_shape: Shape) -> Source:
    """Opens a folder of images; sub-folders are labels.

    Folders that decoded take at most `cache_gib` are read at once, so that a bad image shows now; of larger ones
    only the names are listed, and a bad image shows when it is first wanted (see `Source.guard`): merely to look at
    millions of headers takes long, and would not find a file that is cut short.

    Args:
        config: whose `source` is "folder:PATH", `centre_crop`, `on_bad_image` and `cache_gib`.
        image_shape: height, width and channels of the images.

    Raises:
        DataError: where the folder is missing, holds too few images for three splits or contradictory sub-folders, or
            an image in it cannot be read.
    """
    # Path.expanduser raises an error of its own where there is no such user.
    folder = pathlib.Path(os.path.expanduser(config.source.removeprefix("folder:")))
    if not config.source.removeprefix("folder:"):
        raise DataError(f"data.source is {config.source!r}; name the folder, as in folder:PATH")
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}; data.source=folder:PATH needs a folder of images")
    files, unread = _split_files(folder)
    names = sorted({file.label_name for chosen, _ in files.values() for file in chosen} - {""})
    number = {name: label for label, name in enumerate(names)}
    bad_images = BadImages(config.on_bad_image)
    decoded_bytes = sum(len(chosen) for chosen, _ in files.values()) * math.prod(image_shape)
    make: Callable[..., Split] = _memory_split if decoded_bytes <= config.cache_gib * 2**30 else FileSplit
    return Source(
        name=config.source,
        title=f"images in {folder}",
        label_names=tuple(names),
        image_shape=image_shape,
        splits={
            name: make(
                [file.path for file in chosen],
                [number.get(file.label_name, -1) for file in chosen],
                description,
                image_shape=image_shape,
                centre_crop=config.centre_crop,
                bad_images=bad_images,
                keys=[pathlib.Path(file.path).relative_to(folder).as_posix() for file in chosen],
            )
            for name, (chosen, description) in files.items()
        },
        bad_images=bad_images,
        notes=[f"passed over: {_counted(unread)}, which are not read; convert them to PNG or JPEG"] if unread else [],
    )


def hash_split(files: Sequence[ImageFile]) -> dict[str, list[ImageFile]]:
    """Splits files by a hash of their keys: about 90 % for training, 5 % for validation, 5 % for test.

    A file's split depends on its own key alone, so it is the same on every machine and stays when files come or go.
    Only in small folders, where this would leave a split with less than a tenth of the files and less than
    `LEAST_HELD_OUT`, do the files with the nearest hashes fill it.

    Args:
        files: at least 3.

    Returns:
        The files of "train", "validation" and "test", each in the order of `files` and none empty.
    """
    hashes = [hash_of(file.key) for file in files]
    order = sorted(range(len(files)), key=hashes.__getitem__)
    count = len(files)
    least = min(max(count // 10, 1), LEAST_HELD_OUT)
    test = sum(hashed < TEST_SHARE for hashed in hashes)
    held_out = sum(hashed < TEST_SHARE + VALIDATION_SHARE for hashed in hashes)
    test = min(max(test, least), count - 2)
    held_out = min(max(held_out, test + least), count - 1)
    splits = {"train": order[held_out:], "validation": order[test:held_out], "test": order[:test]}
    return {name: [files[index] for index in sorted(indices)] for name, indices in splits.items()}


def hash_of(key: str) -> float:
    """Returns the place of a file between 0 and 1 by which it falls to a split."""
    # File systems spell accented letters in different ways; the normal form is the same for all.
    digest = hashlib.sha256(unicodedata.normalize("NFC", key).encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _split_files(folder: pathlib.Path) -> tuple[dict[str, tuple[list[ImageFile], str]], collections.Counter[str]]:
    """Returns the files of each split with the split's description, and how many images are not read, by ending."""
    unread: collections.Counter[str] = collections.Counter()
    present = sorted(name for name in SPLIT_FOLDERS if (folder / name).is_dir())
    if "train" not in present:
        if present:
            raise DataError(
                f"the folder {folder} has a sub-folder {present[0]} but none named train; "
                "put the training images into train, or rename the other"
            )
        splits = hash_split(_at_least(_listed(folder, unread), 3, folder, unread))
        described = "{} images chosen by a hash of their names"
        return {name: (chosen, described.format(len(chosen))) for name, chosen in splits.items()}, unread
    if {"val", "validation"} <= set(present):
        raise DataError(f"the folder {folder} has the sub-folders val and validation; keep one of them")
    files = {}
    for name in present:
        files[SPLIT_FOLDERS[name]] = (_at_least(_listed(folder / name, unread), 1, folder / name, unread), f"{name}/")
    missing = {"validation", "test"} - set(files)
    if missing:
        # The hash gives the same three splits whichever is missing; one that is not needed stays in training.
        splits = hash_split(_at_least(files["train"][0], 3, folder / "train", unread))
        kept = {file.key for name, chosen in splits.items() if name not in missing for file in chosen}
        training = [file for file in files["train"][0] if file.key in kept]
        files["train"] = (training, f"train/ without {' and '.join(sorted(missing))}")
        for name in missing:
            files[name] = (splits[name], f"{len(splits[name])} images of train/ chosen by a hash of their names")
    return {name: files[name] for name in ("train", "validation", "test")}, unread


def _listed(folder: pathlib.Path, unread: collections.Counter[str]) -> list[ImageFile]:
    """Returns the images below a folder, sorted by their keys; names that begin with a dot are left out.

    Those of a kind that is not read are counted in `unread`, by their ending.
    """
    found = []
    for where, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if name.startswith("."):
                continue
            if name.lower().endswith(UNREAD_SUFFIXES):
                unread[pathlib.Path(name).suffix.lower()] += 1
            if name.lower().endswith(SUFFIXES):
                path = pathlib.Path(where, name)
                parts = path.relative_to(folder).parts
                found.append(ImageFile(str(path), "/".join(parts), parts[0] if len(parts) > 1 else ""))
    return sorted(found, key=lambda file: file.key)


def _at_least(
    files: list[ImageFile], least: int, folder: pathlib.Path, unread: collections.Counter[str]
) -> list[ImageFile]:
    if len(files) < least:
        others = f"; {_counted(unread)} are not read, convert them to PNG or JPEG" if unread else ""
        raise DataError(
            f"the folder {folder} holds {len(files)} images ({', '.join(SUFFIXES)}); at least {least} are needed"
            f"{others}"
        )
    return files


def _counted(unread: collections.Counter[str]) -> str:
    return ", ".join(f"{count:,} {suffix} files" for suffix, count in sorted(unread.items()))


def _memory_split(
    paths: Sequence[str],
    labels: Sequence[int],
    description: str,
    *,
    image_shape: Shape,
    centre_crop: int,
    bad_images: BadImages,
    keys: Sequence[str],
) -> Split:
    """Returns what `FileSplit` is, of images that are read now."""
    images = np.empty((len(paths), *image_shape), np.uint8)

    def read(index: int) -> bool:
        try:
            images[index] = read_image(paths[index], image_shape, centre_crop)
        except DataError as error:
            bad_images.meet(paths[index], error)
            return False
        return True

    with concurrent.futures.ThreadPoolExecutor() as pool:
        readable = np.fromiter(pool.map(read, range(len(paths))), bool, len(paths))
    if not readable.any():
        raise DataError(f"none of the {len(paths)} images of a split can be read, the first is {paths[0]}; mend them")
    held = images if readable.all() else images[readable]
    held_labels = np.asarray(labels, np.int32)[readable]
    held_keys = [key for key, kept in zip(keys, readable, strict=True) if kept]
    return MemorySplit(len(held), description, lambda: (held, held_labels), held_keys)


# An image, its label and whether the file was readable.
Read = tuple[np.ndarray, np.int32, np.bool_]


class FileSplit(Split):
    """A split of image files too many for the memory."""

    def __init__(
        self,
        paths: Sequence[str],
        labels: Sequence[int],
        description: str,
        *,
        image_shape: Shape,
        centre_crop: int,
        bad_images: BadImages,
        keys: Sequence[str] | None = None,
    ) -> None:
        """Makes the split; opens no file.

        Args:
            paths: of the images.
            labels: one for each path; -1 for none.
            description: for people.
            image_shape: height, width and channels of the decoded images.
            centre_crop: see `read_image`.
            bad_images: is told of files that cannot be read.
            keys: see `Split`.
        """
        super().__init__(len(paths), description, keys)
        self._paths = list(paths)
        self._labels = np.asarray(labels, np.int32)
        self._image_shape = image_shape
        self._centre_crop = centre_crop
        self._bad_images = bad_images

    def decode(self, record: tf.Tensor) -> Tensors:
        """See `Split.decode`; the record is an index, int64 [].

        In place of a skipped image comes the next one: were it left out, the batches after it would move, and a run
        that continues could not know how far without reading all images before.
        """
        return self._called(self._read_or_next, record)[:2]

    def examples(self, start: int = 0, stop: int | None = None) -> tf.data.Dataset:
        """See `Split.examples`; skipped images are left out."""

        def example(index: tf.Tensor) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
            image, label, readable = self._called(self._read_or_zeros, index)
            return {"image": image, "label": label, "index": index}, readable

        records = self.records().take(self.size if stop is None else stop).skip(start)
        read = records.map(example, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        return read.filter(lambda _, readable: readable).map(lambda example, _: example)

    def _called(self, function: Callable[[int], Read], index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        image, label, readable = tf.numpy_function(function, [index], [tf.uint8, tf.int32, tf.bool])
        return tf.ensure_shape(image, self._image_shape), tf.ensure_shape(label, []), readable

    def _read(self, index: int) -> np.ndarray | None:
        path = self._paths[index]
        if self._bad_images.is_skipped(path):
            return None
        try:
            return read_image(path, self._image_shape, self._centre_crop)
        except DataError as error:
            self._bad_images.meet(path, error)
            return None

    def _read_or_zeros(self, index: int) -> Read:
        image = self._read(index)
        if image is None:
            zeros = np.zeros(self._image_shape, np.uint8)
            return zeros, self._labels[index], np.bool_(False)
        return image, self._labels[index], np.bool_(True)

    def _read_or_next(self, index: int) -> Read:
        for other in (*range(index, self.size), *range(index)):
            image = self._read(other)
            if image is not None:
                return image, self._labels[other], np.bool_(True)
        raise self._bad_images.fail(f"none of the {self.size} images can be read, the first is {self._paths[0]}")
