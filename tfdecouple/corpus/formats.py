"""The formats of codes by their names."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from tfdecouple.corpus.fields import Field
from tfdecouple.corpus.tfrecord import TFRecordShard, count_tfrecords, read_tfrecords
from tfdecouple.runtime.extras import require

if TYPE_CHECKING:
    from tfdecouple.corpus.parquet import ParquetShard


@dataclasses.dataclass(frozen=True)
class Format:
    """How codes lie in a file.

    Attributes:
        open: makes a file and returns what writes to it.
        read: returns the codes of files in order.
        count: returns how many images a file holds.
    """

    open: Callable[[pathlib.Path, Sequence[Field]], TFRecordShard | ParquetShard]
    read: Callable[[Sequence[str], Sequence[Field]], tf.data.Dataset]
    count: Callable[[pathlib.Path], int]


def _of_parquet(name: str) -> Callable[..., Any]:
    """Returns a function of `parquet.py`, which imports PyArrow when it is called."""

    def call(*arguments: Any) -> Any:
        require("pyarrow", what="the format parquet")
        from tfdecouple.corpus import parquet

        return getattr(parquet, name)(*arguments)

    return call


# The name is the ending of the files as well.
FORMATS = {
    "tfrecord": Format(TFRecordShard, read_tfrecords, count_tfrecords),
    "parquet": Format(_of_parquet("ParquetShard"), _of_parquet("read_parquet"), _of_parquet("count_parquet")),
}
