"""The export folder: its manifest, and the hidden folder beside it in which an export is built before it is renamed.

The manifest has the SHA-256 of every file. With the manifest and the answers of the model in `test_vectors.npz`,
`tfdecouple export --verify DIR` verifies the files without the run.
"""

import contextlib
import os
import pathlib
import re
import shutil
import signal
from collections.abc import Iterator
from typing import Annotated, Literal, Self

import pydantic
from filelock import FileLock, Timeout

from tfdecouple.errors import UserError
from tfdecouple.registry import FORMATS
from tfdecouple.storage.files import FileDigest, read_json, read_model
from tfdecouple.system.signals import handle_signals

MANIFEST = "manifest.json"
# The file of test vectors: inputs, and the Keras model's answers to them.
VECTORS = "test_vectors.npz"
# The file names of the model card as JSON and as Markdown.
JSON_NAME, TEXT_NAME = "model_card.json", "MODEL_CARD.md"
# The settings of TensorFlow Serving. Users may edit these files, so the verification accepts changes in them.
EDITABLE = ("batching.config", "docker-compose.yml", "models.config", "monitoring.config")
# The files that an export writes beside the folders of its formats, apart from the manifest.
_BESIDE = ("client.py", "guided_filter.py", JSON_NAME, TEXT_NAME, VECTORS, *EDITABLE)
# The largest size in bytes of a manifest or model card that is read.
MOST_BYTES = 2**24
# A path that does not lead out of the export folder, because no name in it begins with a dot.
_Inside = Annotated[str, pydantic.Field(pattern=r"^(\w[\w.-]*/)*\w[\w.-]*$")]


def _is_written(name: str) -> bool:
    """Returns whether an export writes a file at the path `name` in its folder."""
    inside = (f"{kind}/{'[0-9]+/' * one.has_versions}(?:{one.files})" for kind, one in FORMATS.items())
    return name in _BESIDE or any(re.fullmatch(pattern, name, re.ASCII) for pattern in inside)


def _require_part(name: str) -> str:
    """Returns `name`; raises ValueError unless an export can have a part of this name, such as "savedmodel/3"."""
    if not any(re.fullmatch(kind + "/[1-9][0-9]*" * one.has_versions, name) for kind, one in FORMATS.items()):
        raise ValueError(f"it must be one of {', '.join(FORMATS)}")
    return name


class ExportManifest(pydantic.BaseModel):
    """The content of `manifest.json`: a record of all other files in an export folder.

    `parts` is {path of a folder that can be verified, such as "savedmodel/3": {endpoint: name of its file, without
    suffix}}, and `files` is {path in the export folder: size and SHA-256 of the file}.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    format: Literal[1]
    parts: dict[Annotated[str, pydantic.AfterValidator(_require_part)], dict[str, _Inside]]
    files: dict[_Inside, FileDigest]

    @classmethod
    def from_folder(cls, folder: pathlib.Path, parts: dict[str, dict[str, str]]) -> Self:
        """Returns the manifest of an export in `folder` with `parts`; it leaves out files that no export writes."""
        names = (name for name, file_type in _list_entries(folder) if file_type == "file" and _is_written(name))
        return cls(format=1, parts=parts, files={name: FileDigest.from_file(folder / name) for name in names})

    def find_changes(self, folder: pathlib.Path) -> Iterator[tuple[str, str]]:
        """Yields (kind of change, path) for each file by which `folder` and this manifest differ.

        The kinds are "changed", "missing", "unknown" and "link", and "no part of the export" for paths in the manifest
        that no export writes, or that belong to none of its parts, and for paths that only the model card names.
        """
        present = dict(_list_entries(folder))
        for name, file_type in present.items():
            if file_type == "link":
                yield "link", name
            elif file_type != "file" or name not in {*self.files, MANIFEST}:
                yield "unknown", name
        for name, digest in self.files.items():
            if name not in present:
                yield "missing", name
            elif present[name] == "file" and FileDigest.from_file(folder / name) != digest:
                yield "changed", name
        within = tuple(f"{part}/" for part in self.parts)
        strays = [n for n in self.files if not _is_written(n) or ("/" in n and not n.startswith(within))]
        try:
            formats = read_json(folder / JSON_NAME, MOST_BYTES)["formats"]
            named = [name for entry in formats.values() for name in entry["files"]]
            strays += [name for name in named if name not in {*self.parts, *self.files}]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            strays.append(JSON_NAME)
        yield from (("no part of the export", name) for name in strays)


def _list_entries(folder: pathlib.Path) -> Iterator[tuple[str, str]]:
    """Yields (path, "file", "link" or "other") of all in `folder`; servers take an empty folder for a version."""
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not path.is_dir() or not any(path.iterdir()):
            file_type = "link" if path.is_symlink() else "file" if path.is_file() else "other"
            yield path.relative_to(folder).as_posix(), file_type


def load_manifest(folder: pathlib.Path) -> ExportManifest:
    """Returns the manifest of an export folder; UserError if the folder or a valid `manifest.json` is missing."""
    try:
        return read_model(folder / MANIFEST, ExportManifest, MOST_BYTES)
    except FileNotFoundError as error:
        raise UserError(f"there is no {folder / MANIFEST}; name a folder that an export has made") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / MANIFEST} is no manifest of an export: {error}; export the run again") from error


def require_new_folder(folder: pathlib.Path) -> None:
    """Raises UserError if `folder`, which an export shall make, exists already."""
    if os.path.lexists(folder):
        raise UserError(f"{folder} exists already, and every export is a new folder; choose another --to, or remove it")


@contextlib.contextmanager
def stage_export(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """A context that gives an empty hidden folder beside `folder`, on its file system, to build an export in.

    The hidden folder is removed when the context ends, or, after a kill, by the next export to the same `folder`.
    Folders above are made, and are removed if nothing is published. UserError is raised if another process has entered
    this context for the same `folder`.
    """
    above = folder.absolute().parent
    made = [parent for parent in (above, *above.parents) if not parent.exists()]
    area, lock = above / f".{folder.name}.exporting", above / f".{folder.name}.exporting.lock"
    try:
        above.mkdir(parents=True, exist_ok=True)
        with FileLock(lock, timeout=0):
            try:
                shutil.rmtree(area, ignore_errors=True)
                area.mkdir()
                yield area
            finally:
                with handle_signals(signal.SIG_IGN, signal.SIGINT, signal.SIGTERM):
                    shutil.rmtree(area, ignore_errors=True)
                    lock.unlink(missing_ok=True)
    except Timeout as error:
        raise UserError(f"another export is writing to {folder}; wait for it, or choose another --to") from error
    finally:
        for parent in made:
            with contextlib.suppress(OSError):
                parent.rmdir()
