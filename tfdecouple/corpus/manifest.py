"""The manifest of a folder of codes: whose codes they are, of which images, in which files."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

from tfdecouple.corpus.checked import manifest_values
from tfdecouple.corpus.fields import Field
from tfdecouple.errors import DataError, one_line
from tfdecouple.storage.files import read_json, write_json

# Readers of Parquet folders, Arrow's and Spark's alike, pass over names that begin like this.
MANIFEST = "_manifest.json"
VERSION = 1
# What of the data stays as it was begun with.
_SAME_DATA = ("image_size", "image_shape", "centre_crop", "descriptions")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardRange:
    """A file and the images that belong into it.

    Attributes:
        name: of the file.
        split: of the data set.
        start: number of its first image in the split.
        stop: number after its last.
    """

    name: str
    split: str
    start: int
    stop: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a folder of codes says of itself. All but the last three says what the job is, and never changes.

    Attributes:
        format: "tfrecord" or "parquet".
        fields: what is written of each image beside key and label.
        model: whose codes they are: {"run", "step", "averaged", "weights_sha256"}; of a pipeline {"run", "step",
            "onnx_sha256"}.
        data: what they are codes of: {"title", "image_size", "centre_crop", "descriptions", "keys_sha256"}, with
            "image_shape" in the place of the second where they are no squares of RGB; of a pipeline the first three.
        label_names: by label; empty where there are none.
        splits: number of images by split, in the order of encoding.
        images_per_shard: how many images belong into a file; 0 where a pipeline spread them at will.
        complete: whether all files are there.
        totals: {"images", "skipped", "bytes"} of a complete folder.
        shards: {"name", "images", "bytes", "sha256"} of each file of a complete folder; a pipeline does not count
            the images of single files.
    """

    format: str
    fields: tuple[Field, ...]
    model: dict[str, Any]
    data: dict[str, Any]
    label_names: tuple[str, ...]
    splits: dict[str, int]
    images_per_shard: int
    complete: bool = False
    totals: dict[str, int] = dataclasses.field(default_factory=dict)
    shards: tuple[dict[str, Any], ...] = ()

    def ranges(self) -> list[ShardRange]:
        """Returns the files that a complete folder has, in order."""
        found = []
        for split, size in self.splits.items():
            starts = range(0, size, self.images_per_shard)
            for number, start in enumerate(starts):
                name = f"{split}-{number:05d}-of-{len(starts):05d}.{self.format}"
                stop = min(start + self.images_per_shard, size)
                found.append(ShardRange(name=name, split=split, start=start, stop=stop))
        return found

    def names(self, split: str | None = None) -> list[str]:
        """Returns the names of the files that a complete folder has, of one split or of all, in order."""
        found = [entry["name"] for entry in self.shards] if self.complete else [shard.name for shard in self.ranges()]
        return [name for name in found if split is None or name.startswith(f"{split}-")]

    def require_same(self, asked: Manifest, folder: pathlib.Path) -> None:
        """Refuses to go on with another job than the folder was begun with. Of the model, only what it is counts here.

        Raises:
            DataError: naming the first difference.
        """
        if "weights_sha256" not in self.model:
            raise DataError(f"{folder} was written by encode-beam; name another folder with --out")
        # Images with names are known by these, wherever their folder is.
        named = bool(self.data["keys_sha256"] and asked.data["keys_sha256"])
        for what, begun, now in (
            ("the format", self.format, asked.format),
            ("the fields", _names(self.fields), _names(asked.fields)),
            ("the images per shard", self.images_per_shard, asked.images_per_shard),
            *([] if named else [("the data", self.data["title"], asked.data["title"])]),
            ("the splits", _counts(self.splits), _counts(asked.splits)),
            *((what, self.data.get(what), asked.data.get(what)) for what in _SAME_DATA),
        ):
            if begun != now:
                raise DataError(
                    f"{folder} was begun with other arguments: {what} was {begun} and is now {now}; give the old ones, "
                    "or name another folder with --out"
                )
        if self.data["keys_sha256"] != asked.data["keys_sha256"]:
            raise DataError(
                f"{folder} was begun with other files than there are in {asked.data['title']} now; "
                "name another folder with --out"
            )

    def write(self, folder: pathlib.Path) -> None:
        """Writes the manifest whole.

        Raises:
            OSError: where it cannot be written.
        """
        values = dataclasses.asdict(self) | {"fields": [field.plain() for field in self.fields]}
        write_json(folder / MANIFEST, {"version": VERSION, **values})

    @classmethod
    def read(cls, folder: pathlib.Path) -> Manifest | None:
        """Returns the manifest of a folder, None where it has none.

        Raises:
            DataError: where it cannot be read, is of another version or is not what this program writes.
        """
        path = folder / MANIFEST
        try:
            values = read_json(path, 2**26)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            raise DataError(f"cannot read {path}: {one_line(error)}") from error
        version = values.pop("version", None) if isinstance(values, dict) else None
        if version != VERSION:
            raise DataError(f"{path} is of version {str(version)[:40]}; this program reads version {VERSION}")
        try:
            manifest = cls(**manifest_values(values))
            if manifest.complete and manifest.images_per_shard:
                expected = [shard.name for shard in manifest.ranges()]
                if [entry["name"] for entry in manifest.shards] != expected:
                    raise ValueError("shards lists other files than splits and images_per_shard make")
            return manifest
        except ValueError as error:
            raise DataError(f"{path} is no manifest of codes: {one_line(error)}") from error


def _names(fields: tuple[Field, ...]) -> str:
    return ", ".join(f"{field.name} {list(field.shape)}" for field in fields)


def _counts(splits: dict[str, int]) -> str:
    return ", ".join(f"{name} {size}" for name, size in splits.items())
