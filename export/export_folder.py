"""The manifest of an export folder: the SHA-256 of every file, and the data to verify each part again.

The export folder has `manifest.json`, and the answers of the model in `test_vectors/`. With both,
`python -m export --verify DIR` verifies the files without the run.
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

import pydantic

from tfdecouple.errors import UserError
from tfdecouple.storage.files import FileDigest, file_sha256, read_json

MANIFEST = "manifest.json"
VECTORS = "test_vectors"
# Name of the model card's JSON file.
JSON_NAME = "model_card.json"
# Names of settings of a server, which users may edit, so that a change is no problem.
EDITABLE = ("batching.config", "docker-compose.yml", "models.config", "monitoring.config")

_MOST_BYTES = 2**24
_VECTORS = re.compile(rf"{VECTORS}/[0-9a-f]{{16}}\.npz")


def _inside(name: str) -> str:
    path = pathlib.PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        raise ValueError("it lies outside of the folder")
    return name


_Inside = Annotated[str, pydantic.AfterValidator(_inside)]


class _Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


class Part(_Model):
    """The data to verify one part of an export, such as "savedmodel/3" or "onnx".

    Attributes:
        runtime: the runtime that runs the part, a key of `export.verification.runtimes.RUNTIMES`.
        folder: the folder of the part's models.
        vectors: the file of test vectors.
        names: the names of the part's files, without suffix, by endpoint.
    """

    runtime: Literal["savedmodel", "onnx", "litert"]
    folder: _Inside
    vectors: Annotated[str, pydantic.Field(pattern=f"^{_VECTORS.pattern}$")]
    names: dict[str, _Inside]


class Manifest(_Model):
    """The record of all files in an export folder except the manifest itself.

    Attributes:
        format: the version of the manifest's format.
        parts: the parts that can be verified, by name.
        files: the digests of all files, by their paths in the folder.
    """

    format: Literal[1]
    parts: dict[_Inside, Part]
    files: dict[_Inside, FileDigest]

    @property
    def vectors(self) -> set[str]:
        """The names of all files of test vectors in the manifest."""
        return {name for name in self.files if _VECTORS.fullmatch(name)}

    def merge(self, parts: Mapping[str, Part], files: Mapping[str, FileDigest]) -> Manifest:
        """Returns a manifest with new parts and files added; they replace parts and files of the same name."""
        all_parts = {**self.parts, **parts}
        needed = {part.vectors for part in all_parts.values()}
        replaced = tuple(f"{part}/" for part in parts)
        old = {
            name: digest
            for name, digest in self.files.items()
            if not name.startswith(replaced) and (not name.startswith(f"{VECTORS}/") or name in needed)
        }
        return Manifest(format=1, parts=all_parts, files=dict(sorted({**old, **files}.items())))

    def drop_removed(self, folder: pathlib.Path) -> tuple[Manifest, list[str]]:
        """Returns a manifest without parts and top-level files that no longer exist in a folder, and their names."""
        beside = (name for name in self.files if "/" not in name)
        gone = [name for name in (*self.parts, *beside) if not (folder / name).exists()]
        within = tuple(f"{name}/" for name in gone)
        parts = {name: part for name, part in self.parts.items() if name not in gone}
        files = {name: one for name, one in self.files.items() if name not in gone and not name.startswith(within)}
        return Manifest(format=1, parts=parts, files=files), gone

    def find_changes(self, folder: pathlib.Path) -> Iterator[tuple[str, str]]:
        """Yields the kind ("changed", "missing", "unknown" or "link") and the name of each difference of a folder."""
        there = dict(_list_entries(folder))
        for name, kind in there.items():
            if kind == "link":
                yield "link", name
            elif kind != "file" or name not in {*self.files, MANIFEST}:
                yield "unknown", name
        for name, digest in self.files.items():
            if name not in there:
                yield "missing", name
            elif there[name] == "file" and FileDigest.from_file(folder / name) != digest:
                yield "changed", name

    def find_strays(self, folder: pathlib.Path) -> Iterator[str]:
        """Yields names of files that belong to no part, and of files in the model card that the manifest lacks."""
        within = (f"{VECTORS}/", *(f"{part}/" for part in self.parts))
        yield from (name for name in self.files if "/" in name and not name.startswith(within))
        try:
            formats = read_json(folder / JSON_NAME, _MOST_BYTES).get("formats", {})
            named = [name for entry in formats.values() for name in entry["files"]]
            yield from (name for name in named if name not in {*self.parts, *self.files})
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            yield JSON_NAME


EMPTY = Manifest(format=1, parts={}, files={})


def _list_entries(folder: pathlib.Path) -> Iterator[tuple[str, str]]:
    """Yields the name and the kind, "file", "link" or "other", of all entries in a folder and its subfolders."""
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not path.is_dir():
            kind = "link" if path.is_symlink() else "file" if path.is_file() else "other"
            yield path.relative_to(folder).as_posix(), kind


def digest_folder(folder: pathlib.Path, name: str = "") -> dict[str, FileDigest]:
    """Returns the digests of all files in a folder, by their paths in the folder, prefixed with `name`."""
    prefix = f"{name}/" if name else ""
    return {
        f"{prefix}{path.relative_to(folder).as_posix()}": FileDigest.from_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def name_vectors(file: pathlib.Path) -> str:
    """Returns the name of a file of test vectors in an export folder, made from its digest, so that parts share it."""
    return f"{VECTORS}/{file_sha256(file)[:16]}.npz"


def load_manifest(folder: pathlib.Path) -> Manifest:
    """Returns the manifest of an export folder.

    Raises:
        UserError: if the folder or its manifest is missing, or the file is no manifest.
    """
    path = folder / MANIFEST
    if not folder.is_dir():
        raise UserError(f"there is no export folder {folder}")
    try:
        return Manifest.model_validate(read_json(path, _MOST_BYTES))
    except FileNotFoundError as error:
        raise UserError(f"{folder} has no {MANIFEST}, so that nothing can be verified; export its run again") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error}") from error
    except ValueError as error:
        reason = str(error)
        if isinstance(error, pydantic.ValidationError):
            first = error.errors()[0]
            reason = ".".join(map(str, first["loc"])) + f": {first['msg']}"
        raise UserError(f"{path} is no manifest of an export: {reason[:200]}; export the run again") from error
