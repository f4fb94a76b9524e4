"""What a file of JSON beside codes says, checked before anything is done with it: it may be damaged or a stranger's."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from tfdecouple.corpus.fields import SCORES, Field
from tfdecouple.corpus.formats import FORMATS

_FIELDS = ("z", "z_std", "v", *SCORES)
# Above these a number is damage: a folder of so many files is no folder, and no image has so many values.
_MOST, _MOST_FILES, _MOST_VALUES = 2**53, 10**7, 2**31


def manifest_values(values: Any) -> dict[str, Any]:
    """Returns the arguments of `Manifest` from what its file holds, without the version.

    Raises:
        ValueError: naming the first thing that is not as it should be.
    """
    _object(values, "it")
    chosen = _text(values, "format")
    if chosen not in FORMATS:
        raise ValueError(f"format is {chosen!r}; it must be {' or '.join(FORMATS)}")
    model, data, totals = (_object(_value(values, name), name) for name in ("model", "data", "totals"))
    splits = _object(_value(values, "splits"), "splits")
    for split in splits:
        _whole(splits, split, "splits.")
        if not _is_plain(split):
            raise ValueError(f"splits has {split!r}, which cannot begin the name of a file")
    complete = _value(values, "complete")
    if not isinstance(complete, bool):
        raise ValueError("complete is neither true nor false")
    for name in ("title", "image_shape" if "image_shape" in data else "image_size", "centre_crop"):
        _value(data, name, "data.")
    # What `encode` needs to go on; a pipeline neither writes nor needs it.
    if "weights_sha256" in model:
        _text(model, "weights_sha256", "model.")
        _text(model, "run", "model.")
        _whole(model, "step", "model.")
        _text(data, "title", "data.")
        _text(data, "keys_sha256", "data.")
        _object(_value(data, "descriptions", "data."), "data.descriptions")
        _whole(values, "images_per_shard", least=1)
        if sum(-(-size // values["images_per_shard"]) for size in splits.values()) > _MOST_FILES:
            raise ValueError(f"images_per_shard and splits make more than {_MOST_FILES:,} files")
    else:
        _whole(values, "images_per_shard")
        if not complete:
            raise ValueError("it is not complete and says of no weights to go on with (model.weights_sha256)")
    for name in ("images", "skipped", "bytes") if complete else ():
        _whole(totals, name, "totals.")
    labels = _list(values, "label_names")
    if not all(isinstance(label, str) for label in labels):
        raise ValueError("label_names has what is no text")
    return {
        "format": chosen,
        "fields": tuple(_field(field) for field in _list(values, "fields")),
        "model": model,
        "data": data,
        "label_names": tuple(labels),
        "splits": splits,
        "images_per_shard": values["images_per_shard"],
        "complete": complete,
        "totals": totals,
        "shards": tuple(shard_entry(entry) for entry in _list(values, "shards")),
    }


def shard_entry(values: Any) -> dict[str, Any]:
    """Returns what is noted of one file: `name`, `bytes`, and `images` and `sha256`, which may be None.

    Raises:
        ValueError: naming the first thing that is not as it should be.
    """
    entry = _object(values, "the entry of a file")
    if not _is_plain(_text(entry, "name")):
        raise ValueError(f"{entry['name']!r} is no name of a file in this folder")
    _whole(entry, "bytes")
    if entry.setdefault("images", None) is not None:
        _whole(entry, "images")
    if entry.setdefault("sha256", None) is not None:
        _text(entry, "sha256")
    return {name: entry[name] for name in ("name", "images", "bytes", "sha256")}


def _field(values: Any) -> Field:
    field = _object(values, "an entry of fields")
    name, shape = _text(field, "name", "fields."), _list(field, "shape", "fields.")
    if name not in _FIELDS:
        raise ValueError(f"fields has {name!r}; it may have {', '.join(_FIELDS)}")
    if not all(_is_whole(size) and size >= 1 for size in shape) or Field(name, tuple(shape)).size > _MOST_VALUES:
        raise ValueError(f"the shape of {name} is no list of sizes")
    return Field(name, tuple(shape))


def _is_plain(name: str) -> bool:
    """Tells whether a name leads to a visible file of the folder itself, and nowhere else."""
    return bool(name) and not name.startswith(".") and "\0" not in name and pathlib.PurePath(name).name == name


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _value(values: Mapping[str, Any], name: str, where: str = "") -> Any:
    if name not in values:
        raise ValueError(f"{where}{name} is missing")
    return values[name]


def _text(values: Mapping[str, Any], name: str, where: str = "") -> str:
    value = _value(values, name, where)
    if not isinstance(value, str):
        raise ValueError(f"{where}{name} is no text")
    return value


def _whole(values: Mapping[str, Any], name: str, where: str = "", least: int = 0) -> int:
    value = _value(values, name, where)
    if not _is_whole(value) or not least <= value < _MOST:
        raise ValueError(f"{where}{name} is no whole number from {least} on")
    return value


def _list(values: Mapping[str, Any], name: str, where: str = "") -> list[Any]:
    value = _value(values, name, where)
    if not isinstance(value, list):
        raise ValueError(f"{where}{name} is no list")
    return value


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{what} is no object of names and values")
    return value
