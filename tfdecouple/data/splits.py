"""A split: cheap records in a known order, and how a record becomes an image."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

# Named, since TensorFlow's default depends on the device and seeds must mean the same everywhere.
ALGORITHM = "philox"

Arrays = tuple[np.ndarray, np.ndarray]
Tensors = tuple[tf.Tensor, tf.Tensor]


class Split(abc.ABC):
    """Images of one split.

    A record is whatever is cheap to shuffle and to skip: here an index, elsewhere an encoded image. `decode` does the
    expensive work, so that a run which starts in the middle of an epoch decodes nothing that it does not use.

    Attributes:
        size: number of images.
        description: for people: which images of the data set these are.
        keys: the names that the images have in their data set, one each; None where they have none.
    """

    def __init__(self, size: int, description: str, keys: Sequence[str] | None = None) -> None:
        self.size = size
        self.description = description
        self.keys = keys

    def prepare(self) -> None:  # noqa: B027 - most splits need nothing
        """Does once what `decode` relies on; here nothing.

        Datasets trace `decode`, and arrays that were made while tracing would become constants of the graph, errors
        many lines of TensorFlow's.
        """

    def records(self) -> tf.data.Dataset:
        """Returns the records in the split's own order; here the indices, int64 []."""
        return tf.data.Dataset.range(self.size)

    def shuffled(self, seed: tf.Tensor) -> tf.data.Dataset:
        """Returns the records in an order that is a pure function of `seed`, int64 [2]; here a full permutation."""
        indices = tf.range(self.size, dtype=tf.int64)
        order = tf.random.experimental.stateless_shuffle(indices, seed, alg=ALGORITHM)
        return tf.data.Dataset.from_tensor_slices(order)

    def records_at(self, indices: np.ndarray) -> tf.data.Dataset:
        """Returns some of the records; here these indices themselves.

        Args:
            indices: ascending, without repetition, int64 [n].
        """
        return tf.data.Dataset.from_tensor_slices(np.asarray(indices, np.int64))

    @abc.abstractmethod
    def decode(self, record: Any) -> Tensors:
        """Returns image and label of a record: uint8 [height, width, channels], int32 [] (-1 for none). In tf.data."""

    def examples(self, start: int = 0, stop: int | None = None) -> tf.data.Dataset:
        """Returns the images in order, as dicts of "image", "label" and "index" (int64 []).

        Args:
            start: number of the first.
            stop: number after the last; None for the rest. What is not between them is not decoded.
        """

        def example(index: tf.Tensor, record: Any) -> dict[str, tf.Tensor]:
            image, label = self.decode(record)
            return {"image": image, "label": label, "index": index}

        numbered = self.records().enumerate().take(self.size if stop is None else stop).skip(start)
        return numbered.map(example, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)


class MemorySplit(Split):
    """A split that is held decoded in memory, as one array."""

    def __init__(
        self, size: int, description: str, load: Callable[[], Arrays], keys: Sequence[str] | None = None
    ) -> None:
        """Makes the split; `load` is called once, when an image is first wanted.

        Args:
            size: number of images N.
            description: for people.
            load: returns the images, uint8 [N, height, width, channels], and the labels, int32 [N].
            keys: see `Split`.
        """
        super().__init__(size, description, keys)
        self._load: Callable[[], Arrays] | None = load
        self._images: tf.Tensor | None = None
        self._labels: tf.Tensor | None = None

    def prepare(self) -> None:
        """See `Split.prepare`: loads the images."""
        if self._load is not None:
            # tf.data reads on the host, so the array must not go to a GPU.
            with tf.device("/CPU:0"):
                self._images, self._labels = (tf.convert_to_tensor(array) for array in self._load())
            self._load = None

    def decode(self, record: tf.Tensor) -> Tensors:
        """See `Split.decode`; the record is an index, int64 []."""
        return tf.gather(self._images, record), tf.gather(self._labels, record)


class RecordSplit(Split):
    """A split that can only be read in order, and too large for the memory."""

    def __init__(
        self,
        size: int,
        description: str,
        *,
        records: tf.data.Dataset,
        decode: Callable[[Any], Tensors],
        window: int,
    ) -> None:
        """Makes the split.

        Args:
            size: number of records.
            description: for people.
            records: the encoded records, the same in every pass; dense tensors of fixed shapes.
            decode: see `Split.decode`.
            window: records that are held, encoded, to be shuffled among each other.
        """
        super().__init__(size, description)
        self._records = records
        self._decode = decode
        self._window = window

    def records(self) -> tf.data.Dataset:
        """Returns the encoded records in the split's own order."""
        return self._records

    def records_at(self, indices: np.ndarray) -> tf.data.Dataset:
        """See `Split.records_at`; all records up to the last of these are read, but not decoded."""
        chosen = np.zeros(self.size, bool)
        chosen[indices] = True
        is_chosen = tf.constant(chosen)
        numbered = self._records.take(int(np.max(indices, initial=-1)) + 1).enumerate()
        return numbered.filter(lambda index, _: is_chosen[index]).map(lambda _, record: record)

    def shuffled(self, seed: tf.Tensor) -> tf.data.Dataset:
        """See `Split.shuffled`; records are permuted within windows.

        The windows' borders fall elsewhere for each seed: the first begins at a random record of the first `window`,
        and those before it come last.
        """
        first = tf.random.stateless_uniform([], seed, 0, self._window, tf.int64, alg=ALGORITHM)
        windows = self._records.skip(first).batch(self._window)
        windows = windows.concatenate(self._records.take(first).batch(self._window))

        def permuted(number: tf.Tensor, window: Any) -> tf.data.Dataset:
            count = tf.shape(tf.nest.flatten(window)[0])[0]
            window_seed = tf.random.experimental.stateless_fold_in(seed, number, alg=ALGORITHM)
            order = tf.random.experimental.stateless_shuffle(tf.range(count), window_seed, alg=ALGORITHM)
            permutation = tf.nest.map_structure(lambda values: tf.gather(values, order), window)
            return tf.data.Dataset.from_tensor_slices(permutation)

        return windows.enumerate().flat_map(permuted)

    def decode(self, record: Any) -> Tensors:
        """See `Split.decode`; the record is an encoded example."""
        return self._decode(record)
