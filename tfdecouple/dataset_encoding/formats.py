"""The formats of codes by their names."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Sequence

import tensorflow as tf

from tfdecouple.dataset_encoding.fields import Field
from tfdecouple.dataset_encoding.parquet import ParquetShard, count_parquet, read_parquet
from tfdecouple.dataset_encoding.tfrecord import TFRecordShard, count_tfrecords, read_tfrecords

Shard = TFRecordShard | ParquetShard


@dataclasses.dataclass(frozen=True)
class Format:
    """How codes lie in a file.

    Attributes:
        open: makes a file and returns what writes to it.
        read: returns the codes of files in order.
        count: returns how many images a file holds.
    """

    open: Callable[[pathlib.Path, Sequence[Field]], Shard]
    read: Callable[[Sequence[str], Sequence[Field]], tf.data.Dataset]
    count: Callable[[pathlib.Path], int]


# The name is the ending of the files as well.
FORMATS = {
    "tfrecord": Format(TFRecordShard, read_tfrecords, count_tfrecords),
    "parquet": Format(ParquetShard, read_parquet, count_parquet),
}
