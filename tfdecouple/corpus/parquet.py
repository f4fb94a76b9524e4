"""Parquet files of codes, with a column for each field: lists of equal length, or single numbers."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf

from tfdecouple.corpus.codes_manifest import Field

# Largest number of rows in a row group, which a reader loads at once: large enough to read fast.
_GROUP_ROWS = 1024


def schema(fields: Sequence[Field]) -> pa.Schema:
    """Returns the schema of a Parquet file of codes; the metadata of a column has the shape of its array."""
    columns = [pa.field("key", pa.string(), False), pa.field("label", pa.int32(), False)]
    for field in fields:
        shape = {"shape": ",".join(map(str, field.shape))}
        kind = pa.list_(pa.float32(), field.size) if field.shape else pa.float32()
        columns.append(pa.field(field.name, kind, False, shape))
    return pa.schema(columns)


def to_table(
    keys: Sequence[bytes], labels: Sequence[int], arrays: Mapping[str, np.ndarray], fields: Sequence[Field]
) -> pa.Table:
    """Returns the codes of some images as an Arrow table; keys, labels and arrays are those of `to_examples`."""
    columns = [pa.array([key.decode() for key in keys], pa.string()), pa.array(np.asarray(labels, np.int32))]
    for field in fields:
        values = np.ascontiguousarray(arrays[field.name], np.float32).reshape(-1)
        numbers = pa.array(values)
        columns.append(pa.FixedSizeListArray.from_arrays(numbers, field.size) if field.shape else numbers)
    return pa.Table.from_arrays(columns, schema=schema(fields))


def write_parquet(
    path: pathlib.Path,
    keys: Sequence[bytes],
    labels: Sequence[int],
    arrays: Mapping[str, np.ndarray],
    fields: Sequence[Field],
) -> None:
    """Writes a Parquet file of codes; keys, labels and arrays are those of `to_examples`."""
    pq.write_table(to_table(keys, labels, arrays, fields), path, row_group_size=_GROUP_ROWS)


def read_parquet(paths: Sequence[str], fields: Sequence[Field]) -> tf.data.Dataset:
    """Returns the dataset of the codes in Parquet files, in order, as `read_codes` does."""

    def batches() -> Iterator[dict[str, np.ndarray]]:
        for path in paths:
            with pq.ParquetFile(path) as file:
                for group in file.iter_batches(batch_size=_GROUP_ROWS):
                    yield _to_arrays(group, fields)

    signature = {
        "key": tf.TensorSpec([None], tf.string),
        "label": tf.TensorSpec([None], tf.int32),
        **{field.name: tf.TensorSpec([None, *field.shape], tf.float32) for field in fields},
    }
    return tf.data.Dataset.from_generator(batches, output_signature=signature).unbatch()


def _to_arrays(group: pa.RecordBatch, fields: Sequence[Field]) -> dict[str, np.ndarray]:
    keys = np.array([key.encode() for key in group.column("key").to_pylist()], object)
    columns = {field.name: group.column(field.name) for field in fields}
    arrays = {
        field.name: (columns[field.name].flatten() if field.shape else columns[field.name])
        .to_numpy(zero_copy_only=False)
        .reshape(-1, *field.shape)
        for field in fields
    }
    return {"key": keys, "label": group.column("label").to_numpy(zero_copy_only=False), **arrays}
