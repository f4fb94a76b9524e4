"""The run folder of a training: checks before the training, the lock, resumption, and the log."""

import dataclasses
import errno
import os
import pathlib
from collections.abc import Callable, Sequence

from filelock import FileLock, Timeout

from tfdecouple.config import Config, compare_configs, preset_config, preset_names
from tfdecouple.data.sources import find_source_kind, resolve_image_paths
from tfdecouple.errors import ConfigError, RunError
from tfdecouple.loggers import MetricsLog
from tfdecouple.registry import LOGGERS
from tfdecouple.runs.run_folder import CONFIG, LOCK, SUMMARY, RunFolder
from tfdecouple.storage.checkpoints import DamagedCheckpointError
from tfdecouple.storage.files import TEMPORARY, Facts
from tfdecouple.system.requirements import require_packages
from tfdecouple.training.step import TrainingState
from tfdecouple.training.workers import Workers, on_chief

# Only these options may have another value when a run is resumed.
_CHANGEABLE = ("training.steps", "training.loggers")


def make_paths_absolute(config: Config) -> Config:
    """Returns `config` with absolute paths of images and `training.init_from`, which hold in any working directory."""
    training, start = config.training, config.training.init_from
    if start and RunFolder(start).is_folder:
        training = dataclasses.replace(training, init_from=os.path.abspath(os.path.expanduser(start)))
    return dataclasses.replace(config, data=resolve_image_paths(config.data), training=training)


class TrainingFolder(RunFolder):
    """The run folder of a training, which need not exist yet.

    In a distributed run all workers (`workers`) call the same methods `on_chief`: only the chief (rank 0) reads and
    writes, and all get its result. The methods of `RunFolder` are for the chief.

    Attributes:
        config: the config of the run.
        log: the log of the run; `write_run_files` opens it.
        is_resumed: whether `require_same_run` has found a part of this run, with the same config, in the folder.
        loaded_step: the training step of the weights that `load_best_weights` has loaded; 0 before the call.
    """

    def __init__(
        self,
        path: pathlib.Path,
        config: Config,
        report: Callable[[str], None] = print,
        workers: Workers | None = None,
    ):
        super().__init__(path, is_written=True, keep=config.training.keep_checkpoints)
        self.config, self._report, self._lock = config, report, FileLock(path / LOCK, timeout=0)
        self.workers = workers or Workers()
        self.log = MetricsLog(path, [LOGGERS[name](path, config) for name in config.training.loggers], report)
        self.is_resumed, self.loaded_step, self._begun = False, 0, 0

    def close(self) -> None:
        """Closes the log of this run and releases the lock of its folder."""
        try:
            self.log.close()
        finally:
            self._lock.release()

    @on_chief
    def require_same_run(self) -> None:
        """Locks an existing run folder; raises RunError if another process uses it or it holds another config's run.

        MissingPackageError is raised, before anything is written, if a logger's package is missing.
        """
        for name in self.config.training.loggers:
            if package := LOGGERS[name].package:
                require_packages(package, what=f"training.loggers={name}")
        self.is_resumed = self._holds_this_run()
        if self.is_resumed or (self.path / LOCK).exists():
            self._acquire_lock()

    def _holds_this_run(self) -> bool:
        path = self.path
        if not path.exists() or (path.is_dir() and not any(path.iterdir())):
            return False
        if path.is_dir():
            self.require_own_files()
        if not (path / CONFIG).is_file():
            # A training that ended before its first step left only lock and temporary files; the folder counts as new.
            if path.is_dir() and all(entry.name == LOCK or entry.match(TEMPORARY) for entry in path.iterdir()):
                return False
            raise RunError(f"{path} exists and is no run folder (it has no {CONFIG}); choose another --workdir")
        before = make_paths_absolute(self.read_config())
        changed = compare_configs(before, self.config)
        # `description` and `notes` have no effect, nor has the list of photographs if the run uses other images.
        free = [*_CHANGEABLE, "description", "notes"]
        if before.data.source != "photographs":
            free.append("data.photographs")
        for name in free:
            changed.pop(name, None)
        kinds = [find_source_kind(data) for data in (before.data, self.config.data)]
        (option, was), (_, now) = (kind.locate_images() or ("", "") for kind in kinds)
        if option in changed and now and type(kinds[0]) is type(kinds[1]) and not os.path.exists(was):
            del changed[option]
            self._report(f"images are read from {now}; {was}, where they were, is not there any more")
        if changed:
            listed = "; ".join(f"{name} was {old!r} and is now {new!r}" for name, (old, new) in changed.items())
            raise RunError(
                f"{path} holds a run with another config: {listed}. "
                "Choose another --workdir, or give the options it was started with "
                f"(only {' and '.join(_CHANGEABLE)} may change)"
            )
        return True

    def _acquire_lock(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire()
        except Timeout as error:
            text = f"another program is training in {self.path}; wait for it or choose another --workdir"
            raise RunError(text) from error

    @on_chief
    def require_label_names(self, names: Sequence[str]) -> None:
        """Raises RunError if `names`, the label names of the images, differ from the names in the run folder."""
        classes = self.config.model.classes
        if self.is_resumed and classes and (changed := self.find_changed_label(classes, names)):
            was, now = changed
            raise RunError(
                f"the images have other labels than {self.path} began with: {was!r} is now {now!r}; restore the "
                "folders' names, or choose another --workdir"
            )

    @on_chief
    def restore_newest_state(self, state: TrainingState) -> bool:
        """Loads the newest readable checkpoint; returns whether there was one; RunError if none can be read."""
        for left in (*self.path.glob(TEMPORARY), *self.checkpoints.path.glob(TEMPORARY)):
            left.unlink(missing_ok=True)
        problem = None
        for step in self.checkpoints.list_checkpoint_steps() if self.is_resumed else ():
            try:
                self.checkpoints.read_checkpoint("step", step, state.group_checkpoint_variables())
            except DamagedCheckpointError as error:
                problem = f"not used: {error}"
                self._report(problem)
                continue
            # The run will repeat the steps after `step`, so their checkpoints and best weights are removed.
            for kind in ("step", "best"):
                for newer in (s for s in self.checkpoints.list_checkpoint_steps(kind) if s > step):
                    self.checkpoints.checkpoint_path(kind, newer).unlink(missing_ok=True)
            self._begun = int(state.step.numpy())
            return True
        if problem:
            raise RunError(
                f"no checkpoint in {self.checkpoints.path} can be read: {problem}; move the folder away to start again"
            )
        return False

    @on_chief
    def read_finished_summary(self) -> Facts | None:
        """If the run has taken all steps, prints a message and returns the content of summary.json; otherwise None."""
        step = self._begun
        if step < self.config.training.steps:
            return None
        try:
            summary = self.read_summary()
        except ValueError:
            self._report(f"{SUMMARY} is damaged; the best weights are measured on the test images again")
            return None
        if summary is None or summary.get("steps") != step:
            return None
        self._report(f"{self.path} is complete at step {step}; a larger --steps continues it")
        return summary

    @on_chief
    def load_initial_weights(self, state: TrainingState, run: str, label_names: Sequence[str]) -> None:
        """Loads the best weights of another run into the model; `run` is a folder or the name of bundled weights.

        A model with labels may start from a run without labels. The weights that depend on labels then keep their
        initial values. If z is a function of the label, encoder and prior of the other run are not loaded. ConfigError
        is raised where architecture or labels differ in any other way, RunError where the other run has no weights.
        """
        folder, model = RunFolder(run), self.config.model
        other = folder.read_config()
        changed = {k: v for k, v in compare_configs(other, self.config).items() if k.startswith("model.")}
        names = set(state.model.named_variables())
        if model.has_labels and not other.model.has_labels:
            names = {name for name in names if not name.startswith(("prior_affine/", "class_codes/"))}
            for name in ("model.classes", "model.class_probabilities", *(["model.prior"] * model.has_label_codes)):
                changed.pop(name, None)
        if changed:
            listed = "; ".join(f"{name} is {its!r} there and {ours!r} here" for name, (its, ours) in changed.items())
            presets = [name for name in preset_names() if preset_config(name).model == other.model]
            remedy = f"--preset {presets[0]}" if presets else f"--config {folder.path / CONFIG}"
            raise ConfigError(f"--init-from {run} has another architecture, that of {remedy}: {listed}")
        if other.model.has_labels and (label := folder.find_changed_label(model.classes, label_names)):
            raise ConfigError(
                f"--init-from {run} has the label {label[0]!r} where the images have {label[1]!r}; they must have the "
                "same labels, in the same order"
            )
        folder.load_weights(state.model, averaged=other.training.ema_decay > 0, names=names)

    @on_chief
    def write_run_files(self, label_names: Sequence[str] = ()) -> int:
        """Writes config and labels, opens the log, and returns the count of damaged log lines it removed.

        RunError is raised if another program has begun a run in the folder.
        """
        if not self._lock.is_locked:
            self._acquire_lock()
            if (self.path / CONFIG).exists():
                raise RunError(f"another program began a run in {self.path} meanwhile; choose another --workdir")
        self.write_config(self.config, label_names)
        return self.log.open(self._begun, is_last=self._begun >= self.config.training.steps)

    @on_chief
    def write_training_row(self, step: int, row: Facts) -> None:
        """Adds the metrics of the steps before `step` to the log, as {name: value}."""
        self.log.write("train", step, row)

    @on_chief
    def read_validation_bits(self, step: int) -> float | None:
        """Returns the bits/dim of the validation images at `step` in the log; None if the log has none."""
        return self.log.validation_bits_per_dim(step)

    @on_chief
    def save_training_state(self, state: TrainingState, step: int, overwrite: bool = True) -> None:
        """Writes `state` as the checkpoint of `step`; with `overwrite=False`, an existing checkpoint of `step` stays.

        After SIGTERM use `overwrite=False`: a SIGKILL may follow and interrupt the replacement of a good checkpoint.
        FileNotFoundError is raised if somebody has removed config.json or the run folder.
        """
        if not (self.path / CONFIG).is_file():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.path))
        if overwrite or step not in self.checkpoints.list_checkpoint_steps():
            self.log.flush()
            self.checkpoints.write_checkpoint("step", step, state.group_checkpoint_variables())

    @on_chief
    def load_best_weights(self, state: TrainingState) -> None:
        """Loads the run's best weights into the model, or its newest readable weights if the best are damaged."""
        self.loaded_step = self.load_weights(state.model, averaged=self.config.training.ema_decay > 0)

    def write_summary(self, summary: Facts) -> None:
        """Writes `summary` to summary.json; if it has test metrics, also adds them as a row to the log."""
        if summary["test"] is not None:
            self.log.write("test", summary["steps"], summary["test"])
        super().write_summary(summary)
