"""What a run reads from its folder and writes to it: states, best weights, log and summary."""

from __future__ import annotations

import errno
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tfdecouple.config import Config, difference
from tfdecouple.errors import ConfigError, RunError
from tfdecouple.loggers import LOGGERS
from tfdecouple.run_folder import SIZES
from tfdecouple.runs import (
    CHECKPOINTS,
    CONFIG,
    SUMMARY,
    changed_label,
    fitting_weights,
    load_config,
    load_weights,
    read_summary,
    write_label_names,
)
from tfdecouple.storage.checkpoints import CheckpointFolder, DamagedCheckpointError
from tfdecouple.storage.files import TEMPORARY, parse_json, write_json
from tfdecouple.training.folder import RunFolder
from tfdecouple.training.log import MetricsLog
from tfdecouple.training.state import TrainingState

# So many weights that start anew are named.
_NAMED = 8


class RunRecord:
    """The run folder in the hands of a training. Of several workers the chief alone uses it.

    Args:
        config: the run.
        folder: checked.
        state: what is saved and restored.
        say: prints a line.

    Attributes:
        path: of the run folder.
        checkpoints: those of the run.
        loaded: the step, skipped ones included, of the weights that `load_best` has loaded; 0 before.
    """

    def __init__(self, config: Config, folder: RunFolder, state: TrainingState, say: Callable[[str], None] = print):
        self.path = folder.path
        self.checkpoints = CheckpointFolder(folder.path / CHECKPOINTS, config.training.keep_checkpoints)
        self._config = config
        self._folder = folder
        self._state = state
        loggers = [LOGGERS[name](folder.path, config) for name in config.training.loggers]
        self._log = MetricsLog(folder.path, loggers, say)
        self._say = say
        self._begun = self.loaded = 0

    def restore(self, sizes: Mapping[str, int]) -> tuple[list[str], bool]:
        """Restores the newest whole checkpoint, if any; returns lines to say about it, and whether the run is new.

        Args:
            sizes: how many images each split has now.

        Raises:
            RunError: where there are checkpoints, and none can be read.
        """
        self.checkpoints.clean()
        for left in self.path.glob(TEMPORARY):
            left.unlink(missing_ok=True)
        messages = [self._folder.moved] if self._folder.moved else []
        messages += self._changed_sizes(sizes)
        messages += self._restore_newest() if self._folder.is_resumed else []
        self._begun = int(self._state.step.numpy())
        return messages, self._begun == 0 and not self.checkpoints.steps()

    def _changed_sizes(self, sizes: Mapping[str, int]) -> list[str]:
        """Returns a warning where the splits have other numbers of images than when the run last trained."""
        try:
            before = dict(parse_json((self.path / SIZES).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return []
        changed = [f"{split} {n}, {before[split]} before" for split, n in sizes.items() if before.get(split, n) != n]
        listed = "; ".join(changed)
        return [f"warning: the run goes on with another number of images: {listed}"] if changed else []

    def _restore_newest(self) -> list[str]:
        messages: list[str] = []
        for step in self.checkpoints.steps():
            try:
                self.checkpoints.read("step", step, self._state.groups())
            except DamagedCheckpointError as error:
                messages.append(f"passed over: {error}")
                continue
            messages.append(f"goes on from step {int(self._state.step.numpy())}")
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

    def start_from(self, run: str, label_names: Sequence[str]) -> None:
        """Takes over the best weights of another run or import.

        A model that knows labels may begin with a run that knows none: what is learned of each label starts as it
        does in a run of its own, and where z is a function of the label encoder and prior are left behind. With
        `training.init_partial` any other architecture will do: layers of other shapes keep the weights that they have,
        and a line says which.

        Args:
            run: the other.
            label_names: of the images; a model that knows labels takes over what is learned of those of the same names.

        Raises:
            ConfigError: where its architecture, or its labels differ otherwise, without `training.init_partial`.
            RunError: where it holds none.
        """
        theirs = load_config(run)
        changed = {k: v for k, v in difference(theirs, self._config).items() if k.startswith("model.")}
        model = self._config.model
        names = set(self._state.model.named_variables())
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
            names &= fitting_weights(run, self._state.model)
        same = theirs.model.has_classes and theirs.model.classes == model.classes
        if same and (other := changed_label(run, model.classes, label_names)):
            there, here = other
            if not partial:
                raise ConfigError(
                    f"--init-from {run} has the label {there!r} where the images have {here!r}; they must have the "
                    "same labels, in the same order (--init-partial leaves theirs out)"
                )
            names -= _of_labels(names)
        load_weights(run, self._state.model, averaged=theirs.training.ema_decay > 0, names=names)
        if partial:
            own = self._state.model.named_variables()
            anew = [name for name in own if name not in names]
            more = f" and {len(anew) - _NAMED} more" if len(anew) > _NAMED else ""
            self._say(
                f"--init-from {run}: {len(names)} of {len(own)} weights are taken over"
                + (f"; begun anew: {', '.join(anew[:_NAMED])}{more}" if anew else "")
            )

    def claim(self, sizes: Mapping[str, int], label_names: Sequence[str] = ()) -> int:
        """Makes the folder that of this run and opens its log; returns how many damaged rows it had.

        Args:
            sizes: how many images each split has, which a resumed run compares.
            label_names: of the images, which a run of a model that knows labels keeps.
        """
        self._folder.claim()
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

    def save(self, step: int, again: bool = True) -> None:
        """Saves the state; with `again=False` not over what is saved already.

        Whoever sends SIGTERM may send SIGKILL in the middle of it.

        Raises:
            OSError: where the disk is full, or the folder is not there any more.
        """
        if not (self.path / CONFIG).is_file():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.path))
        if again or step not in self.checkpoints.steps():
            self._log.flush()
            self.checkpoints.write("step", step, self._state.groups())

    def keep_best(self, step: int) -> None:
        """Saves the model's weights as the best ones."""
        self.checkpoints.write("best", step, self._state.model_group())

    def load_best(self) -> None:
        """Loads the best weights into the model; of the newest checkpoint, where they cannot be read."""
        self.loaded = load_weights(self.path, self._state.model, averaged=self._config.training.ema_decay > 0)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Writes how the run ended: its row of the test, where there was one, and the summary."""
        if summary["test"] is not None:
            self._log.write("test", summary["steps"], summary["test"])
        write_json(self.path / SUMMARY, summary)

    def close(self) -> None:
        """Ends the log."""
        self._log.close()


def _of_labels(names: set[str]) -> set[str]:
    """Returns those of some names of weights that are learned of labels."""
    return {name for name in names if name.startswith(("prior_affine/", "class_codes/"))}
