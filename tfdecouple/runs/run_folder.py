"""The files of a run, in one class that finds, reads and writes them: `RunFolder`.

    config.json      the config of the run
    checkpoints/     best-NNNNNNNNN.safetensors, the best weights, and step-..., the whole state of the training
    metrics.jsonl    the log: one row of metrics in each line
    summary.json     the test metrics of a finished training, or the origin of imported weights
    images/          pictures of each evaluation in training, step-NNNNNNNNN-NAME.png
    labels.json      names of the labels of a model with labels, in their order
    directions.json  directions in z, if they were computed
    pictures/        pictures of commands, each with a JSON file of facts
    evaluation/      results of the command `evaluate`
    .lock            locked by the program that trains

Loggers add files, such as tensorboard/. A folder of published weights is a run folder, too (see `pretrained`). No file
but those of the client of Weights & Biases may be a link that leads out of the folder.
"""

import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pydantic
from PIL import Image

from tfdecouple.config import Config, DataConfig, preset_names
from tfdecouple.errors import RunError, UntrustedError, nearest, one_line
from tfdecouple.loggers import read_metrics
from tfdecouple.runs.pretrained import BUNDLED, HUB, download_weights, list_pretrained
from tfdecouple.storage.checkpoints import CheckpointFolder, DamagedCheckpointError
from tfdecouple.storage.files import Facts, read_json, read_model, write_json, write_text

if TYPE_CHECKING:
    from tfdecouple.model import DecoupledModel

CONFIG = "config.json"
CHECKPOINTS = "checkpoints"
SUMMARY = "summary.json"
LABELS = "labels.json"
# File name of the log, and the largest size in bytes that is plotted and published.
METRICS, METRICS_BYTES = "metrics.jsonl", 2**27
IMAGES, PICTURES, EVALUATION = "images", "pictures", "evaluation"
LOCK = ".lock"


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


class RunFolder:
    """The files of a run, which may be untrusted; a program that trains or saves a model also writes them.

    `run` is a folder; the name of bundled weights, such as "photographs", unless a run folder in the working directory
    has the same name; or an address `hf://OWNER/NAME[@REVISION]` on the Hub. The attribute `is_folder` says whether it
    is read as a path, as it always is if the run `is_written`. `keep` checkpoints of the training state are kept.
    """

    def __init__(self, run: str | pathlib.Path, *, is_written: bool = False, keep: int = 3):
        self.run, self._keep = str(run), keep
        is_bundled = self.run in list_pretrained() and not (pathlib.Path(run) / CONFIG).is_file()
        self.is_folder = is_written or not (self.run.startswith(HUB) or is_bundled)

    @functools.cached_property
    def path(self) -> pathlib.Path:
        """The folder with the files; UserError if weights from the Hub are needed and cannot be downloaded."""
        if self.is_folder:
            return pathlib.Path(self.run)
        return download_weights(self.run) if self.run.startswith(HUB) else BUNDLED / self.run

    @property
    def name(self) -> str:
        """The name of the run: the last part of its path, or the name of its repository on the Hub.

        >>> [RunFolder(run).name for run in ("runs/faces/", "hf://ada/faces@v1", "hf://ada/faces@refs/pr/1")]
        ['faces', 'faces', 'faces']
        """
        if not self.run.startswith(HUB):
            return pathlib.Path(self.run).resolve().name
        return self.run.partition("@")[0].rpartition("/")[2]

    @property
    def checkpoints(self) -> CheckpointFolder:
        """The `CheckpointFolder` of the run."""
        return CheckpointFolder(self.path / CHECKPOINTS, self._keep)

    def read_config(self) -> Config:
        """Returns the config of the run; ConfigError if it is invalid, RunError if there is no run folder.

        UntrustedError is raised if the folder holds links that lead out of it, or anything but files and folders.
        """
        if not self.path.is_dir():
            bundled = list_pretrained()
            if self.run in preset_names():
                raise RunError(f"the preset {self.run} has no weights; python train.py --preset {self.run} trains them")
            raise RunError(
                f"there is no run folder {self.run}{nearest(self.run, bundled)}; python train.py makes one, and "
                f"{', '.join(bundled)} comes with the installation"
            )
        if not (self.path / CONFIG).is_file():
            raise RunError(f"{self.run} is no run folder: it has no {CONFIG}")
        if self.is_folder:
            # Weights from the Hub are not checked for links, because the cache of the Hub's client consists of links.
            self.require_own_files()
        return Config.from_json(self.path / CONFIG)

    def require_own_files(self) -> None:
        """Raises UntrustedError if the folder holds anything but files, folders and links to files inside of it."""
        root = os.path.realpath(self.path)
        for where, folders, files in os.walk(self.path):
            for path in (os.path.join(where, name) for name in (*folders, *files)):
                target = os.path.realpath(path)
                if os.path.islink(path) and os.path.commonpath([root, target]) != root:
                    raise UntrustedError(f"{path} is a link to {target}, out of the folder; replace it by a copy")
                # A path may be missing by now, because a training that is still running removes old files.
                if os.path.lexists(path) and not os.path.isfile(path) and not os.path.isdir(path):
                    raise UntrustedError(f"{path} is neither a file nor a folder; remove it")
            if where == os.path.join(self.path, "wandb"):
                # The client of Weights & Biases puts links to its cache into these folders, so they are not checked.
                folders[:] = [name for name in folders if not name.startswith(("run-", "offline-run-"))]

    def _list_checkpoints(self) -> Iterator[tuple[str, int]]:
        """Yields (kind, step) of each checkpoint of the run: the kind "best", then "step", each the newest first."""
        for kind in ("best", "step"):
            yield from ((kind, step) for step in self.checkpoints.list_checkpoint_steps(kind))

    def require_fitting_weights(self, planned: Mapping[str, tuple[int, ...]]) -> None:
        """Raises RunError unless the best readable checkpoint has weights with the names and shapes in `planned`."""
        for kind, step in self._list_checkpoints():
            try:
                stored = self.checkpoints.read_weight_shapes(kind, step)
            except DamagedCheckpointError:
                continue
            for name in {**planned, **stored}:
                shapes = planned.get(name), stored.get(name)
                if shapes[0] != shapes[1]:
                    expected, held = ("missing" if shape is None else f"of shape {shape}" for shape in shapes)
                    raise RunError(
                        f"the checkpoint {self.checkpoints.checkpoint_path(kind, step)} does not fit the config beside "
                        f"it: the weight {name} is {expected} by the config, and {held} in the checkpoint"
                    )
            return

    def load_weights(self, model: "DecoupledModel", averaged: bool, names: Collection[str] | None = None) -> int:
        """Loads the best weights into a model of the run's config, and returns the step of these weights.

        If the best weights are damaged, weights in the newest readable checkpoint of the training state are loaded
        instead: the averaged ones if `averaged` is true, else the current ones. With `names` only the weights with
        these names are loaded. RunError is raised if no checkpoint can be read, or if weights are not finite.
        """
        variables = {n: variable for n, variable in model.named_variables().items() if names is None or n in names}
        problem = None
        for kind, step in self._list_checkpoints():
            try:
                self.checkpoints.read_checkpoint(kind, step, {"model": variables})
                if kind == "step" and averaged:
                    covered = list_averaged_weights(model)
                    group = {n: v for n, v in variables.items() if n in covered}
                    self.checkpoints.read_checkpoint(kind, step, {"averages": group})
            except DamagedCheckpointError as error:
                problem = error
                continue
            if bad := [name for name, variable in variables.items() if not np.isfinite(variable.numpy()).all()]:
                raise RunError(f"the weights of {self.run} are not finite ({bad[0]} at step {step}); name another run")
            return step
        raise problem or RunError(f"{self.run} has no checkpoint yet; wait for the first one or continue the training")

    def read_label_names(self, classes: int) -> tuple[str, ...]:
        """Returns the names of the run's labels, a tuple of length `classes`; "0", "1", ... without labels.json."""
        path = self.path / LABELS
        if not path.is_file():
            return tuple(map(str, range(classes)))
        try:
            names = read_json(path)
        except (OSError, ValueError) as error:
            raise RunError(f"cannot read {path}: {one_line(error)}") from error
        if not (isinstance(names, list) and all(isinstance(name, str) for name in names) and len(names) == classes):
            raise RunError(f"{path} is damaged: it must be a list of {classes} names of labels")
        return tuple(names)

    def find_changed_label(self, classes: int, names: Sequence[str]) -> tuple[str, str] | None:
        """Returns (name in the run, name in `names`) of the first label that differs, or None."""
        if not (self.path / LABELS).is_file():
            return None
        pairs = zip(self.read_label_names(classes), names, strict=True)
        return next((pair for pair in pairs if pair[0] != pair[1]), None)

    def read_summary(self) -> Facts | None:
        """Returns the content of summary.json, a dict, or None without the file; raises ValueError if damaged."""
        if not (self.path / SUMMARY).is_file():
            return None
        summary = read_model(self.path / SUMMARY, _Summary).model_dump(exclude_unset=True)
        if not summary.keys() & {"imported_from", "test", "source", "rights"}:
            raise ValueError("it has no test results")
        return summary

    def read_curves(self) -> dict[str, dict[str, tuple[list[float], list[float]]]]:
        """Returns the finite values in the log, {kind: {metric: (steps, values)}}, of kinds "train" and "validation".

        KL and log q(u|x) are left out for a model without them. RunError is raised if the log is too large, or has no
        bits/dim.
        """
        path, model = self.path / METRICS, self.read_config().model
        if path.is_file() and path.stat().st_size > METRICS_BYTES:
            raise RunError(f"{path} has {path.stat().st_size:,} bytes, and at most {METRICS_BYTES:,} are read")
        absent = {"step": True, "kl": not model.has_encoder, "dequantization": not model.has_dequantizer}
        curves: dict[str, dict[str, tuple[list[float], list[float]]]] = {"train": {}, "validation": {}}
        for row in read_metrics(path):
            for metric, value in row.items() if row["kind"] in curves else ():
                # The log has NaN and infinity as text. Sums of larger numbers than 1e100 would be infinite in a plot.
                if isinstance(value, int | float) and abs(value) < 1e100 and not absent.get(metric):
                    steps, values = curves[row["kind"]].setdefault(metric, ([], []))
                    steps.append(row["step"])
                    values.append(value)
        if not any("bits_per_dim" in metrics for metrics in curves.values()):
            raise RunError(f"{self.run} has no metrics: its metrics.jsonl is missing or has no rows yet")
        return curves

    def find_results_folder(self, name: str, out: pathlib.Path | None) -> pathlib.Path:
        """Returns the folder for results: `out` unless None, else RUN/`name`, or ./`name` if the run is no folder."""
        return out or (pathlib.Path(self.run) if self.is_folder else pathlib.Path()) / name

    def count_test_evaluation(self, images: str, out: pathlib.Path) -> int:
        """Logs an evaluation of the test images that the text `images` names; returns how many of these are logged.

        Users see the count, because metrics on test images that guided the choice of a model say less about new images.
        The log is RUN/evaluation/test_evaluations.log, or in `out` if RUN is not a run folder or is not writable.
        """
        inside = pathlib.Path(self.run) / EVALUATION
        is_writable = self.is_folder and os.access(inside if inside.exists() else inside.parent, os.W_OK)
        folder, line = inside if is_writable else out, json.dumps(images) + "\n"
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "test_evaluations.log").open("a+", encoding="utf-8") as file:
            file.write(line)
            file.seek(0)
            return sum(logged == line for logged in file)

    def write_pictures(self, step: int, pictures: Mapping[str, Image.Image]) -> dict[str, pathlib.Path]:
        """Writes pictures of an evaluation after `step` training steps, {name: picture}; returns {name: path}."""
        (self.path / IMAGES).mkdir(parents=True, exist_ok=True)
        paths = {name: self.path / IMAGES / f"step-{step:09d}-{name}.png" for name in pictures}
        for name, path in paths.items():
            pictures[name].save(path)
        return paths

    def write_config(self, config: Config, label_names: Sequence[str] = ()) -> None:
        """Writes config.json and, for a model with labels, labels.json; makes the folder if it is missing."""
        write_text(self.path / CONFIG, config.to_json())
        if config.model.has_labels and label_names:
            write_json(self.path / LABELS, label_names)

    def write_summary(self, summary: Facts) -> None:
        """Writes summary.json."""
        write_json(self.path / SUMMARY, summary)


def list_averaged_weights(model: "DecoupledModel") -> set[str]:
    """Returns the names of the model's variables that a training averages: trainable weights and moving statistics."""
    return {name for name, variable in model.named_variables().items() if variable.dtype == "float32"}


def find_test_metrics(summary: Facts, step: int) -> Facts | None:
    """Returns the test metrics in a run's `summary`, a dict; None if missing, not finite, or of another step."""
    test = summary.get("test") if summary.get("best_step") == step else None
    return test if test and test["bits_per_dim"] is not None else None


def find_training_data(config: Config, summary: Facts, step: int) -> DataConfig | None:
    """Returns the data options with which the weights of `step` were trained; None if their images are unknown.

    For an imported checkpoint, and for a model that `save_run` got without a config, the images are unknown: the config
    beside these weights has the default data source. `publish --data` puts another data source into the config, and
    the training's data source into `summary`, the content of summary.json or {}.
    """
    if "imported_from" in summary or not (step > 0 or summary.get("data")):
        return None
    return dataclasses.replace(config.data, source=summary.get("source", config.data.source))
