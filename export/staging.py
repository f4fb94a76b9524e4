"""The export folder as a transaction: files are built in a hidden folder and renamed into place whole."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from types import FrameType

from filelock import FileLock, Timeout

from export.export_config import require_free_version
from tfdecouple.errors import UserError

_STAGING = ".export-"
_LOCK = ".export.lock"
# Prefix of the name of a replaced folder, which waits in the staging area until its successor is in place.
_OLD = "old-"


class Staging:
    """A context manager that locks an export folder for this process and has a hidden folder to build files in.

    The hidden folder lies in the export folder, so that files can be renamed into place on the same file system, and
    a server that polls `savedmodel/` for versions does not see it. It is removed when the context ends; the next export
    removes the hidden folder of a killed process.

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
        """Makes and locks the export folder, and makes the hidden folder.

        Raises:
            UserError: if another export writes to the folder, or the folder is not writable.
        """
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
        """Removes the hidden folder and the lock, and the folders that `__enter__` made if they are empty."""
        with uninterrupted():
            shutil.rmtree(self.area, ignore_errors=True)
            self._lock.close()
            for folder in self._made:
                with contextlib.suppress(OSError):
                    folder.rmdir()

    def _restore_folders(self, remains: pathlib.Path) -> None:
        """Renames folders back that an export renamed to make room, if it was killed before it replaced them."""
        for old in remains.glob(f"{_OLD}*"):
            target = self.folder / old.name.removeprefix(_OLD)
            if not target.exists():
                os.rename(old, target)

    def versions(self) -> list[int]:
        """Returns the numbers of the SavedModel's versions in the export folder, in ascending order."""
        folder = self.folder / "savedmodel"
        names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
        return sorted(int(name) for name in names if name.isascii() and name.isdigit())

    def put_version(self, built: pathlib.Path, version: int) -> None:
        """Renames a built SavedModel into place as a version, which a server sees whole or not at all.

        Raises:
            UserError: if the version exists already.
        """
        target = self.folder / "savedmodel" / str(version)
        target.parent.mkdir(exist_ok=True)
        require_free_version(target)
        os.rename(built, target)

    def put_folder(self, built: pathlib.Path, name: str) -> None:
        """Renames a built folder into place; an older folder of that name is restored if this fails."""
        target, old = self.folder / name, self.area / f"{_OLD}{name}"
        if target.exists():
            os.rename(target, old)
        try:
            os.rename(built, target)
        except OSError:
            self._restore_folders(self.area)
            raise

    def put_file(self, built: pathlib.Path, name: str | None = None) -> None:
        """Renames a built file into place under `name`, by default its own name, and replaces an older file."""
        target = self.folder / (name or built.name)
        target.parent.mkdir(exist_ok=True)
        os.replace(built, target)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Turns SIGTERM into KeyboardInterrupt within the context, so that a stopped export cleans up as after Ctrl-C."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Ignores SIGINT and SIGTERM within the context, in which files are put in place, which cannot be undone.

    A signal mask would not be enough: it applies to one thread, and TensorFlow's threads would get the signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
