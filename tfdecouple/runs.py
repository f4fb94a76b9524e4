"""A run folder, opened: its config, its model, its weights, its images and how it ended."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from tfdecouple.architecture import count_by_network
from tfdecouple.config import FORMER_PHOTOGRAPHS, Config, DataConfig, override
from tfdecouple.data import Source, open_source
from tfdecouple.data.labels import require_classes
from tfdecouple.data.opening import images_at
from tfdecouple.directions import Directions
from tfdecouple.errors import DataError, RunError, UntrustedError, UserError, one_line
from tfdecouple.model import DecoupledModel
from tfdecouple.parameters import count_parameters, require_memory
from tfdecouple.storage.checkpoints import CheckpointFolder, DamagedCheckpointError
from tfdecouple.storage.files import parse_json, write_json

CONFIG = "config.json"
CHECKPOINTS = "checkpoints"
SUMMARY = "summary.json"
# The names of the labels of a model that knows labels, in their order.
LABELS = "labels.json"


def run_name(run: str | pathlib.Path) -> str:
    """Returns the name of a run folder, however its path was written."""
    return pathlib.Path(run).resolve().name


def load_config(run: str | pathlib.Path) -> Config:
    """Returns the config of a run folder.

    Raises:
        RunError: where the folder is none of ours.
        ConfigError: where its config does not hold.
    """
    folder = pathlib.Path(run)
    if not folder.is_dir():
        raise RunError(f"there is no run folder {run}; python train.py makes one")
    if not (folder / CONFIG).is_file():
        raise RunError(f"{run} is no run folder: it has no {CONFIG}")
    # A run's config names every option there was: one that names no photographs is older than their choice.
    return Config.from_json(folder / CONFIG, absent={"data.photographs": FORMER_PHOTOGRAPHS})


def require_own_images(run: str | pathlib.Path, data: DataConfig) -> str | None:
    """Looks whether the config of a run, which may be a stranger's, leads to images within the run folder.

    Whoever made the run folder made all that lies within it; images are taken from there only where the user says so.

    Args:
        run: a run folder.
        data: of its config.

    Returns:
        The folder of images that it names; None where it names none.

    Raises:
        UntrustedError: where this lies within the run folder.
    """
    found = images_at(data)
    if found is None:
        return None
    option, folder = found
    inside = any(
        os.path.commonpath([path(run), path(folder)]) == path(run) for path in (os.path.abspath, os.path.realpath)
    )
    if inside:
        raise UntrustedError(
            f"{option} in {pathlib.Path(run) / CONFIG} leads into the run folder itself, to {folder}; where you trust "
            "it, name it with --data and --data-dir, or change the config"
        )
    return folder


@dataclasses.dataclass(frozen=True)
class Run:
    """A run folder, opened: its config, and its model with the best weights so far (averaged, where the run averages).

    Attributes:
        path: of the folder, as the user wrote it.
        config: of the run.
        model: with these weights.
        step: in updates, at which they were saved.
    """

    path: str
    config: Config
    model: DecoupledModel
    step: int

    @classmethod
    def open(cls, run: str | pathlib.Path, z_for: str = "", jit_compile: bool = False) -> Self:
        """Opens a run folder, which may be a stranger's (docs/security.md).

        Args:
            run: a run folder, of a training that has ended or still goes on, or of an import.
            z_for: what needs z, such as "switch"; empty where a model without z will do.
            jit_compile: of the `DecoupledModel`.

        Raises:
            RunError: where the folder is none of ours, or holds no whole checkpoint yet.
            ConfigError: where its config does not hold, or asks for more memory than there is.
            UserError: for a model without z, where it is needed.
        """
        config = load_config(run)
        if z_for and not config.model.has_latent:
            raise UserError(
                f"the model of {run} has no z (model.conditioning is 'none'), and {z_for} needs one; "
                "take the run of a model with z"
            )
        model = _empty_model(run, config, jit_compile)
        step = load_weights(run, model, averaged=config.training.ema_decay > 0)
        return cls(str(run), config, model, step)

    @property
    def name(self) -> str:
        """Name of the folder, however its path was written."""
        return run_name(self.path)

    @property
    def averaged(self) -> bool:
        """Whether the weights are averaged ones."""
        return self.config.training.ema_decay > 0

    def directions(self) -> Directions | None:
        """Returns the directions in z that were found for these weights, None where none were found yet.

        Raises:
            RunError: where the file is damaged, or they were found with other weights.
        """
        found = Directions.read(self.path, self.config.model.latent_dim)
        if found is not None:
            found.require_of(weights_sha256(self.model), self.path)
        return found

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the labels that the model knows; () for a model that knows none.

        Raises:
            RunError: where their file is damaged.
        """
        classes = self.config.model.classes
        return read_label_names(self.path, classes) if classes else ()

    def require_labels(self, source: Source) -> None:
        """Refuses a data set whose labels mean something else than those that the model knows.

        Raises:
            DataError: naming a label.
        """
        if not self.config.model.has_classes:
            return
        require_classes(source, self.config.model)
        own = self.label_names
        if (pathlib.Path(self.path) / LABELS).is_file() and source.label_names != own:
            other, here = next(pair for pair in zip(source.label_names, own, strict=True) if pair[0] != pair[1])
            raise DataError(
                f"{source.title} has the label {other!r} where the run {self.path} has {here!r}; it must have the same "
                f"labels: {', '.join(own[:20])}"
            )

    def open_source(
        self, source: str | None = None, data_dir: str | None = None, download: bool = False, **others: Any
    ) -> Source:
        """Opens the data set of the run, or another that the user names.

        Args:
            source: `data.source` as the user named it; None for that of the run.
            data_dir: `data.data_dir` likewise.
            download: see `tfdecouple.data.open_source`.
            **others: options of the config's `data` to be changed; None leaves one as it is.

        Raises:
            DataError: for missing data.
            UntrustedError: where the run's config, not the user, names images within the run folder.
            ConfigError: for an option of a wrong value.
        """
        given = {"source": source, "data_dir": data_dir, **others}
        changes = [f"data.{name}={json.dumps(value)}" for name, value in given.items() if value is not None]
        data = override(self.config, changes).data
        option, _ = images_at(data) or ("", "")
        if (source if option == "data.source" else data_dir) is None:
            require_own_images(self.path, data)
        return open_source(data, self.config.model.image_size, download=download)


def load_model(run: str | pathlib.Path, *, jit_compile: bool = False) -> DecoupledModel:
    """Returns the model of a run with its best weights so far (averaged ones, where the run averages).

    Args:
        run: a run folder, of a training that has ended or still goes on, or of an import.
        jit_compile: whether XLA compiles what the model computes, at its first use for each batch size.

    Raises:
        RunError: where the folder is none of ours, or holds no whole checkpoint yet.
        ConfigError: where its config does not hold.
    """
    return Run.open(run, jit_compile=jit_compile).model


def load_directions(run: str | pathlib.Path) -> Directions:
    """Returns the directions in z that `python -m tfdecouple directions` found for a run, by name.

    Whether they were found with the weights that the run has now is known to `Run.directions`.

    Raises:
        RunError: where the folder is none of ours, or has no directions yet, or damaged ones.
        ConfigError: where its config does not hold.
    """
    found = Directions.read(run, load_config(run).model.latent_dim)
    if found is None:
        raise RunError(no_directions(run))
    return found


def no_directions(run: str | pathlib.Path) -> str:
    """Returns what is said of a run without directions."""
    return f"{run} has no directions yet; find them with python -m tfdecouple directions --run {run}"


def _empty_model(run: str | pathlib.Path, config: Config, jit_compile: bool) -> DecoupledModel:
    """Returns the model that a run's config describes, once its size was found to be that of the run's weights.

    Neither config nor checkpoints need be right: a config can ask for any size in a few characters.

    Raises:
        ConfigError: where this machine has too little memory for the model.
        RunError: where the newest of the whole checkpoints has other numbers of parameters.
    """
    require_memory(config.model)
    folder = CheckpointFolder(pathlib.Path(run) / CHECKPOINTS)
    planned = count_parameters(config.model)
    for kind, step in [(name, number) for name in ("best", "step") for number in folder.steps(name)]:
        try:
            held = count_by_network(folder.weights(kind, step))
        except DamagedCheckpointError:
            continue
        for network, count in planned.items():
            if (found := held.get(network, 0)) != count:
                raise RunError(
                    f"the checkpoint {folder.prefix(kind, step)} does not fit the config beside it: the {network} has "
                    f"{count:,} parameters by the config, and {found:,} in the checkpoint"
                )
        break
    return DecoupledModel(config.model, jit_compile=jit_compile)


def load_weights(run: str | pathlib.Path, model: DecoupledModel, averaged: bool, missing: tuple[str, ...] = ()) -> int:
    """Reads the best weights of a run into a model of the same config.

    Args:
        run: a run folder.
        model: the model to fill.
        averaged: whether the checkpoints of the run hold averaged weights.
        missing: what names of weights begin with that the run does not have; these stay as they are.

    Returns:
        The step, in updates, at which these weights were saved.

    Raises:
        RunError: where there is no whole checkpoint, or it does not fit the model.
    """
    folder = CheckpointFolder(pathlib.Path(run) / CHECKPOINTS)
    variables = {name: variable for name, variable in model.named_variables().items() if not name.startswith(missing)}
    problem = None
    for kind in ("best", "step"):
        for step in folder.steps(kind):
            try:
                folder.read(kind, step, {"model": variables})
                if kind == "step" and averaged:
                    covered = averaged_names(model)
                    folder.read(kind, step, {"averages": {n: v for n, v in variables.items() if n in covered}})
                return step
            except DamagedCheckpointError as error:
                problem = error
    raise problem or RunError(f"{run} holds no checkpoint yet; wait for the first one or train it on")


def averaged_names(model: DecoupledModel) -> set[str]:
    """Returns the names of the weights that averaging covers.

    These are all that training moves: the trainable weights and the moving statistics of batch normalisation. The
    statistics are averaged with the weights they belong to.
    """
    return {name for name, variable in model.named_variables().items() if variable.dtype == "float32"}


def write_label_names(run: str | pathlib.Path, names: Sequence[str]) -> None:
    """Keeps the names of the labels in a run folder.

    Raises:
        OSError: where they cannot be written.
    """
    write_json(pathlib.Path(run) / LABELS, list(names))


def read_label_names(run: str | pathlib.Path, classes: int) -> tuple[str, ...]:
    """Returns the names of the labels that a run was trained on; of an import, their numbers.

    Args:
        run: a run folder.
        classes: how many labels its model knows.

    Raises:
        RunError: where the file is damaged.
    """
    path = pathlib.Path(run) / LABELS
    if not path.is_file():
        return tuple(map(str, range(classes)))
    try:
        names = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"cannot read {path}: {one_line(error)}") from error
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names) and len(names) == classes):
        raise RunError(f"{path} is damaged: it must be a list of {classes} names of labels")
    return tuple(names)


def read_summary(run: str | pathlib.Path) -> dict[str, Any] | None:
    """Returns what a run folder says of how its training, or its import, ended; None where it says nothing yet.

    Raises:
        ValueError: where it is damaged.
    """
    path = pathlib.Path(run) / SUMMARY
    if not path.is_file():
        return None
    summary = parse_json(path.read_text(encoding="utf-8"))
    if not isinstance(summary, dict) or not ("imported_from" in summary or isinstance(summary.get("test"), dict)):
        raise ValueError(f"it has no figures of a test: {json.dumps(summary)[:60]}")
    return summary


def weights_sha256(model: DecoupledModel) -> str:
    """Returns a hash of all weights with their names, shapes and types."""
    digest = hashlib.sha256()
    for name, variable in sorted(model.named_variables().items()):
        array = np.ascontiguousarray(variable.numpy())
        digest.update(f"{name} {array.dtype.name} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
