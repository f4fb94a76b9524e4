"""The export folder: its manifest, and the hidden folder in which files are built before they are renamed into place.

The manifest has the SHA-256 of every file. With the manifest and the answers of the model in `test_vectors/`,
`python -m export --verify DIR` verifies the files without the run.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Literal

import pydantic
from filelock import FileLock, Timeout

from export.formats import FORMATS
from tfdecouple.errors import UserError
from tfdecouple.storage.files import FileDigest, hash_file, read_json, read_model

MANIFEST = "manifest.json"
VECTORS = "test_vectors"
# The file name of the model card as JSON.
JSON_NAME = "model_card.json"
# The settings of TensorFlow Serving. Users may edit these files, so the verification accepts changes in them.
EDITABLE = ("batching.config", "docker-compose.yml", "models.config", "monitoring.config")

_STAGING, _LOCK = ".export-", ".export.lock"
# While an exported folder is replaced, the old folder lies in the hidden folder, with this prefix before its name, so
# that it can be restored.
_OLD = "old-"

# Pattern of the paths in an export folder at which an export writes files.
_WRITTEN = re.compile(
    r"client\.py|model_card\.json|MODEL_CARD\.md|(batching|models|monitoring)\.config|docker-compose\.yml"
    rf"|{VECTORS}/[0-9a-f]{{16}}\.npz|"
    + "|".join(rf"{name}/{r'[0-9]+/' if one.has_versions else ''}{one.files}" for name, one in FORMATS.items()),
    re.ASCII,
)

# Pattern of the names of the parts of an export.
_PART = f"^({'|'.join(name + ('/[1-9][0-9]*' if one.has_versions else '') for name, one in FORMATS.items())})$"

# The largest size in bytes of a manifest or model card that is read.
MOST_BYTES = 2**24


# A path that does not lead out of the export folder, because no name in it begins with a dot.
_Inside = Annotated[str, pydantic.Field(pattern=r"^(\w[\w.-]*/)*\w[\w.-]*$")]


class _Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


class Part(_Model):
    """An entry of the manifest: what `--verify` needs to run one part of an export, such as "savedmodel/3" or "onnx".

    Attributes:
        vectors: the path of the file of test vectors (inputs and the Keras model's answers).
        names: {endpoint: name of its file, without suffix}.
    """

    vectors: Annotated[str, pydantic.Field(pattern=rf"^{VECTORS}/[0-9a-f]{{16}}\.npz$")]
    names: dict[str, _Inside]


class Manifest(_Model):
    """The content of `manifest.json`: a record of all other files in an export folder.

    Attributes:
        format: the version of the manifest's format.
        parts: {name, such as "onnx", which is the path of its folder: part of the export that can be verified}.
        files: {path in the export folder: size and SHA-256 of the file}.
    """

    format: Literal[1]
    parts: dict[Annotated[str, pydantic.Field(pattern=_PART)], Part]
    files: dict[_Inside, FileDigest]

    @property
    def vectors(self) -> set[str]:
        """The paths in the export folder, as a set, of the files of test vectors that this manifest's parts need."""
        return {part.vectors for part in self.parts.values()}

    def record_export(
        self, folder: pathlib.Path, parts: Mapping[str, Part], files: Mapping[str, FileDigest]
    ) -> Manifest:
        """Returns the manifest of an export into `folder` with `parts` and `files`; earlier versions in it stay."""
        versions = {
            name: part
            for name, part in self.parts.items()
            if "/" in name and name not in parts and (folder / name).exists()
        }
        within = (*(f"{name}/" for name in versions), *(part.vectors for part in versions.values()))
        kept = {name: digest for name, digest in self.files.items() if name.startswith(within)}
        return Manifest(format=1, parts={**versions, **parts}, files=dict(sorted({**kept, **files}.items())))

    def find_changed_files(self, folder: pathlib.Path) -> Iterator[tuple[str, str]]:
        """Yields ("changed", "missing", "unknown" or "link", path) for each file in `folder` that differs."""
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

    def find_stray_files(self, folder: pathlib.Path) -> Iterator[str]:
        """Yields paths in this manifest that belong to no part of the export, and paths that only the card names."""
        within = tuple(f"{part}/" for part in self.parts)
        for name in self.files:
            of_a_part = "/" not in name or name.startswith(within) or name in self.vectors
            if not _WRITTEN.fullmatch(name) or not of_a_part:
                yield name
        try:
            formats = read_json(folder / JSON_NAME, MOST_BYTES).get("formats", {})
            named = [name for entry in formats.values() for name in entry["files"]]
            yield from (name for name in named if name not in {*self.parts, *self.files})
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            yield JSON_NAME


def _list_entries(folder: pathlib.Path) -> Iterator[tuple[str, str]]:
    """Yields (path, "file", "link" or "other") of all in `folder`; servers take an empty folder for a version."""
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not path.is_dir() or not any(path.iterdir()):
            file_type = "link" if path.is_symlink() else "file" if path.is_file() else "other"
            yield path.relative_to(folder).as_posix(), file_type


def digest_folder(folder: pathlib.Path, prefix: str = "") -> dict[str, FileDigest]:
    """Returns {`prefix` + path in `folder`: size and SHA-256} of all files in a folder, at any depth."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {prefix + path.relative_to(folder).as_posix(): FileDigest.from_file(path) for path in files}


def find_planted_files(folder: pathlib.Path, part: str) -> list[str]:
    """Returns the paths in `folder`, where an export builds its part `part`, that no export writes; links are some."""
    paths = ((f"{part}/{name}", file_type) for name, file_type in _list_entries(folder))
    return [path for path, file_type in paths if file_type != "file" or not _WRITTEN.fullmatch(path)]


def name_vectors_file(file: pathlib.Path) -> str:
    """Returns the path of test vectors in an export, which has the digest of `file`: equal vectors share one file."""
    return f"{VECTORS}/{hash_file(file)[:16]}.npz"


def load_manifest(folder: pathlib.Path) -> Manifest:
    """Returns the manifest of an export folder; UserError if the folder or a valid `manifest.json` is missing."""
    path = folder / MANIFEST
    if not folder.is_dir():
        raise UserError(f"there is no export folder {folder}")
    try:
        return read_model(path, Manifest, MOST_BYTES)
    except FileNotFoundError as error:
        raise UserError(f"{folder} has no {MANIFEST}, so that nothing can be verified; export its run again") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error}") from error
    except ValueError as error:
        raise UserError(f"{path} is no manifest of an export: {error}; export the run again") from error


def require_free_version(target: pathlib.Path) -> None:
    """Raises UserError if `target`, the folder for a new version of a SavedModel, exists already."""
    if target.exists():
        raise UserError(
            f"version {target.name} exists already in {target.parent}; leave --version out to take the next free number"
        )


class Staging:
    """A context manager that locks an export folder for this process and makes a hidden folder to build files in.

    The hidden folder lies in the export folder, so that files can be renamed into place on the same file system. It
    lies outside of `savedmodel/`, which a server polls for versions. The hidden folder is removed when the context
    ends; the next export removes the hidden folder of a killed process.

    Attributes:
        folder: the absolute path of the export folder, which is made if it does not exist.
        area: the path of the hidden folder.
    """

    def __init__(self, folder: pathlib.Path):
        self.folder = folder.absolute()
        self.area = self.folder / _STAGING
        self._lock = contextlib.ExitStack()
        self._made: list[pathlib.Path] = []

    def __enter__(self) -> Staging:
        """Makes the export folder and the hidden folder; UserError if another export writes there, or nobody may."""
        try:
            self._made = [parent for parent in (self.folder, *self.folder.parents) if not parent.exists()]
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock.enter_context(FileLock(self.folder / _LOCK, timeout=0))
            self._lock.callback((self.folder / _LOCK).unlink, missing_ok=True)
            for remains in self.folder.glob(f"{_STAGING}*"):
                if remains.is_dir():
                    self._restore_folders(remains)
                    shutil.rmtree(remains)
            self.area = pathlib.Path(tempfile.mkdtemp(prefix=_STAGING, dir=self.folder))
        except Timeout as error:
            raise UserError(
                f"another export is writing to {self.folder}; wait for it, or choose another --to"
            ) from error
        except OSError as error:
            self.__exit__()
            raise UserError(f"cannot write to {self.folder}: {error.strerror}; choose another --to") from error
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with ignore_interruptions():
            shutil.rmtree(self.area, ignore_errors=True)
            self._lock.close()
            for folder in self._made:
                with contextlib.suppress(OSError):
                    folder.rmdir()

    def _restore_folders(self, remains: pathlib.Path) -> None:
        """Moves old folders from the hidden folder `remains` back into the export folder, unless new ones are there."""
        for old in remains.glob(f"{_OLD}*"):
            target = self.folder / old.name.removeprefix(_OLD)
            if not target.exists():
                os.rename(old, target)

    def list_versions(self) -> list[int]:
        """Returns the versions of the SavedModel in the export folder, as integers in ascending order."""
        folder = self.folder / "savedmodel"
        names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
        return sorted(int(name) for name in names if name.isascii() and name.isdigit())

    def publish_version(self, built: pathlib.Path, name: str) -> None:
        """Renames the folder `built` to `name`, such as "savedmodel/3"; UserError if the version exists already."""
        target = self.folder / name
        target.parent.mkdir(exist_ok=True)
        require_free_version(target)
        os.rename(built, target)

    def publish_folder(self, built: pathlib.Path, name: str) -> None:
        """Renames the folder `built` to `name` in the export folder; restores the older folder `name` if this fails."""
        target, old = self.folder / name, self.area / f"{_OLD}{name}"
        if target.exists():
            os.rename(target, old)
        try:
            os.rename(built, target)
        except OSError:
            self._restore_folders(self.area)
            raise

    def publish_file(self, built: pathlib.Path, name: str | None = None) -> None:
        """Renames the file `built` to `name` (None: the same name) in the export folder; replaces an older file."""
        target = self.folder / (name or built.name)
        target.parent.mkdir(exist_ok=True)
        os.replace(built, target)


def interrupt_on_sigterm() -> contextlib.AbstractContextManager[None]:
    """Returns a context in which SIGTERM raises KeyboardInterrupt, so that an export cleans up as after Ctrl-C."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    return _handle_signals(interrupt, signal.SIGTERM)


def ignore_interruptions() -> contextlib.AbstractContextManager[None]:
    """Returns a context that ignores SIGINT and SIGTERM, to rename built files into place, which cannot be undone.

    A signal mask would not be enough: it applies to one thread, and TensorFlow's threads would get the signals.
    """
    return _handle_signals(signal.SIG_IGN, signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def _handle_signals(handler: Callable[..., None] | signal.Handlers, *signals: signal.Signals) -> Iterator[None]:
    """A context in which `handler` handles `signals`; has no effect outside the main thread, as Python requires."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in signals}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)
