"""The manifest of a folder of codes: the model, the images, the arrays of each image, and the SHA-256 of the files."""

from __future__ import annotations

import math
import operator
import pathlib
from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple, Self

import pydantic

from tfdecouple.config import ModelConfig
from tfdecouple.errors import DataError, one_line
from tfdecouple.storage.files import FileDigest, read_model, write_json

# Name of the manifest's file. It begins with an underscore, so that Arrow and Spark skip the file among the data files.
MANIFEST = "_manifest.json"
# Names of the outlier scores of an image. Each score is a scalar, which `tfdecouple.metrics.outliers` computes.
SCORES = ("bits_per_dim", "bits_per_dim_minus_codec", "prior_nats", "shell", "typicality")
# Limits for untrusted manifests: bytes of the manifest, number of code files, and values in the array of one image.
_MOST_BYTES, _MOST_FILES, _MOST_VALUES = 2**24, 75_000, 2**31


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
            raise ValueError("shards lists other files than splits and images_per_shard make")
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
            other = f"{folder} was begun with the weights of {begun}, and those of {now} are others"
            raise DataError(f"{other}; take --run {folder}/_run, which has the former, or another folder with --out")
        # The title contains the images' path, which may differ if the images have keys that identify them.
        title = () if self.data.keys_sha256 and job.data.keys_sha256 else ("data.title",)
        data = ("data.image_shape", "data.centre_crop", "data.descriptions", "data.keys_sha256")
        for name in ("format", "fields", "images_per_shard", *title, "splits", *data):
            values = [operator.attrgetter(name)(manifest) for manifest in (self, job)]
            begun, now = (", ".join(map(str, v)) if isinstance(v, tuple) else f"{v}".strip("{}") for v in values)
            if begun != now:
                other = f"{folder} was begun with other arguments or files: {name} was {begun} and is now {now}"
                raise DataError(f"{other}; give the old ones, or name another folder with --out")

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


def choose_code_fields(config: ModelConfig, *, v: bool, z_std: bool, scores: bool = False) -> tuple[Field, ...]:
    """Returns the fields to store for an image: z if the model has z; v, z_std and outlier scores if requested."""
    shapes = {"z": (config.latent_dim,), "z_std": (config.latent_dim,), "v": config.image_shape}
    requested = {"z": config.has_latent, "z_std": z_std, "v": v, **dict.fromkeys(SCORES, scores)}
    requested["prior_nats"] &= config.has_encoder
    return tuple(Field(name=name, shape=shapes.get(name, ())) for name, stored in requested.items() if stored)
