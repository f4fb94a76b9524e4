"""A split of encoded images that are read one after the other, such as TFRecord files hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfdecouple.data.split import ALGORITHM, Split, Tensors


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
