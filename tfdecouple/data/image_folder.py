"""The data source `folder:PATH`: a folder of image files, assigned to splits by sub-folders or a hash of file names."""

import concurrent.futures
import dataclasses
import hashlib
import itertools
import math
import os
import pathlib
import unicodedata
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import numpy as np
import tensorflow as tf

from tfdecouple.config.shapes import ImageShape
from tfdecouple.data.image_file import SUFFIXES, read_image
from tfdecouple.data.sources import BadImages, Source, SourceKind
from tfdecouple.data.splits import MemorySplit, Split, Tensors
from tfdecouple.errors import DataError

# The fraction of the images that become test images by the hash of their file names; as many are for validation.
HELD_OUT_SHARE = 0.05
# The test split and the validation split each have at least this many images, and in small folders a tenth of all.
LEAST_HELD_OUT = 8

# {name of a sub-folder: split to which the images in the sub-folder belong}.
SPLIT_FOLDERS = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}


class ImageFile(NamedTuple):
    """An image file: `key`, such as "cats/1.png", is its path below the folder of its split, with "/" on every system.

    `label_name` is the label of the image, the first folder in `key`; "" for a `key` without a folder.
    """

    path: str
    key: str
    label_name: str


class ImageFolder(SourceKind):
    """The data source `folder:PATH`: a folder of image files, whose sub-folders are labels."""

    takes_path = True
    crops_user_images = True
    rights: ClassVar[dict[str, str]] = {
        "": "Images from a folder: the person who trained the model knows their rights, which are not recorded here."
    }

    def open(self, image_shape: ImageShape, download: bool) -> Source:
        """Returns the `Source` of the images in the folder that `config.source` names; sub-folders are labels.

        If all decoded images take at most `data.cache_gib` GiB, this method reads them into memory. It only lists the
        files of a larger folder, because even the headers of millions of files take long to read. An unreadable image
        in a larger folder raises an error when a batch needs the image (see `Source.guard`). DataError is raised if the
        folder is missing, has too few images for three splits or contradictory sub-folders, or if an image cannot be
        read.
        """
        config = self.config
        # os.path.expanduser leaves "~name" of an unknown user as it is; Path.expanduser would raise an error.
        folder = pathlib.Path(os.path.expanduser(config.source.removeprefix("folder:")))
        if config.source == "folder:" or not folder.is_dir():
            raise DataError(f"there is no folder {folder}; data.source=folder:PATH needs a folder of images")
        files = _assign_files_to_splits(folder)
        label_names = sorted({file.label_name for split_files, _ in files.values() for file in split_files} - {""})
        labels = {name: label for label, name in enumerate(label_names)}
        bad_images = BadImages(config.on_bad_image)

        def make_split(files: Sequence[ImageFile], description: str) -> FileSplit:
            return FileSplit(
                len(files),
                description,
                keys=[pathlib.Path(file.path).relative_to(folder).as_posix() for file in files],
                paths=[file.path for file in files],
                labels=np.array([labels.get(file.label_name, -1) for file in files], np.int32),
                image_shape=image_shape,
                centre_crop=config.centre_crop,
                bad_images=bad_images,
            )

        whole = sorted((file for split_files, _ in files.values() for file in split_files), key=lambda file: file.path)
        all_images = make_split(whole, "all images")
        fits = all_images.size * math.prod(image_shape) <= config.cache_gib * 2**30
        splits: dict[str, Split] = {}
        for name, (split_files, description) in files.items():
            split = make_split(split_files, description)
            splits[name] = split.load_folder_into_memory() if fits else split
        return Source(
            name=config.source,
            title=f"images in {folder}",
            label_names=tuple(label_names),
            image_shape=image_shape,
            splits=splits,
            all_images=all_images,
            bad_images=bad_images,
        )


def split_files_by_hash(files: Sequence[ImageFile]) -> dict[str, list[ImageFile]]:
    """Divides image files by a hash of their keys: about 90 % train, 5 % validation, 5 % test; returns {split: files}.

    The split of a file depends only on its key, so that other files and machines do not change it. Small folders are
    the exception: a validation or test split with less than a tenth of the files and less than `LEAST_HELD_OUT` files
    also gets the files with the next larger hashes. With 3 or more files, each split has at least one.
    """
    hashes = [hash_file_key(file.key) for file in files]
    order = sorted(range(len(files)), key=hashes.__getitem__)
    count = len(files)
    least = min(max(count // 10, 1), LEAST_HELD_OUT)
    test = sum(value < HELD_OUT_SHARE for value in hashes)
    held_out = sum(value < 2 * HELD_OUT_SHARE for value in hashes)
    test = min(max(test, least), count - 2)
    held_out = min(max(held_out, test + least), count - 1)
    splits = {"train": order[held_out:], "validation": order[test:held_out], "test": order[:test]}
    return {name: [files[index] for index in sorted(indices)] for name, indices in splits.items()}


def hash_file_key(key: str) -> float:
    """Returns a hash of `key`, an image file's path below its folder, as a float in [0, 1); it decides on the split."""
    # The key is brought into Unicode's normal form, because file systems encode accented letters in different ways.
    digest = hashlib.sha256(unicodedata.normalize("NFC", key).encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _assign_files_to_splits(folder: pathlib.Path) -> dict[str, tuple[list[ImageFile], str]]:
    present = sorted(name for name in SPLIT_FOLDERS if (folder / name).is_dir())
    chosen = "{} images {}chosen by a hash of their names"
    if "train" not in present:
        if present:
            raise DataError(
                f"the folder {folder} has a sub-folder {present[0]} but none named train; "
                f"put the training images into train, or rename {present[0]}"
            )
        splits = split_files_by_hash(list_image_files(folder, 3))
        return {name: (files, chosen.format(len(files), "")) for name, files in splits.items()}
    if {"val", "validation"} <= set(present):
        raise DataError(f"the folder {folder} has the sub-folders val and validation; keep one of them")
    missing = {"validation", "test"} - {SPLIT_FOLDERS[name] for name in present}
    least = {name: 3 if missing and name == "train" else 1 for name in present}
    files = {SPLIT_FOLDERS[name]: (list_image_files(folder / name, least[name]), f"{name}/") for name in present}
    if missing:
        training, _ = files["train"]
        # A split without a sub-folder gets the images of train/ that the hash assigns to it; train loses these images.
        splits = split_files_by_hash(training)
        for name in missing:
            files[name] = (splits[name], chosen.format(len(splits[name]), "of train/ "))
        held_out = {file.key for name in missing for file in splits[name]}
        rest = [file for file in training if file.key not in held_out]
        files["train"] = (rest, f"train/ without {' and '.join(sorted(missing))}")
    return {name: files[name] for name in ("train", "validation", "test")}


def list_image_files(folder: pathlib.Path, least: int) -> list[ImageFile]:
    """Returns a folder's `ImageFile`s, sorted by key, without hidden files; DataError if fewer than `least`."""
    files = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                path = pathlib.Path(parent, name)
                parts = path.relative_to(folder).parts
                files.append(ImageFile(str(path), "/".join(parts), parts[0] if len(parts) > 1 else ""))
    if len(files) < least:
        raise DataError(f"the folder {folder} holds {len(files)} images ({', '.join(SUFFIXES)}); give {least} or more")
    return sorted(files, key=lambda file: file.key)


@dataclasses.dataclass(eq=False, kw_only=True)
class FileSplit(Split):
    """A split of image files with `paths` and `labels`, int32 `[size]`; it reads a file each time a batch needs it."""

    paths: Sequence[str]
    labels: np.ndarray
    image_shape: ImageShape
    centre_crop: int
    bad_images: BadImages

    def load_folder_into_memory(self) -> MemorySplit:
        """Returns a `MemorySplit` of the readable images; DataError if none is, or by `data.on_bad_image`."""
        images = np.empty((self.size, *self.image_shape), np.uint8)

        def fill(index: int) -> bool:
            if (image := self._read_unless_skipped(index)) is None:
                return False
            images[index] = image
            return True

        with concurrent.futures.ThreadPoolExecutor() as pool:
            readable = np.fromiter(pool.map(fill, range(self.size)), bool, self.size)
        if not readable.any():
            raise self._make_none_readable_error()
        images = images if readable.all() else images[readable]
        labels, keys = self.labels[readable], list(itertools.compress(self.keys or (), readable))
        return MemorySplit(len(images), self.description, lambda: (images, labels), keys=keys)

    def decode_record(self, record: tf.Tensor) -> Tensors:
        # If unreadable images were left out instead of replaced, all later batches would shift, and a resumed run would
        # have to read all earlier images to find its position.
        def read_next_readable(index: int) -> tuple[np.ndarray, np.int32]:
            for position in itertools.chain(range(index, self.size), range(index)):
                if (image := self._read_unless_skipped(position)) is not None:
                    return image, self.labels[position]
            raise self.bad_images.store_image_error(self._make_none_readable_error())

        image, label = tf.numpy_function(read_next_readable, [record], [tf.uint8, tf.int32])
        return tf.ensure_shape(image, self.image_shape), tf.ensure_shape(label, [])

    def decode_examples(self, indices: np.ndarray | None = None, replace_unreadable: bool = False) -> tf.data.Dataset:
        examples = super().decode_examples(indices)
        if replace_unreadable:
            return examples

        @tf.autograph.experimental.do_not_convert
        def is_readable(example: dict[str, tf.Tensor]) -> tf.Tensor:
            # By now, decoding has added the path of an unreadable image to `skipped`.
            is_skipped = tf.numpy_function(
                lambda index: self.paths[index] in self.bad_images.skipped, [example["index"]], tf.bool
            )
            return ~tf.ensure_shape(is_skipped, [])

        return examples.filter(is_readable)

    def _read_unless_skipped(self, index: int) -> np.ndarray | None:
        """Reads the image file with this index, uint8 [height, width, channels]; returns None if it is skipped."""
        path = self.paths[index]
        if path in self.bad_images.skipped:
            return None
        try:
            return read_image(path, self.image_shape, self.centre_crop)
        except DataError as error:
            self.bad_images.skip_or_raise(path, error)
            return None

    def _make_none_readable_error(self) -> DataError:
        return DataError(f"none of the {self.size} images can be read, the first is {self.paths[0]}; repair them")
