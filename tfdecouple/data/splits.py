"""An opened data set (`Source`) and its splits, which list records in a fixed order and decode them to images."""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfdecouple.config.shapes import Shape
from tfdecouple.errors import DataError

# The random algorithm of all data sets. TensorFlow's default would make the order depend on the device.
ALGORITHM = "philox"

Arrays = tuple[np.ndarray, np.ndarray]
Tensors = tuple[tf.Tensor, tf.Tensor]

_LOGGER = logging.getLogger(__name__)


class BadImages:
    """The unreadable images of a data set, which raise errors or are skipped, depending on `data.on_bad_image`.

    tf.data reports an exception of a Python function as text inside one of its own errors. Errors are therefore stored
    here, and `find_image_error` returns the stored error that the text quotes.

    Attributes:
        skipped: paths of the skipped images.
    """

    def __init__(self, rule: str) -> None:
        self.skipped: set[str] = set()
        self._skips = rule == "skip"
        self._errors: dict[str, DataError] = {}

    def store_image_error(self, error: DataError, quoted: str = "") -> DataError:
        """Stores `error`, which `find_image_error` finds by `quoted`, by default the message, and returns it."""
        return self._errors.setdefault(quoted or str(error), error)

    def find_image_error(self, text: str) -> DataError | None:
        """Returns the stored error that a message of TensorFlow quotes; None if the message quotes no stored error."""
        return next((error for quoted, error in list(self._errors.items()) if quoted in text), None)

    def skip_or_raise(self, path: str, error: DataError) -> None:
        """Adds an unreadable image to `skipped`, or raises `error` if `data.on_bad_image` is "stop"."""
        if not self._skips:
            raise self.store_image_error(error)
        if path not in self.skipped:
            self.skipped.add(path)
            _LOGGER.warning("skipped: %s", error)


@dataclasses.dataclass(kw_only=True)
class Source:
    """An opened data set with three splits, which never share an image.

    Attributes:
        name: the value of `data.source`, such as "cifar10".
        title: the name in messages, such as "embedded photographs".
        label_names: names of the labels, in the order of the labels; empty for images without labels.
        image_shape: height, width and channels of the images.
        splits: {name: split} for "train", "validation" and "test".
        bad_images: the unreadable images, and the rule whether they are skipped.
    """

    name: str
    title: str
    label_names: tuple[str, ...]
    image_shape: Shape
    splits: Mapping[str, Split]
    bad_images: BadImages = dataclasses.field(default_factory=lambda: BadImages("stop"))

    @property
    def sizes(self) -> dict[str, int]:
        """The count of images in each split, as {split name: count}."""
        return {name: split.size for name, split in self.splits.items()}

    @property
    def descriptions(self) -> dict[str, str]:
        """The description of each split, as {split name: text such as "train[-1000:]"}."""
        return {name: split.description for name, split in self.splits.items()}

    @property
    def skipped(self) -> int:
        """How many unreadable images have been skipped until now (`data.on_bad_image=skip`)."""
        return len(self.bad_images.skipped)

    def open_split(self, name: str) -> Split:
        """Returns the split `name`, ready to decode images; raises DataError for an unknown name."""
        if name not in self.splits:
            raise DataError(f"there is no split {name!r}; use one of {', '.join(self.splits)}")
        self.splits[name].load_split_arrays()
        return self.splits[name]

    def find_image_key(self, split: str, index: int) -> str:
        """Returns the unique name of an image: its path below the folder, or "split/index" for images without names."""
        keys = self.splits[split].keys
        return f"{split}/{index}" if keys is None else keys[index]

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        """Returns a context that converts TensorFlow's error about an unreadable image to a DataError with the path.

        Loops over the images of a large folder run inside this context. Folders that fit into memory need no guard,
        because all their images are read when the folder is opened.
        """
        try:
            yield
        except tf.errors.OpError as error:
            # Files are read ahead, so the latest stored error can be of a later image; the message finds the right one.
            cause = self.bad_images.find_image_error(error.message)
            if cause is None:
                raise
            raise cause from None


class Split(abc.ABC):
    """The base class of splits, which list records in a fixed order; `decode_record` turns a record into an image.

    A record is cheap to shuffle and to skip: an index in this class, an encoded image in `RecordSplit`. Decoding is
    expensive, so a run that resumes in the middle of an epoch decodes only the images that it uses.

    Attributes:
        size: count of images.
        description: description of the split's images for messages, such as "train[-1000:]".
        keys: names of the images, unique in the data set; None where images have no names.
    """

    def __init__(self, size: int, description: str, keys: Sequence[str] | None = None) -> None:
        self.size = size
        self.description = description
        self.keys = keys

    def load_split_arrays(self) -> None:  # noqa: B027 - most splits need nothing
        """Loads the arrays that `decode_record` needs; the base class has none.

        Callers call this method before TensorFlow traces `decode_record`, because an array that is loaded during the
        trace would become a constant of the graph.
        """

    def list_records(self) -> tf.data.Dataset:
        """Returns a dataset of all records, in order; in the base class a record is the index of an image, int64 []."""
        return tf.data.Dataset.range(self.size)

    def select_records(self, indices: np.ndarray) -> tf.data.Dataset:
        """Returns a dataset of the records with `indices`, int64 [n], which must ascend without repetition."""
        return tf.data.Dataset.from_tensor_slices(indices)

    def shuffle_records(self, seed: tf.Tensor) -> tf.data.Dataset:
        """Returns a dataset of all records in a random order, which depends only on `seed`, int64 [2]."""
        indices = tf.range(self.size, dtype=tf.int64)
        order = tf.random.experimental.stateless_shuffle(indices, seed, alg=ALGORITHM)
        return tf.data.Dataset.from_tensor_slices(order)

    @abc.abstractmethod
    def decode_record(self, record: Any) -> Tensors:
        """Returns image and label of a record, as tensors inside a tf.data pipeline.

        The image is uint8 [height, width, channels]; the label is int32 [], -1 for none.
        """

    def decode_examples(self, indices: np.ndarray | None = None, replace_unreadable: bool = False) -> tf.data.Dataset:
        """Returns a dataset of all images in order, not augmented, or of those with `indices`, int64 [n], ascending.

        With `replace_unreadable` the next readable image replaces an unreadable image, so that the dataset has as many
        images as indices. Otherwise the dataset leaves unreadable images out.

        Returns:
            A finite dataset of dicts: "image" uint8 [height, width, channels], "label" int32 [] (-1 for none) and
            "index" int64 [] in the split.
        """
        numbers = tf.data.Dataset.range(self.size) if indices is None else tf.data.Dataset.from_tensor_slices(indices)
        records = self.list_records() if indices is None else self.select_records(indices)

        def decode(index: tf.Tensor, record: Any) -> dict[str, tf.Tensor]:
            image, label = self.decode_record(record)
            return {"image": image, "label": label, "index": index}

        pairs = tf.data.Dataset.zip(numbers, records)
        return pairs.map(decode, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)


class MemorySplit(Split):
    """A split whose decoded images are in memory, as one array.

    The function `load` returns the images, uint8 [size, height, width, channels], and the labels, int32 [size]. The
    split calls `load` once, when `Source.open_split` first opens the split.
    """

    def __init__(
        self, size: int, description: str, load: Callable[[], Arrays], keys: Sequence[str] | None = None
    ) -> None:
        super().__init__(size, description, keys)
        self._load: Callable[[], Arrays] | None = load
        self._arrays: tuple[tf.Tensor, ...] = ()

    def load_split_arrays(self) -> None:
        """Loads the arrays of images and labels at the first call; later calls do nothing."""
        if self._load is not None:
            # The arrays are placed on the CPU, because tf.data pipelines run there.
            with tf.device("/CPU:0"):
                self._arrays = tuple(tf.convert_to_tensor(array) for array in self._load())
            # The function is released, because it may still hold the memory of the arrays that it returned.
            self._load = None

    def decode_record(self, record: tf.Tensor) -> Tensors:
        """Returns image and label for `record`, the index of an image, int64 []."""
        images, labels = self._arrays
        return tf.gather(images, record), tf.gather(labels, record)


class RecordSplit(Split):
    """A split that is too large for the memory and can only be read in order.

    `records` is a dataset of encoded records (dense tensors of fixed shapes) that yields the same records in every
    pass. `decode` is a function that returns image and label of a record. `window` is how many records are shuffled
    together, in memory.
    """

    def __init__(
        self, size: int, description: str, *, records: tf.data.Dataset, decode: Callable[[Any], Tensors], window: int
    ) -> None:
        super().__init__(size, description)
        self._records = records
        self._decode = decode
        self._window = window

    def list_records(self) -> tf.data.Dataset:
        """Returns a dataset of all encoded records in the order of the split."""
        return self._records

    def select_records(self, indices: np.ndarray) -> tf.data.Dataset:
        """Returns a dataset of the records with `indices`; reads all records up to the last index, without decoding."""
        is_chosen = tf.constant(np.isin(np.arange(self.size), indices))
        numbered = self._records.take(int(np.max(indices, initial=-1)) + 1).enumerate()
        return numbered.filter(lambda index, _: is_chosen[index]).map(lambda _, record: record)

    def shuffle_records(self, seed: tf.Tensor) -> tf.data.Dataset:
        """Returns a dataset of all records, shuffled within windows of records whose borders depend on the seed.

        The first window begins at a random one of the first `window` records; the records before this one come last.
        """
        first = tf.random.stateless_uniform([], seed, 0, self._window, tf.int64, alg=ALGORITHM)
        windows = self._records.skip(first).batch(self._window)
        windows = windows.concatenate(self._records.take(first).batch(self._window))

        def permute(number: tf.Tensor, window: Any) -> tf.data.Dataset:
            count = tf.shape(tf.nest.flatten(window)[0])[0]
            window_seed = tf.random.experimental.stateless_fold_in(seed, number, alg=ALGORITHM)
            order = tf.random.experimental.stateless_shuffle(tf.range(count), window_seed, alg=ALGORITHM)
            permutation = tf.nest.map_structure(lambda values: tf.gather(values, order), window)
            return tf.data.Dataset.from_tensor_slices(permutation)

        return windows.enumerate().flat_map(permute)

    def decode_record(self, record: Any) -> Tensors:
        """Returns image and label for `record`, an encoded example; calls the function `decode` of the constructor."""
        return self._decode(record)
