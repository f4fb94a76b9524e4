"""Codes as TFRecord files of `tf.train.Example` messages."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

from tfdecouple.corpus.fields import Field


class TFRecordShard:
    """A file that codes are written to.

    Args:
        path: of the file.
        fields: what is written of each image.
    """

    def __init__(self, path: pathlib.Path, fields: Sequence[Field]):
        self._writer = tf.io.TFRecordWriter(str(path))
        self._names = [field.name for field in fields]

    def write(self, keys: Sequence[bytes], labels: np.ndarray, arrays: Mapping[str, np.ndarray]) -> None:
        """Appends the codes of some images.

        Args:
            keys: `[n]`, UTF-8.
            labels: int `[n]`, -1 for none.
            arrays: float32 `[n, ...]` by field.
        """
        for row, (key, label) in enumerate(zip(keys, labels, strict=True)):
            self._writer.write(to_example(key, int(label), {name: arrays[name][row] for name in self._names}))

    def close(self) -> None:
        """Writes what is left."""
        self._writer.close()


def to_example(key: bytes, label: int, arrays: Mapping[str, np.ndarray]) -> bytes:
    """Returns the codes of one image as a serialised `tf.train.Example`.

    Args:
        key: UTF-8.
        label: -1 for none.
        arrays: float32, flattened in the message, by field.
    """
    features = {
        "key": tf.train.Feature(bytes_list=tf.train.BytesList(value=[key])),
        "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
    }
    for name, array in arrays.items():
        features[name] = tf.train.Feature(float_list=_float_list(array))
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString(deterministic=True)


def _float_list(array: np.ndarray) -> tf.train.FloatList:
    """Returns a message of floats from its bytes: a field 1 of packed floats. One by one they would take far longer."""
    content = np.ascontiguousarray(array, "<f4").tobytes()
    head, length = bytearray(b"\x0a"), len(content)
    while length > 127:
        head.append(length & 127 | 128)
        length >>= 7
    head.append(length)
    return tf.train.FloatList.FromString(bytes(head) + content)


def read_tfrecords(paths: Sequence[str], fields: Sequence[Field]) -> tf.data.Dataset:
    """Returns the codes in files, in order: see `read_codes`."""
    features = {
        "key": tf.io.FixedLenFeature([], tf.string),
        "label": tf.io.FixedLenFeature([], tf.int64),
        **{field.name: tf.io.FixedLenFeature(field.shape, tf.float32) for field in fields},
    }

    def parsed(record: tf.Tensor) -> dict[str, tf.Tensor]:
        example = tf.io.parse_single_example(record, features)
        return {**example, "label": tf.cast(example["label"], tf.int32)}

    return tf.data.TFRecordDataset(list(paths)).map(parsed, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)


def count_tfrecords(path: pathlib.Path) -> int:
    """Returns how many images a file holds, which is read from end to end.

    Raises:
        tf.errors.OpError: where it cannot be.
    """
    return sum(1 for _ in tf.data.TFRecordDataset(str(path)))
