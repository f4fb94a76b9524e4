"""The export folder: files are built out of sight and put in place whole."""

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
# The name of a folder that made room for its successor begins with this, in the staging area.
_OLD = "old-"


class Staging:
    """An export folder that this process alone writes to, while it is entered.

    Files are built in `area`, a hidden folder in the export folder: on the same file system, so that it can be renamed
    into place, and out of sight of a server that polls `savedmodel/` for versions. Leaving removes it, whatever
    happened; the area of a killed process is removed by the next export.

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
            UserError: if another export writes to the folder, or it cannot be written.
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
        """Removes the staging area, and folders that were made and stay empty."""
        with uninterrupted():
            shutil.rmtree(self.area, ignore_errors=True)
            self._lock.close()
            for folder in self._made:
                with contextlib.suppress(OSError):
                    folder.rmdir()

    def _restore_folders(self, remains: pathlib.Path) -> None:
        """Puts back folders that a killed export had renamed and not replaced yet."""
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
            UserError: if the version exists.
        """
        target = self.folder / "savedmodel" / str(version)
        target.parent.mkdir(exist_ok=True)
        require_free_version(target)
        os.rename(built, target)

    def put_folder(self, built: pathlib.Path, name: str) -> None:
        """Puts a folder in place of an older one of that name, with no moment at which both are lost."""
        target, old = self.folder / name, self.area / f"{_OLD}{name}"
        if target.exists():
            os.rename(target, old)
        try:
            os.rename(built, target)
        except OSError:
            self._restore_folders(self.area)
            raise

    def put_file(self, built: pathlib.Path, name: str | None = None) -> None:
        """Puts a file in place of an older one of the name, which is its own by default."""
        target = self.folder / (name or built.name)
        target.parent.mkdir(exist_ok=True)
        os.replace(built, target)


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
    """Ignores SIGINT and SIGTERM while files are put in place, when it is too late to undo the export.

    They are not blocked, because a mask holds for one thread, and TensorFlow's threads would take them.
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
