"""The manifest of a folder of codes: the model, the images, the fields of an image, and the digests of the files."""

from __future__ import annotations

import math
import os
import pathlib
from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple, Self

import pydantic

from tfdecouple.config import ModelConfig
from tfdecouple.errors import DataError, one_line
from tfdecouple.storage.files import read_json, write_json

# Readers of Parquet folders, Arrow's and Spark's alike, pass over names that begin like this.
MANIFEST = "_manifest.json"
# The label of an image whose label is not known.
NO_LABEL = -1
# How unlike the training an image is, a number each: those of `tfdecouple.metrics.outliers`.
SCORES = ("bits_per_dim", "bits_per_dim_minus_codec", "prior_nats", "shell", "typicality")
# Larger numbers are damage: no folder has so many files, and no image so many values.
_MOST_BYTES, _MOST_FILES, _MOST_VALUES = 2**28, 10**7, 2**31


def _file_name(name: str) -> str:
    """Refuses a name that leads elsewhere than to a visible file of the folder."""
    if not name or name.startswith(".") or "\0" in name or pathlib.PurePath(name).name != name:
        raise ValueError("it is no name of a file in this folder")
    return name


_Name = Annotated[str, pydantic.AfterValidator(_file_name)]
_Count = Annotated[int, pydantic.Field(strict=True, ge=0, lt=2**53)]


class _Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True)


class Field(_Model):
    """One float32 array of each image.

    Attributes:
        name: "z", the posterior mean; "z_std", the posterior's standard deviation; "v", the local code; or of `SCORES`.
        shape: of one image; () for a single number.
    """

    name: Literal["z", "z_std", "v", *SCORES]  # type: ignore[valid-type]
    dtype: Literal["float32"] = "float32"
    shape: tuple[Annotated[int, pydantic.Field(strict=True, ge=1, le=_MOST_VALUES)], ...]

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)


class Shard(_Model):
    """A file of codes as it was written; a pipeline does not count the images of single files."""

    name: _Name
    images: _Count | None = None
    bytes: _Count
    sha256: str


class ShardRange(NamedTuple):
    """A file and the images that belong into it: numbers `start` to `stop` of the split."""

    name: str
    split: str
    start: int
    stop: int


class ModelFacts(_Model):
    """The model that encoded: `weights_sha256` of weights, or `onnx_sha256` of a pipeline's encoder."""

    run: str | None
    step: _Count
    averaged: bool | None = None
    weights_sha256: str | None = None
    onnx_sha256: str | None = None


class DataFacts(_Model):
    """The images; descriptions by split, and the hash of all names, are not known of a pipeline."""

    title: str
    image_shape: tuple[_Count, _Count, _Count]
    centre_crop: _Count
    descriptions: dict[str, str] | None = None
    keys_sha256: str | None = None


class Manifest(_Model):
    """What a folder of codes holds. All but the last three describes the job and never changes.

    Attributes:
        version: of this file.
        format: of the files of codes.
        fields: what is written of each image beside key and label.
        model: the model that encoded.
        data: the images.
        label_names: by label; empty where there are none.
        splits: number of images by split, in the order of encoding.
        images_per_shard: how many images belong into a file; 0 where a pipeline spread them at will.
        complete: whether all files are there.
        totals: {"images", "skipped", "bytes"} of a complete folder.
        shards: the files of a complete folder.
    """

    version: Literal[1] = 1
    format: Literal["tfrecord", "parquet"]
    fields: tuple[Field, ...]
    model: ModelFacts
    data: DataFacts
    label_names: tuple[str, ...]
    splits: dict[_Name, _Count]
    images_per_shard: _Count
    complete: pydantic.StrictBool
    totals: dict[str, _Count]
    shards: tuple[Shard, ...]

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
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
            raise ValueError(f"images_per_shard and splits make more than {_MOST_FILES:,} files")
        elif self.complete and [shard.name for shard in self.shards] != [shard.name for shard in self.ranges()]:
            raise ValueError("shards lists other files than splits and images_per_shard make")
        return self

    def ranges(self) -> list[ShardRange]:
        """Returns the files that a complete folder has, in order."""
        found = []
        for split, size in self.splits.items():
            starts = range(0, size, self.images_per_shard)
            for number, start in enumerate(starts):
                name = f"{split}-{number:05d}-of-{len(starts):05d}.{self.format}"
                stop = min(start + self.images_per_shard, size)
                found.append(ShardRange(name, split, start, stop))
        return found

    def names(self, split: str | None = None) -> list[str]:
        """Returns the names of the files that a complete folder has, of one split or of all, in order."""
        found = [shard.name for shard in (self.shards if self.complete else self.ranges())]
        return [name for name in found if split is None or name.startswith(f"{split}-")]

    def require_same(self, asked: Manifest, folder: pathlib.Path) -> None:
        """Refuses to resume with another job than the folder was begun with; the weights are compared elsewhere.

        Raises:
            DataError: naming the first difference.
        """
        if self.model.weights_sha256 is None:
            raise DataError(f"{folder} was written by encode-beam; name another folder with --out")
        # Images with names are known by these, wherever their folder is.
        unnamed = not (self.data.keys_sha256 and asked.data.keys_sha256)
        for what, begun, now in (
            ("the format", self.format, asked.format),
            ("the fields", _listed(self.fields), _listed(asked.fields)),
            ("the images per shard", self.images_per_shard, asked.images_per_shard),
            *([("the data", self.data.title, asked.data.title)] if unnamed else []),
            ("the splits", _counts(self.splits), _counts(asked.splits)),
            *((name, getattr(self.data, name), getattr(asked.data, name)) for name in _SAME_DATA),
        ):
            if begun != now:
                raise DataError(
                    f"{folder} was begun with other arguments: {what} was {begun} and is now {now}; give the old ones, "
                    "or name another folder with --out"
                )
        if self.data.keys_sha256 != asked.data.keys_sha256:
            raise DataError(
                f"{folder} was begun with other files than there are in {asked.data.title} now; "
                "name another folder with --out"
            )

    def as_json(self) -> dict:
        """Returns plain values for JSON."""
        return self.model_dump(mode="json", exclude_none=True)

    def write(self, folder: pathlib.Path) -> None:
        """Writes the manifest whole.

        Raises:
            OSError: where it cannot be written.
        """
        write_json(folder / MANIFEST, self.as_json())

    @classmethod
    def read(cls, folder: pathlib.Path) -> Manifest | None:
        """Returns the manifest of a folder, None where it has none.

        Raises:
            DataError: where it cannot be read, is of another version or is not what this program writes.
        """
        path = folder / MANIFEST
        try:
            return cls.model_validate(read_json(path, _MOST_BYTES))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except pydantic.ValidationError as error:
            first = error.errors(include_url=False, include_context=False)[0]
            where = ".".join(map(str, first["loc"])) or "it"
            given = one_line(repr(first["input"]), 80) if first["loc"] else ""
            raise DataError(f"{path} is no manifest of codes: {where}: {one_line(first['msg'])} {given}") from error
        except (OSError, ValueError) as error:
            raise DataError(f"cannot read the manifest {path}: {one_line(error)}") from error


_SAME_DATA = ("image_shape", "centre_crop", "descriptions")


def _listed(fields: Sequence[Field]) -> str:
    return ", ".join(f"{field.name} {list(field.shape)}" for field in fields)


def _counts(splits: dict[str, int]) -> str:
    return ", ".join(f"{name} {size}" for name, size in splits.items())


def key_bytes(key: str) -> bytes:
    r"""Returns what is written of an image's name: UTF-8, which Parquet wants.

    >>> key_bytes("cats/7.png"), key_bytes("caf\udce9.png")
    (b'cats/7.png', b'caf\\xe9.png')
    """
    try:
        return key.encode()
    except UnicodeEncodeError:
        return os.fsencode(key).decode("utf-8", "backslashreplace").encode()


def model_fields(config: ModelConfig, *, v: bool, z_std: bool, scores: bool = False) -> tuple[Field, ...]:
    """Returns the fields of a model's codes: z where the model has one, and what is asked for besides."""
    latent = (config.latent_dim,)
    shapes: dict[str, tuple[int, ...]] = {"z": latent} if config.has_latent else {}
    if z_std:
        shapes["z_std"] = latent
    if v:
        shapes["v"] = config.image_shape
    if scores:
        shapes |= {name: () for name in SCORES if name != "prior_nats" or config.has_encoder}
    return tuple(Field(name=name, shape=shape) for name, shape in shapes.items())


def bytes_per_image(fields: Sequence[Field]) -> int:
    """Returns about how many bytes the codes of an image take."""
    return 64 + sum(4 * field.size for field in fields)
