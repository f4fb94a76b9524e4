"""The splits of data sets, which list records in a fixed order and decode records to images."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import tensorflow as tf

# The random algorithm of all data sets. TensorFlow's default would make the order depend on the device.
ALGORITHM = "philox"

ImagesAndLabels = tuple[np.ndarray, np.ndarray]
Tensors = tuple[tf.Tensor, tf.Tensor]


def fold_into_seed(seed: tf.Tensor, number: tf.Tensor | int) -> tf.Tensor:
    """Returns a new seed, int64 [2], computed from `seed`, int64 [2], and a number, such as that of an epoch."""
    return tf.random.experimental.stateless_fold_in(seed, number, alg=ALGORITHM)


@dataclasses.dataclass(eq=False)
class Split(abc.ABC):
    """The base class of splits, which list records in a fixed order; `decode_record` turns a record into an image.

    A record is cheap to shuffle and to skip: an image's index in this class, an encoded image in `RecordSplit`.
    Decoding is expensive, so a run that resumes in the middle of an epoch decodes only the images that it uses.

    Attributes:
        size: count of images.
        description: text that says in messages which images these are, such as "train[-1000:]".
        keys: list of the images' names, unique in the data set; None if images have no names.
    """

    size: int
    description: str
    keys: Sequence[str] | None = dataclasses.field(default=None, kw_only=True)

    def load_split_arrays(self) -> None:  # noqa: B027 - most splits need nothing
        """Checks files, and loads the arrays of `decode_record`, which in TensorFlow's trace would become constants."""

    def number_records(self, indices: np.ndarray | None) -> tf.data.Dataset:
        """Returns a dataset of pairs (index, record) of the images with `indices`, ascending int64 [n], or of all."""
        numbers = tf.data.Dataset.range(self.size) if indices is None else tf.data.Dataset.from_tensor_slices(indices)
        return tf.data.Dataset.zip(numbers, numbers)

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

        @tf.autograph.experimental.do_not_convert
        def decode(index: tf.Tensor, record: tf.Tensor) -> dict[str, tf.Tensor]:
            image, label = self.decode_record(record)
            return {"image": image, "label": label, "index": index}

        return self.number_records(indices).map(decode, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)


@dataclasses.dataclass(eq=False)
class MemorySplit(Split):
    """A split that holds its decoded images in memory, as one array.

    The function `load` returns the images, uint8 [size, height, width, channels], and the labels, int32 [size]. The
    first `Source.open_split` calls `load`; later ones reuse the arrays.
    """

    load: Callable[[], ImagesAndLabels] | None
    _arrays: tuple[tf.Tensor, ...] = dataclasses.field(default=(), init=False)

    def load_split_arrays(self) -> None:
        if self.load is not None:
            # The arrays stay in the memory of the CPU, because tf.data pipelines run there.
            with tf.device("/CPU:0"):
                self._arrays = tuple(tf.convert_to_tensor(array) for array in self.load())
            # The function is dropped, because it possibly holds a second copy of the arrays in memory.
            self.load = None

    def decode_record(self, record: tf.Tensor) -> Tensors:
        images, labels = self._arrays
        return tf.gather(images, record), tf.gather(labels, record)


@dataclasses.dataclass(eq=False, kw_only=True)
class RecordSplit(Split):
    """A split that is too large for the memory and can only be read in order.

    The function `check` raises DataError if the files of the split cannot be read. `records` is a dataset of encoded
    images with labels (dense tensors of fixed shapes), in the same order in every pass. The function `decode` of a
    record returns (image, label). `window` is the count of records that are shuffled together, in memory.
    """

    check: Callable[[], None]
    records: tf.data.Dataset
    decode: Callable[[Mapping[str, tf.Tensor]], Tensors]
    window: int

    def load_split_arrays(self) -> None:
        self.check()

    def number_records(self, indices: np.ndarray | None) -> tf.data.Dataset:
        """Returns a dataset of pairs (index, encoded record) of `indices`, int64 [n]; other records are not decoded."""
        if indices is None:
            return self.records.enumerate()
        is_chosen = tf.constant(np.isin(np.arange(self.size), indices))
        numbered = self.records.take(int(np.max(indices, initial=-1)) + 1).enumerate()
        return numbered.filter(lambda index, _: is_chosen[index])

    def shuffle_records(self, seed: tf.Tensor) -> tf.data.Dataset:
        """Returns a dataset of all encoded records of this split, shuffled within windows of `window` records.

        The first window begins at a random one of the first `window` records; the records before that one come last.
        `seed`, int64 [2], determines this record and the order.
        """
        first = tf.random.stateless_uniform([], seed, 0, self.window, tf.int64, alg=ALGORITHM)
        windows = self.records.skip(first).batch(self.window)
        windows = windows.concatenate(self.records.take(first).batch(self.window))

        def permute(number: tf.Tensor, window: tf.Tensor) -> tf.data.Dataset:
            count = tf.shape(tf.nest.flatten(window)[0])[0]
            seed_of_window = fold_into_seed(seed, number)
            order = tf.random.experimental.stateless_shuffle(tf.range(count), seed_of_window, alg=ALGORITHM)
            permutation = tf.nest.map_structure(lambda values: tf.gather(values, order), window)
            return tf.data.Dataset.from_tensor_slices(permutation)

        return windows.enumerate().flat_map(permute)

    def decode_record(self, record: Mapping[str, tf.Tensor]) -> Tensors:
        return self.decode(record)
