"""The folder of a run, as training takes it: checked, locked, and written to once the run has taken a step."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Sequence
from types import TracebackType

from filelock import FileLock, Timeout

from tfdecouple.config import Config, difference
from tfdecouple.data.opening import find_kind, images_at, located
from tfdecouple.errors import RunError
from tfdecouple.runs import CHECKPOINTS, CONFIG, changed_label, is_folder, load_config
from tfdecouple.storage.checkpoints import CheckpointFolder
from tfdecouple.storage.files import TEMPORARY, require_own_files, write_text

_LOCK = ".lock"
# What may be another when a run goes on.
_FREE = ("training.steps", "training.loggers")
# What may be another where it changes nothing before the last checkpoint.
_FREE_LATER = ("training.patterns", "training.patterns_after")


def with_whole_paths(config: Config) -> Config:
    """Returns a config whose folders are named from the root: a run is resumed from anywhere."""
    start = config.training.init_from
    if start and is_folder(start):
        start = os.path.abspath(os.path.expanduser(start))
    training = dataclasses.replace(config.training, init_from=start)
    return dataclasses.replace(config, data=located(config.data), training=training)


class RunFolder:
    """The folder of a run; a context that lets go of its lock.

    Args:
        path: the folder; it need not exist yet.
        config: of the run that is to go on, or to begin, there.

    Attributes:
        path: the folder.
        is_resumed: whether `check` found this very run there.
        moved: what to say where its images lie elsewhere now; "" where they do not.
    """

    def __init__(self, path: pathlib.Path, config: Config):
        self.path = path
        self.is_resumed = False
        self.moved = ""
        self._config = config
        self._stack = contextlib.ExitStack()
        self._is_locked = False

    def __enter__(self) -> RunFolder:
        """Does nothing yet."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Lets other programs have the folder."""
        self._stack.close()

    def check(self) -> None:
        """Looks whether the folder holds this very run already, and then keeps other programs out of it.

        Raises:
            RunError: where it holds something else, or another program trains there.
        """
        self.is_resumed = self._holds_this_run()
        if self.is_resumed or (self.path / _LOCK).exists():
            self._lock()

    def require_label_names(self, names: Sequence[str]) -> None:
        """Refuses to go on with labels of other names than the run began with.

        Raises:
            RunError: naming one.
        """
        classes = self._config.model.classes
        if self.is_resumed and classes and (changed := changed_label(self.path, classes, names)):
            was, now = changed
            raise RunError(
                f"the images have other labels than {self.path} began with: {was!r} is now {now!r}; give the folders "
                "their names back, or choose another --workdir"
            )

    def claim(self) -> None:
        """Makes the folder that of this run: with a lock and the config.

        Raises:
            RunError: where another program has been quicker.
            OSError: where it cannot be written.
        """
        if not self._is_locked:
            self._lock()
            if (self.path / CONFIG).exists():
                raise RunError(f"another program began a run in {self.path} meanwhile; choose another --workdir")
        write_text(self.path / CONFIG, self._config.to_json())

    def _holds_this_run(self) -> bool:
        path = self.path
        if not path.exists() or (path.is_dir() and not any(path.iterdir())):
            return False
        if path.is_dir():
            require_own_files(path)
        if not (path / CONFIG).is_file():
            # A program that was ended as it began leaves no more than its lock and a config half written.
            if path.is_dir() and all(entry.name == _LOCK or entry.match(TEMPORARY) for entry in path.iterdir()):
                return False
            raise RunError(f"{path} exists and is no run folder (it has no {CONFIG}); choose another --workdir")
        theirs = with_whole_paths(load_config(path))
        changed = difference(theirs, self._config)
        # What is for people may be said otherwise by now, and which photographs there are is nothing to other images.
        free = [*_FREE, "description", "notes"]
        if theirs.data.source != "photographs":
            free.append("data.photographs")
        newest = max(CheckpointFolder(path / CHECKPOINTS).steps(), default=0)
        if all(c.training.patterns_after >= newest for c in (theirs, self._config) if c.training.patterns):
            free += _FREE_LATER
        for name in free:
            changed.pop(name, None)
        option, was = images_at(theirs.data) or ("", "")
        _, now = images_at(self._config.data) or ("", "")
        is_same_kind = find_kind(theirs.data.source) is find_kind(self._config.data.source)
        if option in changed and now and is_same_kind and not os.path.exists(was):
            del changed[option]
            self.moved = f"images are read from {now}; {was}, where they were, is not there any more"
        if changed:
            listed = "; ".join(f"{name} was {ours!r} and is now {theirs!r}" for name, (ours, theirs) in changed.items())
            later = f", and training.patterns that had not begun: with training.patterns_after={newest} or more"
            raise RunError(
                f"{path} holds a run with another config: {listed}. "
                "Choose another --workdir, or give the options it was started with "
                f"(only {' and '.join(_FREE)} may change{later if changed.keys() & {*_FREE_LATER} else ''})"
            )
        return True

    def _lock(self) -> None:
        """Keeps a second program from training in the same folder at the same time."""
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            self._stack.enter_context(FileLock(self.path / _LOCK, timeout=0))
        except Timeout as error:
            raise RunError(
                f"another program is training in {self.path}; wait for it or choose another --workdir"
            ) from error
        self._is_locked = True
