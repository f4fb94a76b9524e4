"""Functions that write the codes of images into TFRecord or Parquet files, and that read these files as a dataset."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from tfdecouple.corpus.codes_manifest import CodesManifest, Field
from tfdecouple.errors import DataError
from tfdecouple.runtime.requirements import require_packages

if TYPE_CHECKING:
    import pyarrow as pa

# {name of a field, such as "z": the codes of n images, float32 `[n, ...]`}.
Codes = Mapping[str, np.ndarray]
# Largest number of images in a row group of a Parquet file. A reader loads a group at once; small groups are slow.
_GROUP_ROWS = 1024


def encode_image_key(key: str) -> bytes:
    r"""Returns the key of an image as UTF-8, which Parquet needs; bytes of a file name that are not UTF-8 are escaped.

    >>> encode_image_key("cats/7.png"), encode_image_key("caf\udce9.png")
    (b'cats/7.png', b'caf\\xe9.png')
    """
    return key.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace").encode()


def write_codes(name: str, path: pathlib.Path, fields: Sequence[Field], keys: Sequence[bytes], rows: Codes) -> None:
    """Writes the codes of n images into the file `path`, in the format `name`, "tfrecord" or "parquet".

    `keys` are the names of the images in UTF-8. `rows` has "label", int `[n]`, beside the codes of `fields`.
    """
    labels, arrays = rows["label"].tolist(), {field.name: rows[field.name] for field in fields}
    if name == "tfrecord":
        with tf.io.TFRecordWriter(str(path)) as writer:
            for example in serialize_examples(keys, labels, arrays):
                writer.write(example)
    else:
        import pyarrow.parquet as pq

        pq.write_table(make_parquet_table(keys, labels, arrays, fields), path, row_group_size=_GROUP_ROWS)


def serialize_examples(keys: Sequence[bytes], labels: Sequence[int], arrays: Codes) -> Iterator[bytes]:
    """Yields, for each image, a serialised `tf.train.Example` with an image's key (UTF-8), label (-1: none), codes."""
    for row, (key, label) in enumerate(zip(keys, labels, strict=True)):
        features = {
            "key": tf.train.Feature(bytes_list=tf.train.BytesList(value=[key])),
            "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
        }
        for name, values in arrays.items():
            # The array becomes a list, because Protobuf copies a list five times as fast as an array.
            floats = tf.train.FloatList(value=np.ravel(values[row]).tolist())
            features[name] = tf.train.Feature(float_list=floats)
        yield tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString(deterministic=True)


def make_parquet_schema(fields: Sequence[Field]) -> pa.Schema:
    """Returns the Arrow schema of key, label and codes `fields`; metadata of a column have the shape of a code."""
    import pyarrow as pa

    columns = [pa.field("key", pa.string(), False), pa.field("label", pa.int32(), False)]
    for field in fields:
        shape = {"shape": ",".join(map(str, field.shape))}
        kind = pa.list_(pa.float32(), field.size) if field.shape else pa.float32()
        columns.append(pa.field(field.name, kind, False, shape))
    return pa.schema(columns)


def make_parquet_table(
    keys: Sequence[bytes], labels: Sequence[int], arrays: Codes, fields: Sequence[Field]
) -> pa.Table:
    """Returns an Arrow table of key, label and codes `fields` of n images; arguments as for `serialize_examples`."""
    import pyarrow as pa

    columns = [pa.array([key.decode() for key in keys], pa.string()), pa.array(np.asarray(labels, np.int32))]
    for field in fields:
        numbers = pa.array(np.asarray(arrays[field.name], np.float32).ravel())
        columns.append(pa.FixedSizeListArray.from_arrays(numbers, field.size) if field.shape else numbers)
    return pa.Table.from_arrays(columns, schema=make_parquet_schema(fields))


def _read_tfrecords(paths: Sequence[str], fields: Sequence[Field]) -> tf.data.Dataset:
    features = {name: tf.io.FixedLenFeature([], dtype) for name, dtype in (("key", tf.string), ("label", tf.int64))}
    features |= {field.name: tf.io.FixedLenFeature(field.shape, tf.float32) for field in fields}

    def parse(record: tf.Tensor) -> dict[str, tf.Tensor]:
        example = tf.io.parse_single_example(record, features)
        return {**example, "label": tf.cast(example["label"], tf.int32)}

    return tf.data.TFRecordDataset(list(paths)).map(parse, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)


def _read_parquet(paths: Sequence[str], fields: Sequence[Field]) -> tf.data.Dataset:
    import pyarrow.parquet as pq

    def read_groups() -> Iterator[dict[str, np.ndarray]]:
        for path in paths:
            with pq.ParquetFile(path) as file:
                for group in file.iter_batches(batch_size=_GROUP_ROWS):
                    columns = {name: group.column(name) for name in group.schema.names}
                    arrays = {"key": np.array([key.encode() for key in columns["key"].to_pylist()], object)}
                    arrays["label"] = columns["label"].to_numpy(zero_copy_only=False)
                    for field in fields:
                        numbers = columns[field.name].flatten() if field.shape else columns[field.name]
                        arrays[field.name] = numbers.to_numpy(zero_copy_only=False).reshape(-1, *field.shape)
                    yield arrays

    signature = {"key": tf.TensorSpec([None], tf.string), "label": tf.TensorSpec([None], tf.int32)}
    signature |= {field.name: tf.TensorSpec([None, *field.shape], tf.float32) for field in fields}
    return tf.data.Dataset.from_generator(read_groups, output_signature=signature).unbatch()


def read_codes(folder: str | pathlib.Path, split: str | None = None, partial: bool = False) -> tf.data.Dataset:
    """Returns a dataset with the codes of each image in a folder; only a few images are in memory at a time.

    Args:
        folder: the output folder of `python -m tfdecouple encode` or `encode-beam`, in either format.
        split: "train", "validation" or "test"; None for all splits.
        partial: whether to accept an incomplete folder.

    Returns:
        A finite dataset of dicts, one for each image: "key" string [], "label" int32 [] (-1 for none) and those float32
        arrays that were written: "z" [d_z], "z_std" [d_z], "v" [height, width, channels]; with --scores also the
        scalars "bits_per_dim", "bits_per_dim_minus_codec", "shell", "typicality" and, with an encoder, "prior_nats".

    Raises:
        DataError: if the folder holds no codes, lacks the split, or is incomplete and `partial` is False.
    """
    folder = pathlib.Path(folder)
    manifest = CodesManifest.read_manifest(folder)
    if manifest is None:
        raise DataError(f"{folder} holds no codes; python -m tfdecouple encode --run RUN --out {folder} writes them")
    if split is not None and split not in manifest.splits:
        raise DataError(f"{folder} has no codes of a split {split!r}; it has {', '.join(manifest.splits)}")
    names = manifest.list_shard_names(split)
    paths = [str(folder / name) for name in names if (folder / name).is_file()]
    if not paths or (len(paths) < len(names) and not partial):
        remedy = "end the encoding with the command that began it, or read what there is with partial=True"
        raise DataError(f"{folder} has {len(paths)} of {len(names)} files; {remedy}")
    if manifest.format == "tfrecord":
        return _read_tfrecords(paths, manifest.fields)
    require_packages("pyarrow", what="the format parquet")
    return _read_parquet(paths, manifest.fields)
