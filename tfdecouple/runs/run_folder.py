"""The files of a run folder, and functions that find a run folder and read its files.

    config.json      the config of the run
    checkpoints/     best-NNNNNNNNN, the best weights, and step-NNNNNNNNN, the whole state of the training
    metrics.jsonl    the log: one row of metrics in each line
    summary.json     the test metrics of a finished training, or the origin of imported weights
    images/          pictures of each evaluation
    labels.json      names of the labels of a model with labels, in their order
    directions.json  directions in z, if they were computed
    .lock            locked by the program that trains

Loggers add files, such as tensorboard/. A folder of published weights is a run folder, too (see `pretrained`).
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pydantic

from tfdecouple.config import Config, DataConfig
from tfdecouple.errors import RunError, nearest, one_line
from tfdecouple.runs.pretrained import HUB, find_pretrained, list_pretrained
from tfdecouple.storage.checkpoints import CheckpointFolder, DamagedCheckpointError
from tfdecouple.storage.files import read_json, read_model, require_own_files

CONFIG = "config.json"
CHECKPOINTS = "checkpoints"
SUMMARY = "summary.json"
LABELS = "labels.json"
# The log, and its bytes up to which it is drawn and published.
METRICS, METRICS_BYTES = "metrics.jsonl", 2**27
LOCK = ".lock"


def is_run_folder(run: str | pathlib.Path) -> bool:
    """Returns whether `run` is to be read as a path of a folder, not as a name or address of pretrained weights."""
    text = str(run)
    return not text.startswith(HUB) and ((pathlib.Path(run) / CONFIG).is_file() or text not in list_pretrained())


def find_run_folder(run: str | pathlib.Path) -> pathlib.Path:
    """Returns the folder of a run; raises UserError if weights from the Hub are needed and cannot be downloaded.

    A run is named by its folder; by the name of bundled weights, such as "photographs", unless a run folder in the
    working directory has the same name; or by an address `hf://OWNER/NAME[@REVISION]`.
    """
    return pathlib.Path(run) if is_run_folder(run) else find_pretrained(str(run)) or pathlib.Path(run)


def run_name(run: str | pathlib.Path) -> str:
    """Returns the name of a run: the last part of its path, or the name of its repository on the Hub.

    >>> run_name("runs/faces/"), run_name("hf://ada/faces@v1"), run_name("hf://ada/faces@refs/pr/1")
    ('faces', 'faces', 'faces')
    """
    text = str(run)
    if not text.startswith(HUB):
        return pathlib.Path(run).resolve().name
    return text.partition("@")[0].rpartition("/")[2]


def load_config(run: str | pathlib.Path) -> Config:
    """Returns the config of a run (folder, name or address), after checking that no link leads out of its folder.

    Raises:
        RunError: where the folder is missing or is no run folder.
        UntrustedError: where the folder holds links that lead out of it, or anything but files and folders.
        ConfigError: where the config is invalid.
    """
    folder = find_run_folder(run)
    if not folder.is_dir():
        bundled = list_pretrained()
        raise RunError(
            f"there is no run folder {run}{nearest(str(run), bundled)}; python train.py makes one, and "
            f"{', '.join(bundled)} comes with the installation"
        )
    if not (folder / CONFIG).is_file():
        raise RunError(f"{run} is no run folder: it has no {CONFIG}")
    if is_run_folder(run):
        # Weights from the Hub are not checked for links, because the cache of the Hub's client consists of links.
        require_own_files(folder)
    return Config.from_json(folder / CONFIG)


def _list_checkpoints(run: str | pathlib.Path) -> Iterator[tuple[CheckpointFolder, str, int]]:
    """Yields (folder, kind, step) of each checkpoint of a run: the kind "best", then "step", each the newest first."""
    folder = CheckpointFolder(find_run_folder(run) / CHECKPOINTS)
    for kind in ("best", "step"):
        for step in folder.list_checkpoint_steps(kind):
            yield folder, kind, step


def require_fitting_weights(run: str | pathlib.Path, planned: Mapping[str, tuple[int, ...]]) -> None:
    """Raises RunError unless the run's best readable checkpoint has weights with the names and shapes in `planned`."""
    for folder, kind, step in _list_checkpoints(run):
        try:
            stored = folder.read_weight_shapes(kind, step)
        except DamagedCheckpointError:
            continue
        for name in {**planned, **stored}:
            shapes = planned.get(name), stored.get(name)
            if shapes[0] != shapes[1]:
                expected, held = ("missing" if shape is None else f"of shape {shape}" for shape in shapes)
                raise RunError(
                    f"the checkpoint {folder.checkpoint_path(kind, step)} does not fit the config beside it: the "
                    f"weight {name} is {expected} by the config, and {held} in the checkpoint"
                )
        return


def load_weights(run: str | pathlib.Path, model: Any, averaged: bool, names: Collection[str] | None = None) -> int:
    """Loads the best weights of a run into a model of the run's config, and returns the step of these weights.

    If the best weights are damaged, weights in the newest readable checkpoint of the training state are loaded instead:
    the averaged ones if `averaged` is true, else the current ones. With `names` only the weights with these names are
    loaded. RunError is raised if no checkpoint can be read, or if weights are not finite.
    """
    variables = {n: variable for n, variable in model.named_variables().items() if names is None or n in names}
    problem = None
    for folder, kind, step in _list_checkpoints(run):
        try:
            folder.read_checkpoint(kind, step, {"model": variables})
            if kind == "step" and averaged:
                covered = list_averaged_weights(model)
                folder.read_checkpoint(kind, step, {"averages": {n: v for n, v in variables.items() if n in covered}})
        except DamagedCheckpointError as error:
            problem = error
            continue
        if bad := [name for name, variable in variables.items() if not np.isfinite(variable.numpy()).all()]:
            raise RunError(f"the weights of {run} are not finite ({bad[0]} at step {step}); name another run")
        return step
    raise problem or RunError(f"{run} holds no checkpoint yet; wait for the first one or train it on")


def list_averaged_weights(model: Any) -> set[str]:
    """Returns the names of the model's variables that a training averages: trainable weights and moving statistics."""
    return {name for name, variable in model.named_variables().items() if variable.dtype == "float32"}


def read_label_names(run: str | pathlib.Path, classes: int) -> tuple[str, ...]:
    """Returns the names of a run's labels, a tuple of length `classes`; "0", "1", ... if the run has no labels.json."""
    path = find_run_folder(run) / LABELS
    if not path.is_file():
        return tuple(map(str, range(classes)))
    try:
        names = read_json(path)
    except (OSError, ValueError) as error:
        raise RunError(f"cannot read {path}: {one_line(error)}") from error
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names) and len(names) == classes):
        raise RunError(f"{path} is damaged: it must be a list of {classes} names of labels")
    return tuple(names)


def find_changed_label(run: str | pathlib.Path, classes: int, names: Sequence[str]) -> tuple[str, str] | None:
    """Returns (name in the run, name in `names`) of the first differing label; None without any or labels.json."""
    if not (find_run_folder(run) / LABELS).is_file():
        return None
    pairs = zip(read_label_names(run, classes), names, strict=True)
    return next((pair for pair in pairs if pair[0] != pair[1]), None)


class _TestMetrics(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True, extra="allow")
    # The value is None if it was NaN or infinite, because summary.json has null for these.
    bits_per_dim: float | None
    images: int


class _Summary(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True, extra="allow")
    test: _TestMetrics | None = None
    imported_from: str | None = None
    data: str | None = None
    source: str | None = None
    rights: str | None = None
    reconstruction: str | None = None


def read_summary(run: str | pathlib.Path) -> dict[str, Any] | None:
    """Returns the content of a run's summary.json, a dict, or None without the file; raises ValueError if damaged."""
    path = find_run_folder(run) / SUMMARY
    if not path.is_file():
        return None
    summary = read_model(path, _Summary).model_dump(exclude_unset=True)
    if not summary.keys() & {"imported_from", "test", "source", "rights"}:
        raise ValueError("it has no figures of a test")
    return summary


def find_test_metrics(summary: Mapping[str, Any], step: int) -> Mapping[str, Any] | None:
    """Returns the test metrics in a run's `summary`, a dict; None if missing, not finite, or of another step."""
    test = summary.get("test") if summary.get("best_step") == step else None
    return test if test and test["bits_per_dim"] is not None else None


def describe_unknown_data(config: Config) -> str:
    """Returns the text "data unknown", followed in brackets by the config's description if there is one."""
    return f"data unknown ({config.description})" if config.description else "data unknown"


def find_training_data(config: Config, summary: Mapping[str, Any], step: int) -> DataConfig | None:
    """Returns the data options with which the weights of `step` were trained; None if their images are unknown.

    For an imported checkpoint, and for a model that `save_run` got without a config, the images are unknown: the config
    beside these weights has the default data source. `publish --data` puts another data source into the config, and
    that of the training into `summary`, the content of summary.json or {}.
    """
    if "imported_from" in summary or not (step > 0 or summary.get("data")):
        return None
    return dataclasses.replace(config.data, source=summary.get("source", config.data.source))
