"""What an export folder holds: the SHA-256 of every file, and how each part is checked again.

`manifest.json` lies in the export folder, and in `cases/` what the model answered at the export. Together they let
`python -m export --verify DIR` run the gate without the run.
"""

from __future__ import annotations

import hashlib
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from export.formats.files import FILE_FORMATS
from tfdecouple.errors import UserError
from tfdecouple.storage.files import read_json

NAME = "manifest.json"
CASES = "cases"
CHECKS = ("check_saved_model", *FILE_FORMATS.values())
# What a person edits for a server; it may differ without anything being wrong.
EDITABLE = ("batching.config", "docker-compose.yml", "models.config", "monitoring.config")

_FORMAT = 1
_MOST_BYTES = 2**24
_CASES = re.compile(rf"{CASES}/[0-9a-f]{{16}}\.npz")

Files = dict[str, dict[str, Any]]


def file_digest(path: pathlib.Path) -> dict[str, Any]:
    """Returns the SHA-256 of a file and its size."""
    with path.open("rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "bytes": path.stat().st_size}


def digests_in(folder: pathlib.Path, name: str = "") -> Files:
    """Returns the digests of all files in a folder, by their paths below `name`."""
    prefix = f"{name}/" if name else ""
    return {
        f"{prefix}{path.relative_to(folder).as_posix()}": file_digest(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def case_file(cases: pathlib.Path) -> str:
    """Returns the name in an export folder of a file of cases: from its contents, so that parts can share it."""
    return f"{CASES}/{file_digest(cases)['sha256'][:16]}.npz"


def merged(before: Mapping[str, Any] | None, parts: Mapping[str, Any], files: Files) -> dict[str, Any]:
    """Returns a manifest that also keeps the parts which this export does not replace.

    Args:
        before: the manifest that lies in the folder, or None.
        parts: {part: how it is checked} of this export, such as "savedmodel/3" or "onnx".
        files: digests of what this export writes.
    """
    kept = before or {"parts": {}, "files": {}}
    every = {**kept["parts"], **parts}
    wanted = {part["cases"] for part in every.values()}
    replaced = tuple(f"{part}/" for part in parts)
    old = {
        name: digest
        for name, digest in kept["files"].items()
        if not name.startswith(replaced) and (not name.startswith(f"{CASES}/") or name in wanted)
    }
    return {"format": _FORMAT, "parts": every, "files": dict(sorted({**old, **files}.items()))}


def without_removed(manifest: Mapping[str, Any], folder: pathlib.Path) -> tuple[dict[str, Any], list[str]]:
    """Returns a manifest without the parts, and the files beside them, that somebody has removed; and their names."""
    beside = (name for name in manifest["files"] if "/" not in name)
    gone = [name for name in (*manifest["parts"], *beside) if not (folder / name).exists()]
    within = tuple(f"{name}/" for name in gone)
    parts = {name: part for name, part in manifest["parts"].items() if name not in gone}
    files = {
        name: digest for name, digest in manifest["files"].items() if name not in gone and not name.startswith(within)
    }
    return {**manifest, "parts": parts, "files": files}, gone


def cases_in(manifest: Mapping[str, Any] | None) -> set[str]:
    """Returns the names of the files of cases that a manifest lists; of no manifest none."""
    return {name for name in (manifest or {"files": {}})["files"] if _CASES.fullmatch(name)}


def load(folder: pathlib.Path) -> dict[str, Any]:
    """Reads the manifest of an export folder.

    Raises:
        UserError: where there is none, or it is none.
    """
    path = folder / NAME
    if not folder.is_dir():
        raise UserError(f"there is no export folder {folder}")
    try:
        manifest = read_json(path, _MOST_BYTES)
    except FileNotFoundError as error:
        raise UserError(
            f"{folder} has no {NAME}: it is no export, or one of an earlier version, which put neither the digests of "
            "its files nor the model's answers on record, so that nothing can be verified; export its run again"
        ) from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error}") from error
    except ValueError as error:
        raise UserError(f"{path} is damaged: {str(error)[:200]}; export the run again") from error
    if (wrong := _wrong(manifest)) is not None:
        raise UserError(f"{path} is no manifest of this version: {wrong}; export the run again")
    return manifest


def _wrong(manifest: Any) -> str | None:
    """Says what is wrong with what was read."""
    if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
        return f"its format is not {_FORMAT}"
    parts, files = manifest.get("parts"), manifest.get("files")
    if not isinstance(parts, dict) or not isinstance(files, dict):
        return "it has no parts or no files"
    for name, part in parts.items():
        if not isinstance(part, dict) or part.get("check") not in CHECKS or not isinstance(part.get("options"), dict):
            return f"part {name!r} does not say how it is checked"
        if not isinstance(part.get("cases"), str) or not _CASES.fullmatch(part["cases"]):
            return f"part {name!r} names no file of cases"
        if not _inside(name) or not isinstance(part.get("folder"), str) or not _inside(part["folder"]):
            return f"part {name!r} lies outside of the folder"
    for name, digest in files.items():
        if not _inside(name) or not isinstance(digest, dict) or not isinstance(digest.get("sha256"), str):
            return f"file {name!r} has no digest or lies outside of the folder"
    return None


def _inside(name: str) -> bool:
    path = pathlib.PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and "\0" not in name


def changes(folder: pathlib.Path, manifest: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields what differs between a folder and its manifest: "changed", "missing" or "unknown", and the file's name."""
    files = manifest["files"]
    for name, digest in files.items():
        path = folder / name
        if not path.is_file():
            yield "missing", name
        elif path.stat().st_size != digest.get("bytes") or file_digest(path)["sha256"] != digest["sha256"]:
            yield "changed", name
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        # What an export that is going on, or was killed, has of its own.
        hidden = path.relative_to(folder).parts[0].startswith(".export")
        # A link may lead to a whole folder, which a server would read.
        if name not in files and name != NAME and (path.is_file() or path.is_symlink()) and not hidden:
            yield "unknown", name
