"""What an export folder holds: the SHA-256 of every file, and how each part is checked again.

`manifest.json` lies in the export folder, and in `cases/` what the model answered at the export. Together they let
`python -m export --verify DIR` check the files without the run.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import pydantic

from tfdecouple.errors import UserError
from tfdecouple.storage.files import read_json

NAME = "manifest.json"
CASES = "cases"
# The model card, for programs.
JSON_NAME = "model_card.json"
# What a person edits for a server; it may differ without anything being wrong.
EDITABLE = ("batching.config", "docker-compose.yml", "models.config", "monitoring.config")

_MOST_BYTES = 2**24
_CASES = re.compile(rf"{CASES}/[0-9a-f]{{16}}\.npz")


def _inside(name: str) -> str:
    path = pathlib.PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        raise ValueError("it lies outside of the folder")
    return name


_Inside = Annotated[str, pydantic.AfterValidator(_inside)]


class _Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


class Digest(_Model):
    """SHA-256 and size of a file."""

    sha256: str
    bytes: int


class Part(_Model):
    """How one part, such as "savedmodel/3" or "onnx", is checked.

    Attributes:
        runtime: of `export.verification.runtimes.RUNTIMES`.
        folder: where its models lie.
        cases: file of the cases.
        options: of `export.verification.check.check`.
    """

    runtime: Literal["savedmodel", "onnx", "litert"]
    folder: _Inside
    cases: Annotated[str, pydantic.Field(pattern=f"^{_CASES.pattern}$")]
    options: dict[str, Any]


class Manifest(_Model):
    """Everything in an export folder but the manifest itself.

    Attributes:
        format: of the manifest.
        parts: what can be checked, by name.
        files: the digests of all files, by their paths in the folder.
    """

    format: Literal[1]
    parts: dict[_Inside, Part]
    files: dict[_Inside, Digest]

    @property
    def cases(self) -> set[str]:
        """The names of the files of cases."""
        return {name for name in self.files if _CASES.fullmatch(name)}

    def merged(self, parts: Mapping[str, Part], files: Mapping[str, Digest]) -> Manifest:
        """Returns a manifest of new parts and files, and of those that they do not replace."""
        every = {**self.parts, **parts}
        wanted = {part.cases for part in every.values()}
        replaced = tuple(f"{part}/" for part in parts)
        old = {
            name: digest
            for name, digest in self.files.items()
            if not name.startswith(replaced) and (not name.startswith(f"{CASES}/") or name in wanted)
        }
        return Manifest(format=1, parts=every, files=dict(sorted({**old, **files}.items())))

    def without_removed(self, folder: pathlib.Path) -> tuple[Manifest, list[str]]:
        """Returns a manifest without the parts, and the files beside them, that a user has removed; and their names."""
        beside = (name for name in self.files if "/" not in name)
        gone = [name for name in (*self.parts, *beside) if not (folder / name).exists()]
        within = tuple(f"{name}/" for name in gone)
        parts = {name: part for name, part in self.parts.items() if name not in gone}
        files = {name: one for name, one in self.files.items() if name not in gone and not name.startswith(within)}
        return Manifest(format=1, parts=parts, files=files), gone

    def changes(self, folder: pathlib.Path) -> Iterator[tuple[str, str]]:
        """Yields what differs in a folder, "changed", "missing", "unknown" or "link", and the name."""
        there = dict(_entries(folder))
        for name, kind in there.items():
            if kind == "link":
                yield "link", name
            elif kind != "file" or name not in {*self.files, NAME}:
                yield "unknown", name
        for name, digest in self.files.items():
            if name not in there:
                yield "missing", name
            elif there[name] == "file" and file_digest(folder / name) != digest:
                yield "changed", name

    def unclaimed(self, folder: pathlib.Path) -> Iterator[str]:
        """Yields files that belong to no part, and what the model card tells of and the manifest does not."""
        within = (f"{CASES}/", *(f"{part}/" for part in self.parts))
        yield from (name for name in self.files if "/" in name and not name.startswith(within))
        try:
            card = read_json(folder / JSON_NAME, _MOST_BYTES)
            told = [one["files"] for key in ("formats", "others") for one in card.get(key, {}).values()]
            yield from (name for names in told for name in names if name not in {*self.parts, *self.files})
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            yield JSON_NAME


EMPTY = Manifest(format=1, parts={}, files={})


def _entries(folder: pathlib.Path, within: str = "") -> Iterator[tuple[str, str]]:
    """Yields all that lies in a folder and what it is: "file", "link" or "other"; folders are opened."""
    for entry in sorted(os.scandir(folder / within), key=lambda entry: entry.name):
        name = f"{within}{entry.name}"
        if entry.is_symlink():
            yield name, "link"
        elif entry.is_dir():
            yield from _entries(folder, f"{name}/")
        else:
            yield name, "file" if entry.is_file() else "other"


def file_digest(path: pathlib.Path) -> Digest:
    """Returns the SHA-256 of a file and its size."""
    with path.open("rb") as file:
        return Digest(sha256=hashlib.file_digest(file, "sha256").hexdigest(), bytes=path.stat().st_size)


def digests_in(folder: pathlib.Path, name: str = "") -> dict[str, Digest]:
    """Returns the digests of all files in a folder, by their paths below `name`."""
    prefix = f"{name}/" if name else ""
    return {
        f"{prefix}{path.relative_to(folder).as_posix()}": file_digest(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def case_file(cases: pathlib.Path) -> str:
    """Returns the name in an export folder of a file of cases: from its contents, so that parts can share it."""
    return f"{CASES}/{file_digest(cases).sha256[:16]}.npz"


def load(folder: pathlib.Path) -> Manifest:
    """Reads the manifest of an export folder.

    Raises:
        UserError: where there is none, or it is none.
    """
    path = folder / NAME
    if not folder.is_dir():
        raise UserError(f"there is no export folder {folder}")
    try:
        return Manifest.model_validate(read_json(path, _MOST_BYTES))
    except FileNotFoundError as error:
        raise UserError(f"{folder} has no {NAME}, so that nothing can be verified; export its run again") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error}") from error
    except ValueError as error:
        what = str(error)
        if isinstance(error, pydantic.ValidationError):
            first = error.errors()[0]
            what = ".".join(map(str, first["loc"])) + f": {first['msg']}"
        raise UserError(f"{path} is no manifest of an export: {what[:200]}; export the run again") from error
