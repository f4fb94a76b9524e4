"""The formats of files of codes: TFRecord files, the choice of a format by name, and the function `read_codes`."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import tensorflow as tf

from tfdecouple.corpus.codes_manifest import Field, Manifest
from tfdecouple.errors import DataError
from tfdecouple.runtime.requirements import require


def write_codes(
    name: str, path: pathlib.Path, fields: Sequence[Field], keys: Sequence[bytes], rows: Mapping[str, np.ndarray]
) -> None:
    """Writes a file of codes in the format with this name, "tfrecord" or "parquet".

    The rows are the "label" of each image, int `[n]`, and its fields, float32 `[n, ...]`; the keys are UTF-8.
    """
    labels, arrays = rows["label"].tolist(), {field.name: rows[field.name] for field in fields}
    if name == "tfrecord":
        with tf.io.TFRecordWriter(str(path)) as writer:
            for example in to_examples(keys, labels, arrays):
                writer.write(example)
    else:
        from tfdecouple.corpus.parquet import write_parquet

        write_parquet(path, keys, labels, arrays, fields)


def to_examples(keys: Sequence[bytes], labels: Sequence[int], arrays: Mapping[str, np.ndarray]) -> Iterator[bytes]:
    """Yields the serialised `tf.train.Example` of each image.

    Args:
        keys: names of the images, `[n]`, UTF-8.
        labels: labels of the images, `[n]`, -1 for none.
        arrays: codes of the images by field, float32 `[n, ...]`.
    """
    for row, (key, label) in enumerate(zip(keys, labels, strict=True)):
        features = {
            "key": tf.train.Feature(bytes_list=tf.train.BytesList(value=[key])),
            "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
        }
        for name, values in arrays.items():
            features[name] = tf.train.Feature(float_list=_float_list(values[row]))
        yield tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString(deterministic=True)


def _float_list(array: np.ndarray) -> tf.train.FloatList:
    """Returns a message with the floats of an array, parsed from bytes because setting single numbers is slow."""
    content = np.ascontiguousarray(array, "<f4").tobytes()
    head, length = bytearray(b"\x0a"), len(content)
    while length > 127:
        head.append(length & 127 | 128)
        length >>= 7
    head.append(length)
    return tf.train.FloatList.FromString(bytes(head) + content)


def read_tfrecords(paths: Sequence[str], fields: Sequence[Field]) -> tf.data.Dataset:
    """Returns the dataset of the codes in TFRecord files, in order, as `read_codes` does."""
    features = {
        "key": tf.io.FixedLenFeature([], tf.string),
        "label": tf.io.FixedLenFeature([], tf.int64),
        **{field.name: tf.io.FixedLenFeature(field.shape, tf.float32) for field in fields},
    }

    def parsed(record: tf.Tensor) -> dict[str, tf.Tensor]:
        example = tf.io.parse_single_example(record, features)
        return {**example, "label": tf.cast(example["label"], tf.int32)}

    return tf.data.TFRecordDataset(list(paths)).map(parsed, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)


def read_codes(folder: str | pathlib.Path, split: str | None = None, partial: bool = False) -> tf.data.Dataset:
    """Returns a dataset of the codes in a folder, in the order of its files; only a few are in memory at a time.

    Args:
        folder: the output folder of `python -m tfdecouple encode` or `encode-beam`, in either format.
        split: "train", "validation" or "test"; None for all splits.
        partial: whether to accept an incomplete folder.

    Returns:
        A finite dataset of dicts: "key" string [], "label" int32 [] (-1 for none) and the written float32 arrays:
        "z" [d_z], "z_std" [d_z], "v" [height, width, channels]; with --scores also the numbers [] "bits_per_dim",
        "bits_per_dim_minus_codec", "shell", "typicality" and, with an encoder, "prior_nats".

    Raises:
        DataError: where the folder holds no codes, lacks the split, or is incomplete and `partial` is False.
    """
    folder = pathlib.Path(folder)
    manifest = Manifest.read(folder)
    if manifest is None:
        raise DataError(f"{folder} holds no codes; python -m tfdecouple encode --run RUN --out {folder} writes them")
    if split is not None and split not in manifest.splits:
        raise DataError(f"{folder} has no codes of a split {split!r}; it has {', '.join(manifest.splits)}")
    wanted = [folder / name for name in manifest.names(split)]
    paths = [str(path) for path in wanted if path.is_file()]
    if len(paths) < len(wanted) and not partial:
        raise DataError(
            f"{folder} has {len(paths)} of {len(wanted)} files; end the encoding with the command that began it, or "
            "read what there is with partial=True"
        )
    if not paths:
        raise DataError(f"{folder} has no whole file yet")
    if manifest.format == "tfrecord":
        return read_tfrecords(paths, manifest.fields)
    require("pyarrow", what="the format parquet")
    from tfdecouple.corpus.parquet import read_parquet

    return read_parquet(paths, manifest.fields)
