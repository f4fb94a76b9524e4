"""The folder that an export goes to: built out of sight, then put in place whole."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from types import FrameType

from filelock import FileLock, Timeout

from tfdecouple.errors import UserError

_STAGING = ".export-"
_LOCK = ".export.lock"
# Of a folder in the staging area that made room for its successor.
_OLD = "old-"


class Staging:
    """An export folder that this process alone writes to, while it is entered.

    Everything is made in `area`, a hidden folder of no numeric name in the export folder: on the same file system,
    so that it can be renamed into place, and out of sight of a server that polls `savedmodel/` for versions. Leaving
    removes it, whatever happened; what a killed process left is removed by the next one.

    Args:
        folder: the export folder; made if absent.

    Attributes:
        folder: the same, absolute.
        area: where to build.
    """

    def __init__(self, folder: pathlib.Path):
        self.folder = folder.absolute()
        self.area = self.folder / _STAGING
        self._lock = contextlib.ExitStack()
        self._made: list[pathlib.Path] = []

    def __enter__(self) -> Staging:
        """Makes the folder and its staging area.

        Raises:
            UserError: where another export writes to it, or it cannot be written.
        """
        try:
            self._made = [parent for parent in (self.folder, *self.folder.parents) if not parent.exists()]
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock.enter_context(FileLock(self.folder / _LOCK, timeout=0))
            self._lock.callback((self.folder / _LOCK).unlink, missing_ok=True)
            for remains in self.folder.glob(f"{_STAGING}*"):
                if remains.is_dir():
                    self._bring_back(remains)
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
        """Removes what is not in its place, and folders that were made for nothing."""
        with uninterrupted():
            shutil.rmtree(self.area, ignore_errors=True)
            self._lock.close()
            for folder in self._made:
                with contextlib.suppress(OSError):
                    folder.rmdir()

    def _bring_back(self, remains: pathlib.Path) -> None:
        """Puts back the folders that an export had moved aside when it was killed, just before their new ones came."""
        for old in remains.glob(f"{_OLD}*"):
            target = self.folder / old.name.removeprefix(_OLD)
            if not target.exists():
                os.rename(old, target)

    def versions(self) -> list[int]:
        """Returns the numbers of the SavedModel's versions, ascending."""
        folder = self.folder / "savedmodel"
        names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
        return sorted(int(name) for name in names if name.isascii() and name.isdigit())

    def put_version(self, built: pathlib.Path, version: int) -> None:
        """Renames a SavedModel into place: a server sees the version whole or not at all.

        Raises:
            UserError: where the version exists.
        """
        target = self.folder / "savedmodel" / str(version)
        target.parent.mkdir(exist_ok=True)
        try:
            os.rename(built, target)
        except OSError as error:
            if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
                raise UserError(taken(target)) from error
            raise

    def put_folder(self, built: pathlib.Path, name: str) -> None:
        """Puts a folder in place of an older one of that name, with no moment at which both are lost."""
        target, old = self.folder / name, self.area / f"{_OLD}{name}"
        if target.exists():
            os.rename(target, old)
        try:
            os.rename(built, target)
        except OSError:
            self._bring_back(self.area)
            raise

    def put_file(self, built: pathlib.Path, name: str | None = None) -> None:
        """Puts a file in place of an older one of that name, its own by default."""
        target = self.folder / (name or built.name)
        target.parent.mkdir(exist_ok=True)
        os.replace(built, target)


def taken(target: pathlib.Path) -> str:
    """Says that a version is there already."""
    return f"version {target.name} exists already in {target.parent}; leave --version out to take the next free number"


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Turns SIGTERM into KeyboardInterrupt, so that an export that is stopped cleans up as after Ctrl-C."""

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
    """Ignores SIGINT and SIGTERM while something is put in place: they come too late to undo it.

    Blocking them would not do: a mask holds for one thread, and TensorFlow's threads would take them.
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
