"""Loggers, which write metrics and pictures of a training run to TensorBoard, Weights & Biases or MLflow, by name."""

import importlib
import json
import logging
import os
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

from tfdecouple.registry import LOGGERS
from tfdecouple.storage.files import convert_tensorflow_errors
from tfdecouple.system.requirements import require_packages


class Logger:
    """The base class of loggers, which write the metrics and pictures of a training run; its methods do nothing.

    `folder` is the run folder, into which a logger writes nothing before `open`. `config` is the `Config` of the run.
    `package` is the Python package that the logger needs, "" for none. If `is_foreign`, the logger calls another
    project's client; if that fails, the run continues without it.
    """

    package = ""
    is_foreign = False

    def __init__(self, folder: pathlib.Path, config: Any):
        self.folder = folder
        self.config = config

    def open(self, step: int) -> None:
        """Starts the log of a run, or resumes it at `step`; a resumed run logs the steps after `step` once more."""

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Adds `values`, {name of a metric: value} of a training step; `kind` is "train", "validation" or "test"."""

    def write_picture(self, name: str, step: int, path: pathlib.Path) -> None:
        """Adds the picture in the PNG file `path`, drawn at a training step, under `name`, such as "samples"."""

    def flush(self) -> None:
        """Writes the metrics and pictures that this logger still holds in memory."""

    def close(self) -> None:
        """Closes this logger's files and connections at the end of a run."""


def select_numbers(kind: str, values: Mapping[str, Any]) -> dict[str, float]:
    """Returns {"KIND/NAME": number}, such as "train/bits_per_dim", for the metrics in `values` that are numbers."""
    return {f"{kind}/{name}": value for name, value in values.items() if isinstance(value, int | float)}


class TensorBoard(Logger):
    """The logger that writes metrics, pictures and the config to `tensorboard/` in the run folder, for TensorBoard.

    If the disk is full, methods raise OSError, which ends the run.
    """

    _writer: Any = None

    def open(self, step: int) -> None:
        """Opens a new TensorBoard event file and writes the config; TensorBoard drops old values of repeated steps."""
        import tensorflow as tf
        from tensorboard.plugins.hparams import api as hparams

        with convert_tensorflow_errors():
            self._writer = tf.summary.create_file_writer(str(self.folder / "tensorboard"))
            with self._writer.as_default(step=step):
                options = self.config.flatten_options().items()
                hparams.hparams({name: v if isinstance(v, float | int | str) else json.dumps(v) for name, v in options})

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        import tensorflow as tf

        with convert_tensorflow_errors(), self._writer.as_default(step=step):
            for name, value in select_numbers(kind, values).items():
                tf.summary.scalar(name, value)

    def write_picture(self, name: str, step: int, path: pathlib.Path) -> None:
        import numpy as np
        import tensorflow as tf
        from PIL import Image

        with convert_tensorflow_errors(), self._writer.as_default(step=step), Image.open(path) as picture:
            tf.summary.image(name, np.asarray(picture.convert("RGB"))[None])

    def flush(self) -> None:
        with convert_tensorflow_errors():
            self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            with convert_tensorflow_errors():
                self._writer.close()


class WeightsAndBiases(Logger):
    """The logger for Weights & Biases: writes to `wandb/` in the run folder; uploads only if `WANDB_MODE` is "online".

    A resumed run adds to the same run of Weights & Biases. `wandb sync` uploads a run that was logged offline.
    """

    package = "wandb"
    is_foreign = True
    _run: Any = None

    def open(self, step: int) -> None:
        """Starts a run of Weights & Biases, or resumes the one whose identifier is in the run folder's `wandb/id`."""
        wandb = importlib.import_module("wandb")
        path = self.folder / "wandb" / "id"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            path.write_text(os.urandom(4).hex(), encoding="utf-8")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "tfdecouple"),
            name=os.environ.get("WANDB_NAME", self.config.name),
            id=path.read_text(encoding="utf-8"),
            resume="allow",
            dir=str(self.folder),
            mode=os.environ.get("WANDB_MODE", "offline"),
            config=self.config.to_dict(),
        )
        # A resumed run repeats steps, but the client's step counter cannot go back, so "step" is logged as a metric.
        self._run.define_metric("*", step_metric="step")

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        self._run.log({"step": step, **select_numbers(kind, values)})

    def write_picture(self, name: str, step: int, path: pathlib.Path) -> None:
        self._run.log({"step": step, name: importlib.import_module("wandb").Image(str(path))})

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()


class MLflow(Logger):
    """The logger for MLflow: writes to `mlflow/` in the run folder, or to the server in `MLFLOW_TRACKING_URI`.

    A resumed run adds to the same run of MLflow, whose identifier is in the run folder's `mlflow/id`.
    """

    package = "mlflow"
    is_foreign = True
    _client: Any = None

    def open(self, step: int) -> None:
        """Starts a run of MLflow, in the experiment `MLFLOW_EXPERIMENT_NAME` (default tfdecouple), or resumes it."""
        from mlflow import MlflowClient
        from mlflow.entities import Param

        # MLflow logs each table that it makes in the run folder's database.
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        folder, server = (self.folder / "mlflow").resolve(), os.environ.get("MLFLOW_TRACKING_URI")
        folder.mkdir(exist_ok=True)
        self._client = MlflowClient(server or f"sqlite:///{folder}/mlflow.db")
        if not (folder / "id").exists():
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "tfdecouple")
            found = self._client.get_experiment_by_name(name)
            artifacts = None if server else (folder / "artifacts").as_uri()
            experiment = found.experiment_id if found else self._client.create_experiment(name, artifacts)
            run = self._client.create_run(experiment, run_name=self.config.name).info.run_id
            options = [Param(name, json.dumps(value)) for name, value in self.config.flatten_options().items()]
            self._client.log_batch(run, params=options)
            (folder / "id").write_text(run, encoding="utf-8")
        self._run = (folder / "id").read_text(encoding="utf-8")
        self._client.update_run(self._run, status="RUNNING")

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [Metric(name, value, now, step) for name, value in select_numbers(kind, values).items()]
        self._client.log_batch(self._run, metrics=metrics)

    def write_picture(self, name: str, step: int, path: pathlib.Path) -> None:
        from PIL import Image

        with Image.open(path) as picture:
            self._client.log_image(self._run, picture, key=name, step=step)

    def close(self) -> None:
        if self._client is not None:
            self._client.set_terminated(self._run)


def require_loggers(names: Sequence[str]) -> None:
    """Raises MissingPackageError, with the extra to install, if a package that one of the loggers needs is missing."""
    for name in names:
        if LOGGERS[name].package:
            require_packages(LOGGERS[name].package, what=f"training.loggers={name}")
