"""An opened data set (`Source`) and its splits, which list records in a fixed order and decode records to images."""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfdecouple.config.shapes import ImageShape
from tfdecouple.errors import DataError, one_line
from tfdecouple.tensorflow_internals import READ_ERRORS

# The random algorithm of all data sets. TensorFlow's default would make the order depend on the device.
ALGORITHM = "philox"

Arrays = tuple[np.ndarray, np.ndarray]
Tensors = tuple[tf.Tensor, tf.Tensor]

_LOGGER = logging.getLogger(__name__)


def fold_into_seed(seed: tf.Tensor, number: tf.Tensor | int) -> tf.Tensor:
    """Returns a new seed, int64 [2], computed from `seed`, int64 [2], and a number, such as that of an epoch."""
    return tf.random.experimental.stateless_fold_in(seed, number, alg=ALGORITHM)


class BadImages:
    """The unreadable images of a data set; `data.on_bad_image` decides whether they raise errors or are skipped.

    tf.data reports an exception of a Python function only as text inside a TensorFlow error. This class therefore
    stores the exceptions, and `find_image_error` returns the stored exception that the text quotes.

    Attributes:
        skipped: set of the paths of the skipped images.
    """

    def __init__(self, rule: str) -> None:
        self.skipped: set[str] = set()
        self._skips = rule == "skip"
        self._errors: dict[str, DataError] = {}

    def store_image_error(self, error: DataError, quoted: str = "") -> DataError:
        """Stores and returns `error`, which `find_image_error` finds by `quoted`, or else by the error's message."""
        return self._errors.setdefault(quoted or str(error), error)

    def find_image_error(self, text: str) -> DataError | None:
        """Returns the stored DataError that `text`, the message of a TensorFlow error, quotes, or None."""
        return next((error for quoted, error in list(self._errors.items()) if quoted in text), None)

    def skip_or_raise(self, path: str, error: DataError) -> None:
        """Adds the unreadable image file `path` to `skipped`, or raises `error` if `data.on_bad_image` is "stop"."""
        if not self._skips:
            advice = "repair or remove it, or skip unreadable images with data.on_bad_image=skip"
            raise self.store_image_error(DataError(f"{error}; {advice}")) from error
        if path not in self.skipped:
            self.skipped.add(path)
            _LOGGER.warning("skipped: %s", error)


@dataclasses.dataclass(kw_only=True)
class Source:
    """An opened data set with three splits that have no image in common.

    Attributes:
        name: the value of `data.source`, such as "cifar10".
        title: what messages call the data set, such as "sample photographs".
        label_names: names of the labels; a label is an index into this tuple, which is empty for images without labels.
        image_shape: height, width and channels of the images, after cropping and resizing.
        splits: {"train": `Split`, "validation": `Split`, "test": `Split`}; `open_split("all")` adds
            `all_images`.
        all_images: a split of all images, or None.
        note: a sentence on how the splits differ, which a training prints beside its results, or "".
        bad_images: the record of unreadable images, and the rule whether to skip them.
    """

    name: str
    title: str
    label_names: tuple[str, ...]
    image_shape: ImageShape
    splits: Mapping[str, Split]
    all_images: Split | None = None
    note: str = ""
    bad_images: BadImages = dataclasses.field(default_factory=lambda: BadImages("stop"))

    @property
    def sizes(self) -> dict[str, int]:
        """{split: count of its images}, a new dict, for the splits of this data set."""
        return {name: split.size for name, split in self.splits.items()}

    @property
    def descriptions(self) -> dict[str, str]:
        """{split: text that describes its images, such as "train[-1000:]"}, for the splits of this data set."""
        return {name: split.description for name, split in self.splits.items()}

    @property
    def skipped(self) -> int:
        """The count of this data set's images that were unreadable and skipped (`data.on_bad_image=skip`) until now."""
        return len(self.bad_images.skipped)

    def open_split(self, name: str) -> Split:
        """Returns the `Split` called `name`, such as "train", ready to decode images; raises DataError if unknown."""
        if name == "all" and self.all_images is not None:
            self.splits = {**self.splits, name: self.all_images}
        if name not in self.splits:
            raise DataError(f"there is no split {name!r}; use one of {', '.join(self.splits)}")
        self.splits[name].load_split_arrays()
        return self.splits[name]

    def find_image_key(self, split: str, index: int) -> str:
        """Returns the unique key of an image: its path below the folder, or "SPLIT/INDEX" if images are not files."""
        keys = self.splits[split].keys
        return f"{split}/{index}" if keys is None else keys[index]

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        """Returns a context for loops over batches, in which unreadable images and records raise a DataError."""
        try:
            yield
        except READ_ERRORS as error:
            # tf.data reads files ahead, so the latest stored error can be about a later image than the message.
            cause = self.bad_images.find_image_error(str(error))
            if cause is None and (isinstance(error, UnicodeDecodeError) or "IteratorGetNext" in str(error)):
                cause = DataError(f"cannot read {self.title}: {one_line(error, first=True)}; prepare it again")
            if cause is None:
                raise
            raise cause from None


class Split(abc.ABC):
    """The base class of splits, which list records in a fixed order; `decode_record` turns a record into an image.

    A record is cheap to shuffle and to skip: an image's index in this class, an encoded image in `RecordSplit`.
    Decoding is expensive, so a run that resumes in the middle of an epoch decodes only the images that it uses.

    Attributes:
        size: count of images.
        description: text that says in messages which images these are, such as "train[-1000:]".
        keys: list of the images' names, unique in the data set; None if images have no names.
    """

    def __init__(self, size: int, description: str, keys: Sequence[str] | None = None) -> None:
        self.size = size
        self.description = description
        self.keys = keys

    def load_split_arrays(self) -> None:  # noqa: B027 - most splits need nothing
        """Checks files, and loads the arrays of `decode_record`, which in TensorFlow's trace would become constants."""

    def list_records(self) -> tf.data.Dataset:
        """Returns a dataset of all records of this split, in order; here a record is an image's index, int64 []."""
        return tf.data.Dataset.range(self.size)

    def select_records(self, indices: np.ndarray) -> tf.data.Dataset:
        """Returns a dataset of this split's records with `indices`, int64 [n], which must ascend without repetition."""
        return tf.data.Dataset.from_tensor_slices(indices)

    def shuffle_records(self, seed: tf.Tensor) -> tf.data.Dataset:
        """Returns a dataset of all records of this split, in a random order that depends only on `seed`, int64 [2]."""
        indices = tf.range(self.size, dtype=tf.int64)
        order = tf.random.experimental.stateless_shuffle(indices, seed, alg=ALGORITHM)
        return tf.data.Dataset.from_tensor_slices(order)

    @abc.abstractmethod
    def decode_record(self, record: tf.Tensor) -> Tensors:
        """Decodes a record in a tf.data pipeline; returns (image, uint8 [height, width, channels]; label, int32 [])."""

    def decode_examples(self, indices: np.ndarray | None = None, replace_unreadable: bool = False) -> tf.data.Dataset:
        """Returns a dataset of all images of this split in order, or only of those with `indices`, ascending int64 [n].

        The dataset has dicts: "image" uint8 [height, width, channels], "label" int32 [] (-1 for none) and "index"
        int64 [], the image's index in the split. With `replace_unreadable`, the next readable image replaces an
        unreadable one, so that the dataset has n images. Otherwise the dataset leaves unreadable images out.
        """
        numbers = tf.data.Dataset.range(self.size) if indices is None else tf.data.Dataset.from_tensor_slices(indices)
        records = self.list_records() if indices is None else self.select_records(indices)

        @tf.autograph.experimental.do_not_convert
        def decode(index: tf.Tensor, record: tf.Tensor) -> dict[str, tf.Tensor]:
            image, label = self.decode_record(record)
            return {"image": image, "label": label, "index": index}

        pairs = tf.data.Dataset.zip(numbers, records)
        return pairs.map(decode, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)


class MemorySplit(Split):
    """A split that holds its decoded images in memory, as one array.

    The argument `load` is a function that returns the images, uint8 [size, height, width, channels], and the labels,
    int32 [size]. The first `Source.open_split` calls `load`; later ones reuse the arrays.
    """

    def __init__(
        self, size: int, description: str, load: Callable[[], Arrays], keys: Sequence[str] | None = None
    ) -> None:
        super().__init__(size, description, keys)
        self._load: Callable[[], Arrays] | None = load
        self._arrays: tuple[tf.Tensor, ...] = ()

    def load_split_arrays(self) -> None:
        if self._load is not None:
            # The arrays stay in the memory of the CPU, because tf.data pipelines run there.
            with tf.device("/CPU:0"):
                self._arrays = tuple(tf.convert_to_tensor(array) for array in self._load())
            # The function is dropped, because it possibly holds a second copy of the arrays in memory.
            self._load = None

    def decode_record(self, record: tf.Tensor) -> Tensors:
        images, labels = self._arrays
        return tf.gather(images, record), tf.gather(labels, record)


class RecordSplit(Split):
    """A split that is too large for the memory and can only be read in order.

    `check` is a function that raises DataError if the files of the split cannot be read. `records` is a dataset of
    encoded images with labels (dense tensors of fixed shapes), in the same order in every pass. `decode` is a function
    of a record that returns (image, label). `window` is the count of records that are shuffled together, in memory.
    """

    def __init__(
        self,
        size: int,
        description: str,
        *,
        check: Callable[[], None],
        records: tf.data.Dataset,
        decode: Callable[[Any], Tensors],
        window: int,
    ) -> None:
        super().__init__(size, description)
        # The files are checked once, and only those of a split that is used.
        self._check = functools.cache(check)
        self._records = records
        self._decode = decode
        self._window = window

    def load_split_arrays(self) -> None:
        self._check()

    def list_records(self) -> tf.data.Dataset:
        return self._records

    def select_records(self, indices: np.ndarray) -> tf.data.Dataset:
        """Returns a dataset of the encoded records with `indices`, int64 [n]; skips the others without decoding."""
        is_chosen = tf.constant(np.isin(np.arange(self.size), indices))
        numbered = self._records.take(int(np.max(indices, initial=-1)) + 1).enumerate()
        return numbered.filter(lambda index, _: is_chosen[index]).map(lambda _, record: record)

    def shuffle_records(self, seed: tf.Tensor) -> tf.data.Dataset:
        """Returns a dataset of all encoded records of this split, shuffled within windows of `window` records.

        The first window begins at a random one of the first `window` records; the records before that one come last.
        `seed`, int64 [2], determines this record and the order.
        """
        first = tf.random.stateless_uniform([], seed, 0, self._window, tf.int64, alg=ALGORITHM)
        windows = self._records.skip(first).batch(self._window)
        windows = windows.concatenate(self._records.take(first).batch(self._window))

        def permute(number: tf.Tensor, window: tf.Tensor) -> tf.data.Dataset:
            count = tf.shape(tf.nest.flatten(window)[0])[0]
            seed_of_window = fold_into_seed(seed, number)
            order = tf.random.experimental.stateless_shuffle(tf.range(count), seed_of_window, alg=ALGORITHM)
            permutation = tf.nest.map_structure(lambda values: tf.gather(values, order), window)
            return tf.data.Dataset.from_tensor_slices(permutation)

        return windows.enumerate().flat_map(permute)

    def decode_record(self, record: tf.Tensor) -> Tensors:
        return self._decode(record)
