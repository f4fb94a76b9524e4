"""The directory of a run, as training takes it: checked, locked, restored from and written to."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from tfdecouple.config import Config, difference
from tfdecouple.data.sources import find_kind, images_at, located
from tfdecouple.errors import ConfigError, RunError
from tfdecouple.loggers import LOGGERS
from tfdecouple.runs import (
    CHECKPOINTS,
    CONFIG,
    SUMMARY,
    changed_label,
    fitting_weights,
    is_folder,
    load_config,
    load_weights,
    read_summary,
    write_label_names,
)
from tfdecouple.runs.run_folder import SIZES
from tfdecouple.storage.checkpoints import CheckpointFolder, DamagedCheckpointError
from tfdecouple.storage.files import TEMPORARY, read_json, require_own_files, write_json, write_text
from tfdecouple.training.log import MetricsLog
from tfdecouple.training.state import TrainingState

_LOCK = ".lock"
# What may be another when a run goes on.
_FREE = ("training.steps", "training.loggers")
# What may be another where it changes nothing before the last checkpoint.
_FREE_LATER = ("training.patterns", "training.patterns_after")
# So many weights that start anew are named.
_NAMED = 8


def with_whole_paths(config: Config) -> Config:
    """Returns a config whose folders are named from the root: a run is resumed from anywhere."""
    start = config.training.init_from
    if start and is_folder(start):
        start = os.path.abspath(os.path.expanduser(start))
    training = dataclasses.replace(config.training, init_from=start)
    return dataclasses.replace(config, data=located(config.data), training=training)


class RunDirectory:
    """The directory of a run in the hands of a training; a context that ends its log and lets go of its lock.

    Of several workers the chief alone uses it.

    Args:
        path: the directory; it need not exist yet.
        config: of the run that is to go on, or to begin, there.
        say: prints a line.

    Attributes:
        path: the directory.
        checkpoints: those of the run.
        is_resumed: whether `check` found this very run there.
        loaded: the step, skipped ones included, of the weights that `load_best` has loaded; 0 before.
    """

    def __init__(self, path: pathlib.Path, config: Config, say: Callable[[str], None] = print):
        self.path = path
        self.checkpoints = CheckpointFolder(path / CHECKPOINTS, config.training.keep_checkpoints)
        self.loaded = 0
        self._config = config
        self._say = say
        self._log = MetricsLog(path, [LOGGERS[name](path, config) for name in config.training.loggers], say)
        self._lock_held = contextlib.ExitStack()
        self._is_locked = self.is_resumed = False
        self._moved = ""
        self._begun = 0

    def __enter__(self) -> RunDirectory:
        """Does nothing yet."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the log, and lets other programs have the directory."""
        with self._lock_held:
            self._log.close()

    # --- before the first step: what lies there, and whether this run may go on with it ---

    def check(self) -> None:
        """Looks whether the directory holds this very run already, and then keeps other programs out of it.

        Raises:
            RunError: where it holds something else, or another program trains there.
        """
        self.is_resumed = self._holds_this_run()
        if self.is_resumed or (self.path / _LOCK).exists():
            self._lock()

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
            self._moved = f"images are read from {now}; {was}, where they were, is not there any more"
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
            self._lock_held.enter_context(FileLock(self.path / _LOCK, timeout=0))
        except Timeout as error:
            raise RunError(
                f"another program is training in {self.path}; wait for it or choose another --workdir"
            ) from error
        self._is_locked = True

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

    def restore(self, state: TrainingState, sizes: Mapping[str, int]) -> tuple[list[str], bool]:
        """Restores the newest whole checkpoint, if any; returns lines to say about it, and whether the run is new.

        Args:
            state: what is restored.
            sizes: how many images each split has now.

        Raises:
            RunError: where there are checkpoints, and none can be read.
        """
        self.checkpoints.clean()
        for left in self.path.glob(TEMPORARY):
            left.unlink(missing_ok=True)
        messages = [self._moved] if self._moved else []
        messages += self._changed_sizes(sizes)
        messages += self._restore_newest(state) if self.is_resumed else []
        self._begun = int(state.step.numpy())
        return messages, self._begun == 0 and not self.checkpoints.steps()

    def _changed_sizes(self, sizes: Mapping[str, int]) -> list[str]:
        """Returns a warning where the splits have other numbers of images than when the run last trained."""
        try:
            before = dict(read_json(self.path / SIZES))
        except (OSError, ValueError, TypeError):
            return []
        changed = [f"{split} {n}, {before[split]} before" for split, n in sizes.items() if before.get(split, n) != n]
        listed = "; ".join(changed)
        return [f"warning: the run goes on with another number of images: {listed}"] if changed else []

    def _restore_newest(self, state: TrainingState) -> list[str]:
        messages: list[str] = []
        for step in self.checkpoints.steps():
            try:
                self.checkpoints.read("step", step, state.groups())
            except DamagedCheckpointError as error:
                messages.append(f"passed over: {error}")
                continue
            messages.append(f"goes on from step {int(state.step.numpy())}")
            # What this run has not reached yet, the state knows nothing of: the best weights neither.
            for kind in ("step", "best"):
                for newer in (s for s in self.checkpoints.steps(kind) if s > step):
                    self.checkpoints.remove(kind, newer)
            return messages
        if messages:
            raise RunError(
                f"no checkpoint in {self.checkpoints.path} can be read: {messages[-1]}; "
                "move the folder away to start again"
            )
        return messages

    def finished_summary(self) -> dict[str, Any] | None:
        """Returns the summary of a run that has nothing left to do, and says so; None for any other."""
        step = self._begun
        if step < self._config.training.steps:
            return None
        try:
            summary = read_summary(self.path)
        except ValueError:
            self._say(f"{SUMMARY} is damaged; the best weights are measured on the test images again")
            return None
        if summary is None or summary.get("steps") != step:
            return None
        self._say(f"{self.path} is complete at step {step}; a larger --steps lets it go on")
        return summary

    def start_from(self, state: TrainingState, run: str, label_names: Sequence[str]) -> None:
        """Takes over the best weights of another run or import.

        A model that knows labels may begin with a run that knows none: what is learned of each label starts as it
        does in a run of its own, and where z is a function of the label encoder and prior are left behind. With
        `training.init_partial` any other architecture will do: layers of other shapes keep the weights that they have,
        and a line says which.

        Args:
            state: with the model that takes them over.
            run: the other.
            label_names: of the images; a model that knows labels takes over what is learned of those of the same names.

        Raises:
            ConfigError: where its architecture, or its labels differ otherwise, without `training.init_partial`.
            RunError: where it holds none.
        """
        theirs = load_config(run)
        changed = {k: v for k, v in difference(theirs, self._config).items() if k.startswith("model.")}
        model = self._config.model
        names = set(state.model.named_variables())
        if model.has_classes and not theirs.model.has_classes:
            names -= _of_labels(names)
            for name in ("model.classes", "model.class_probabilities", *(["model.prior"] * model.has_class_codes)):
                changed.pop(name, None)
        partial = self._config.training.init_partial
        if changed and not partial:
            listed = "; ".join(
                f"{name} is {other!r} there and {ours!r} here" for name, (other, ours) in changed.items()
            )
            raise ConfigError(
                f"--init-from {run} has another architecture: {listed}; --init-partial takes the layers that fit"
            )
        if partial:
            names &= fitting_weights(run, state.model)
        same = theirs.model.has_classes and theirs.model.classes == model.classes
        if same and (other := changed_label(run, model.classes, label_names)):
            there, here = other
            if not partial:
                raise ConfigError(
                    f"--init-from {run} has the label {there!r} where the images have {here!r}; they must have the "
                    "same labels, in the same order (--init-partial leaves theirs out)"
                )
            names -= _of_labels(names)
        load_weights(run, state.model, averaged=theirs.training.ema_decay > 0, names=names)
        if partial:
            own = state.model.named_variables()
            anew = [name for name in own if name not in names]
            more = f" and {len(anew) - _NAMED} more" if len(anew) > _NAMED else ""
            self._say(
                f"--init-from {run}: {len(names)} of {len(own)} weights are taken over"
                + (f"; begun anew: {', '.join(anew[:_NAMED])}{more}" if anew else "")
            )

    # --- from the first step on: what the run leaves ---

    def claim(self, sizes: Mapping[str, int], label_names: Sequence[str] = ()) -> int:
        """Makes the folder that of this run and opens its log; returns how many damaged rows it had.

        Args:
            sizes: how many images each split has, which a resumed run compares.
            label_names: of the images, which a run of a model that knows labels keeps.

        Raises:
            RunError: where another program has been quicker.
            OSError: where it cannot be written.
        """
        if not self._is_locked:
            self._lock()
            if (self.path / CONFIG).exists():
                raise RunError(f"another program began a run in {self.path} meanwhile; choose another --workdir")
        write_text(self.path / CONFIG, self._config.to_json())
        write_json(self.path / SIZES, dict(sizes))
        if self._config.model.has_classes:
            write_label_names(self.path, label_names)
        return self._log.open(self._begun, is_last=self._begun >= self._config.training.steps)

    def validated(self, step: int) -> float | None:
        """Returns the bits/dim of the validation images at a step, as the log has them; None where it has none."""
        return self._log.validated(step)

    def log(self, kind: str, step: int, figures: Mapping[str, Any], pictures: Mapping[str, pathlib.Path] = {}) -> None:
        """Adds a row to the log, and pictures by name.

        Raises:
            OSError: where the disk is full.
        """
        self._log.write(kind, step, figures)
        for name, path in pictures.items():
            self._log.write_picture(name, step, path)

    def save(self, state: TrainingState, step: int, again: bool = True) -> None:
        """Saves the state; with `again=False` not over what is saved already.

        Whoever sends SIGTERM may send SIGKILL in the middle of it.

        Raises:
            OSError: where the disk is full, or the folder is not there any more.
        """
        if not (self.path / CONFIG).is_file():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.path))
        if again or step not in self.checkpoints.steps():
            self._log.flush()
            self.checkpoints.write("step", step, state.groups())

    def keep_best(self, state: TrainingState, step: int) -> None:
        """Saves the model's weights as the best ones."""
        self.checkpoints.write("best", step, state.model_group())

    def load_best(self, state: TrainingState) -> None:
        """Loads the best weights into the model; of the newest checkpoint, where they cannot be read."""
        self.loaded = load_weights(self.path, state.model, averaged=self._config.training.ema_decay > 0)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Writes how the run ended: its row of the test, where there was one, and the summary."""
        if summary["test"] is not None:
            self._log.write("test", summary["steps"], summary["test"])
        write_json(self.path / SUMMARY, summary)


def _of_labels(names: set[str]) -> set[str]:
    """Returns those of some names of weights that are learned of labels."""
    return {name for name in names if name.startswith(("prior_affine/", "class_codes/"))}
