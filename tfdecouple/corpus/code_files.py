"""Files of codes: their manifest, functions that write TFRecord or Parquet files, and `read_codes` to read them."""

from __future__ import annotations

import contextlib
import functools
import math
import operator
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple, Self

import numpy as np
import pydantic
import tensorflow as tf

from tfdecouple.errors import DataError, one_line
from tfdecouple.model.outlier_scores import SCORES
from tfdecouple.storage.files import FileDigest, count_records, read_model, write_json
from tfdecouple.system.requirements import require_packages
from tfdecouple.tensorflow_internals import GuardedDataset

if TYPE_CHECKING:
    import pyarrow as pa

# Name of the manifest's file. It begins with an underscore, so that Arrow and Spark skip the file among the data files.
MANIFEST = "_manifest.json"
# Limits for untrusted manifests: bytes of the manifest, number of code files, and values in the array of one image.
_MOST_BYTES, _MOST_FILES, _MOST_VALUES = 2**24, 75_000, 2**24
# Limit for untrusted code files: bytes of the key of an image.
_MOST_KEY_BYTES = 2**16
# {name of a field, such as "z": the codes of n images, float32 `[n, ...]`}.
Rows = Mapping[str, np.ndarray]
# Largest number of images in a row group of a Parquet file, and of values that are read at once; small groups are slow.
_GROUP_ROWS, _GROUP_VALUES = 1024, 2**22

# A name of a file in the folder itself, which is not hidden.
_Name = Annotated[str, pydantic.StringConstraints(pattern=r"^[^./\\\x00][^/\\\x00]*$")]
_Count = Annotated[int, pydantic.Field(strict=True, ge=0, lt=2**53)]


class _Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True)


class Field(_Model):
    """The name and shape of an array that is stored for each image: z (mean), z_std, v, or an outlier score ()."""

    name: Literal["z", "z_std", "v", *SCORES]  # type: ignore[valid-type]
    dtype: Literal["float32"] = "float32"
    shape: tuple[Annotated[int, pydantic.Field(strict=True, ge=1, le=_MOST_VALUES)], ...]

    def __str__(self) -> str:
        return f"{self.name} {list(self.shape)}"

    @property
    def size(self) -> int:
        """The count of values, an int, in the array that this field stores for one image."""
        return math.prod(self.shape)


class Shard(FileDigest):
    """The name, size in bytes, SHA-256 and count of images (None from `encode-beam`) of a complete code file."""

    name: _Name
    images: _Count | None = None


class ShardRange(NamedTuple):
    """The name of a code file, and the images in the file: those of `split` with indices from `start` to `stop` - 1."""

    name: str
    split: str
    start: int
    stop: int


class ModelFacts(_Model):
    """The encoding model: run, training step, and SHA-256 of the weights (`encode`) or ONNX file (`encode-beam`)."""

    run: str | None
    step: _Count
    averaged: bool | None = None
    weights_sha256: str | None = None
    onnx_sha256: str | None = None


class DataFacts(_Model):
    """The encoded data set; `encode-beam` writes no descriptions of the splits and no SHA-256 of all image keys."""

    title: str
    image_shape: tuple[_Count, _Count, _Count]
    centre_crop: _Count
    descriptions: dict[str, str] | None = None
    keys_sha256: str | None = None


class CodesManifest(_Model):
    """The manifest of a folder of codes. Its last three attributes change when the folder is complete.

    `splits` is {name of a split: count of its images}, in the order of encoding. `images_per_shard` is the largest
    count of images in a code file; 0 for encode-beam, which has no such limit. A complete folder has `totals`, the
    counts of "images" (encoded), "skipped" (unreadable images) and "bytes", and `shards`, its code files.
    """

    version: Literal[1] = 1
    format: Literal["tfrecord", "parquet"]
    fields: tuple[Field, ...]
    model: ModelFacts
    data: DataFacts
    label_names: tuple[str, ...]
    splits: dict[_Name, _Count]
    images_per_shard: _Count
    complete: pydantic.StrictBool = False
    totals: dict[str, _Count] = {}
    shards: tuple[Shard, ...] = ()

    @pydantic.model_validator(mode="after")
    def _check_consistency(self) -> Self:
        if any(field.size > _MOST_VALUES for field in self.fields):
            raise ValueError("a field has more numbers than any image")
        if self.complete and not {"images", "skipped", "bytes"} <= set(self.totals):
            raise ValueError("totals of a complete folder are missing")
        if self.model.weights_sha256 is None:
            if not self.complete:
                raise ValueError("the folder is not complete, and model.weights_sha256 is missing to resume with")
        elif self.images_per_shard < 1 or None in (self.data.descriptions, self.data.keys_sha256, self.model.run):
            raise ValueError("images_per_shard is 0, or data.descriptions, data.keys_sha256 or model.run is missing")
        elif sum(-(-size // self.images_per_shard) for size in self.splits.values()) > _MOST_FILES:
            raise DataError(f"images_per_shard makes more than {_MOST_FILES:,} files; take more images for each")
        elif self.complete and [s.name for s in self.shards] != [s.name for s in self.list_shard_ranges()]:
            raise ValueError("shards lists other files than follow from splits and images_per_shard")
        return self

    def list_shard_ranges(self) -> list[ShardRange]:
        """Returns a `ShardRange` for each code file of the folder, whether written or still to be written, in order."""
        ranges = []
        for split, size in self.splits.items():
            starts = range(0, size, self.images_per_shard)
            for number, start in enumerate(starts):
                name = f"{split}-{number:05d}-of-{len(starts):05d}.{self.format}"
                ranges.append(ShardRange(name, split, start, min(start + self.images_per_shard, size)))
        return ranges

    def list_shard_names(self, split: str | None = None) -> list[str]:
        """Returns the names of the code files of `split` (None: all splits), whether written or not yet, in order."""
        names = [shard.name for shard in (self.shards if self.complete else self.list_shard_ranges())]
        return [name for name in names if split is None or name.startswith(f"{split}-")]

    def require_same_job(self, job: CodesManifest, folder: pathlib.Path) -> None:
        """Raises DataError, with the first difference, unless this manifest and `job` describe the same encoding."""
        if self.model.weights_sha256 is None:
            raise DataError(f"{folder} was written by encode-beam; name another folder with --out")
        if self.model.weights_sha256 != job.model.weights_sha256:
            begun = f"update {self.model.step} of the run {self.model.run}"
            now = f"update {job.model.step} of {job.model.run}"
            advice = f"to continue, pass --run {folder}/_run; for new codes, another --out"
            raise DataError(f"{folder} was started with {begun}, but --run is {now}; {advice}")
        # The title contains the images' path, which may differ if the images have keys that identify them.
        title = () if self.data.keys_sha256 and job.data.keys_sha256 else ("data.title",)
        data = ("data.image_shape", "data.centre_crop", "data.descriptions", "data.keys_sha256")
        for name in ("format", "fields", "images_per_shard", *title, "splits", *data):
            values = [operator.attrgetter(name)(manifest) for manifest in (self, job)]
            begun, now = (", ".join(map(str, v)) if isinstance(v, tuple) else f"{v}".strip("{}") for v in values)
            if begun != now:
                other = f"{folder} was started with other options or files: {name} was {begun} and is now {now}"
                raise DataError(f"{other}; repeat the old ones, or name another folder with --out")

    def with_shards(self, shards: Sequence[Shard], images: int) -> CodesManifest:
        """Returns the manifest of the complete folder, whose files `shards` have the codes of `images` images."""
        skipped = sum(self.splits.values()) - images
        totals = {"images": images, "skipped": skipped, "bytes": sum(shard.bytes for shard in shards)}
        return self.model_copy(update={"complete": True, "totals": totals, "shards": tuple(shards)})

    def write_manifest(self, folder: pathlib.Path) -> None:
        """Writes this manifest as the JSON file `_manifest.json` into a folder of codes."""
        write_json(folder / MANIFEST, self.model_dump(mode="json", exclude_none=True))

    @classmethod
    def read_manifest(cls, folder: pathlib.Path) -> CodesManifest | None:
        """Returns the manifest of a folder of codes, or None if there is none; raises DataError if it is invalid."""
        path = folder / MANIFEST
        try:
            return read_model(path, cls, _MOST_BYTES)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, DataError) as error:
            raise DataError(f"cannot read the manifest {path}: {one_line(error)}") from error


def encode_image_key(key: str) -> bytes:
    r"""Returns the key of an image as UTF-8, which Parquet needs; bytes of a file name that are not UTF-8 are escaped.

    >>> encode_image_key("cats/7.png"), encode_image_key("caf\udce9.png")
    (b'cats/7.png', b'caf\\xe9.png')
    """
    return key.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace").encode()


def write_codes(name: str, path: pathlib.Path, fields: Sequence[Field], keys: Sequence[bytes], rows: Rows) -> None:
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


def serialize_examples(keys: Sequence[bytes], labels: Sequence[int], arrays: Rows) -> Iterator[bytes]:
    """Yields, for each image, a serialised `tf.train.Example` with an image's key (UTF-8), label (-1: none), codes."""
    for row, (key, label) in enumerate(zip(keys, labels, strict=True)):
        example = tf.train.Example()
        features = example.features.feature
        features["key"].bytes_list.value.append(key)
        features["label"].int64_list.value.append(label)
        for name, values in arrays.items():
            # The array becomes a list, because Protobuf copies a list five times as fast as an array.
            features[name].float_list.value.extend(np.ravel(values[row]).tolist())
        yield example.SerializeToString(deterministic=True)


def make_parquet_schema(fields: Sequence[Field]) -> pa.Schema:
    """Returns the Arrow schema of key, label and codes `fields`; metadata of a column have the shape of a code."""
    import pyarrow as pa

    columns = [pa.field("key", pa.string(), False), pa.field("label", pa.int32(), False)]
    for field in fields:
        shape = {"shape": ",".join(map(str, field.shape))}
        kind = pa.list_(pa.float32(), field.size) if field.shape else pa.float32()
        columns.append(pa.field(field.name, kind, False, shape))
    return pa.schema(columns)


def make_parquet_table(keys: Sequence[bytes], labels: Sequence[int], arrays: Rows, fields: Sequence[Field]) -> pa.Table:
    """Returns an Arrow table of key, label and codes `fields` of n images; arguments as for `serialize_examples`."""
    import pyarrow as pa

    columns = [pa.array([key.decode() for key in keys], pa.string()), pa.array(np.asarray(labels, np.int32))]
    for field in fields:
        numbers = pa.array(np.asarray(arrays[field.name], np.float32).ravel())
        columns.append(pa.FixedSizeListArray.from_arrays(numbers, field.size) if field.shape else numbers)
    return pa.Table.from_arrays(columns, schema=make_parquet_schema(fields))


@contextlib.contextmanager
def _convert_read_errors(path: str) -> Iterator[None]:
    try:
        yield
    # Every exception is caught, because Arrow raises many classes for damaged files.
    except Exception as error:
        check = f"check all files with encode --verify --out {os.path.dirname(path)}"
        raise DataError(f"cannot read the codes {path}: {one_line(error, first=True)}; {check}") from error


def _read_tfrecords(paths: Sequence[str], fields: Sequence[Field]) -> tf.data.Dataset:
    features = {"key": tf.io.FixedLenFeature([], tf.string), "label": tf.io.FixedLenFeature([], tf.int64)}
    features |= {field.name: tf.io.FixedLenFeature(field.shape, tf.float32) for field in fields}
    values = sum(field.size for field in fields)
    for path in paths:
        # A value takes 4 bytes, and one more if a field's values are not stored together.
        with _convert_read_errors(path):
            count_records(path, 4 * values, 5 * values + 2 * _MOST_KEY_BYTES)

    def parse(record: tf.Tensor) -> dict[str, tf.Tensor]:
        example = tf.io.parse_single_example(record, features)
        return {**example, "label": tf.cast(example["label"], tf.int32)}

    return tf.data.TFRecordDataset(list(paths)).map(parse, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)


def _read_parquet(paths: Sequence[str], fields: Sequence[Field]) -> tf.data.Dataset:
    import pyarrow.parquet as pq

    schema = make_parquet_schema(fields)
    rows = max(1, min(_GROUP_ROWS, _GROUP_VALUES // max(1, sum(field.size for field in fields))))

    def open_file(path: str) -> pq.ParquetFile:
        # A key that repeats is in memory once.
        file = pq.ParquetFile(path, read_dictionary=["key"])
        if not file.schema.to_arrow_schema().equals(schema):
            raise ValueError(f"its columns are {file.schema_arrow}")
        groups = map(file.metadata.row_group, range(file.num_row_groups))
        # These codecs, which this program writes, make nothing more than 24 times as large.
        if not {g.column(c).compression for g in groups for c in range(g.num_columns)} <= {"SNAPPY", "UNCOMPRESSED"}:
            raise ValueError("it is compressed by another codec than SNAPPY")
        return file

    for path in paths:
        with _convert_read_errors(path), open_file(path):
            pass

    def read_groups() -> Iterator[dict[str, np.ndarray]]:
        for path in paths:
            with open_file(path) as file:
                for group in file.iter_batches(batch_size=rows):
                    keys = [key.encode() for key in group["key"].dictionary.to_pylist()]
                    if max(map(len, keys), default=0) > _MOST_KEY_BYTES:
                        raise ValueError(f"a key has more than {_MOST_KEY_BYTES:,} bytes")
                    arrays = {"key": np.array(keys, object)[group["key"].indices.to_numpy()]}
                    arrays["label"] = group["label"].to_numpy(zero_copy_only=False)
                    for field in fields:
                        numbers = group[field.name].flatten() if field.shape else group[field.name]
                        arrays[field.name] = numbers.to_numpy(zero_copy_only=False).reshape(-1, *field.shape)
                    yield arrays

    signature = {"key": tf.TensorSpec([None], tf.string), "label": tf.TensorSpec([None], tf.int32)}
    signature |= {field.name: tf.TensorSpec([None, *field.shape], tf.float32) for field in fields}
    return tf.data.Dataset.from_generator(read_groups, output_signature=signature).unbatch()


def read_codes(folder: str | pathlib.Path, split: str | None = None, partial: bool = False) -> tf.data.Dataset:
    """Returns a dataset with the codes of each image in a folder; only a few images are in memory at a time.

    Args:
        folder: the output folder of `tfdecouple encode` or `encode-beam`, in either format.
        split: "train", "validation" or "test"; None for all splits.
        partial: whether to accept an incomplete folder.

    Returns:
        A finite dataset of dicts, one for each image: "key" string [], "label" int32 [] (-1 for none) and those float32
        arrays that were written: "z" [d_z], "z_std" [d_z], "v" [height, width, channels]; with --scores also scalars.

    Raises:
        DataError: if the folder holds no codes, lacks the split, or is incomplete and `partial` is False; here or in a
            loop over the dataset, if a file is damaged.
    """
    folder = pathlib.Path(folder)
    manifest = CodesManifest.read_manifest(folder)
    if manifest is None:
        raise DataError(f"{folder} holds no codes; tfdecouple encode --run RUN --out {folder} writes them")
    if split is not None and split not in manifest.splits:
        raise DataError(f"{folder} has no codes of a split {split!r}; it has {', '.join(manifest.splits)}")
    names = manifest.list_shard_names(split)
    paths = [str(folder / name) for name in names if (folder / name).is_file()]
    if not paths or (len(paths) < len(names) and not partial):
        remedy = "end the encoding with the command that began it, or read what there is with partial=True"
        raise DataError(f"{folder} has {len(paths)} of {len(names)} files; {remedy}")
    if manifest.format == "parquet":
        require_packages("pyarrow", what="the format parquet")
    read = _read_tfrecords if manifest.format == "tfrecord" else _read_parquet
    return GuardedDataset(read(paths, manifest.fields), functools.partial(_convert_read_errors, f"{folder}/*"))
