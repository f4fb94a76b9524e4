"""Loggers, which write a run's metrics and pictures to TensorBoard or Weights & Biases, and their registry.

Methods import large packages, because the config imports this module for `training.loggers`, without TensorFlow.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tfdecouple.errors import one_line
from tfdecouple.runtime.requirements import require_packages


class Logger:
    """The base class of loggers, which receive the metrics and pictures of a training run; its methods do nothing.

    Args:
        folder: the run folder, in which a logger changes nothing before `open`.
        config: the `Config` of the run.

    Attributes:
        name: name of the logger in `training.loggers`.
        package: name of the package that the logger needs, which an extra of tfdecouple installs; "" for none.
        is_foreign: whether the logger calls another project's client. If that client fails, the run goes on without it.
    """

    name = ""
    package = ""
    is_foreign = False

    def __init__(self, folder: pathlib.Path, config: Any):
        self.folder = folder
        self.config = config

    def open(self, step: int) -> None:
        """Starts the log, or resumes it at `step`; the run will write the metrics of later steps again."""

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Adds the metrics {name: value} of a step; `kind` is "train", "validation" or "test"."""

    def write_picture(self, name: str, step: int, path: pathlib.Path) -> None:
        """Adds the picture of a step in the PNG file at `path`, under the name `name`."""

    def flush(self) -> None:
        """Writes all buffered metrics and pictures to disk."""

    def close(self) -> None:
        """Closes the log at the end of a run."""


def select_numbers(kind: str, values: Mapping[str, Any]) -> dict[str, float]:
    """Returns {name: number} of the metrics that are numbers, with names such as "train/bits_per_dim"."""
    return {f"{kind}/{name}": value for name, value in values.items() if isinstance(value, int | float)}


class TensorBoard(Logger):
    """A logger that writes metrics, pictures and the config to `tensorboard/` in the run folder, for TensorBoard.

    If the disk is full, methods raise OSError, which ends the run, as it does if `metrics.jsonl` cannot be written.
    """

    name = "tensorboard"

    def __init__(self, folder: pathlib.Path, config: Any):
        import tensorflow as tf

        super().__init__(folder / "tensorboard", config)
        self._writer = tf.summary.create_noop_writer()

    def open(self, step: int) -> None:
        """Opens a new event file and writes the config; TensorBoard drops older points of repeated steps."""
        import tensorflow as tf
        from tensorboard.plugins.hparams import api as hparams

        with _convert_writer_errors():
            self._writer = tf.summary.create_file_writer(str(self.folder))
            with self._writer.as_default(step=step):
                options = self.config.flatten_options().items()
                hparams.hparams({name: v if isinstance(v, float | int | str) else json.dumps(v) for name, v in options})

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Adds the metrics of a step that are numbers to the event file."""
        import tensorflow as tf

        with _convert_writer_errors(), self._writer.as_default(step=step):
            for name, value in select_numbers(kind, values).items():
                tf.summary.scalar(name, value)

    def write_picture(self, name: str, step: int, path: pathlib.Path) -> None:
        """Adds the picture of a step, in the PNG file at `path`, to the event file."""
        import numpy as np
        import tensorflow as tf
        from PIL import Image

        with _convert_writer_errors(), self._writer.as_default(step=step), Image.open(path) as picture:
            tf.summary.image(name, np.asarray(picture.convert("RGB"))[None])

    def flush(self) -> None:
        """Writes all buffered metrics and pictures to the event file."""
        with _convert_writer_errors():
            self._writer.flush()

    def close(self) -> None:
        """Closes the event file."""
        with _convert_writer_errors():
            self._writer.close()


@contextlib.contextmanager
def _convert_writer_errors() -> Iterator[None]:
    """Returns a context that converts the errors of TensorFlow's event writer to OSError."""
    import tensorflow as tf

    try:
        yield
    except tf.errors.ResourceExhaustedError as error:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
    except tf.errors.OpError as error:
        raise OSError(errno.EIO, one_line(error, first=True)) from error


class WeightsAndBiases(Logger):
    """A logger for Weights & Biases: writes to `wandb/` in the run folder, and uploads only if `WANDB_MODE` says so.

    A resumed run adds to the same run of Weights & Biases; `wandb sync` uploads a run that was logged offline.
    """

    name = "wandb"
    package = "wandb"
    is_foreign = True
    # `open` sets both: the run object of the package `wandb`, and the package's class for pictures.
    _run: Any = None
    _image: Any = None

    def open(self, step: int) -> None:
        """Starts the run of Weights & Biases, or resumes the run whose identifier is in the file `wandb/id`."""
        wandb = importlib.import_module("wandb")
        path = self.folder / "wandb" / "id"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            path.write_text(os.urandom(4).hex(), encoding="utf-8")
        self._image = wandb.Image
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "tfdecouple"),
            name=os.environ.get("WANDB_NAME", self.config.name),
            id=path.read_text(encoding="utf-8"),
            resume="allow",
            dir=str(self.folder),
            mode=os.environ.get("WANDB_MODE", "offline"),
            config=self.config.to_dict(),
        )
        # The client's counter of steps cannot go back when a run resumes, so "step" is logged as a metric instead.
        self._run.define_metric("*", step_metric="step")

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Adds the metrics of a step that are numbers to the run of Weights & Biases."""
        self._run.log({"step": step, **select_numbers(kind, values)})

    def write_picture(self, name: str, step: int, path: pathlib.Path) -> None:
        """Adds the picture of a step, in the PNG file at `path`, to the run of Weights & Biases."""
        self._run.log({"step": step, name: self._image(str(path))})

    def close(self) -> None:
        """Ends the run of Weights & Biases, if it was started."""
        if self._run is not None:
            self._run.finish()


# Classes of the loggers by name, in the order in which help texts and messages list them.
LOGGERS: dict[str, type[Logger]] = {
    logger.name: logger
    for logger in (
        TensorBoard,
        WeightsAndBiases,
    )
}


def require_loggers(names: Sequence[str]) -> None:
    """Raises MissingPackageError, which names the extra to install, if one of these loggers lacks its package."""
    for name in names:
        if LOGGERS[name].package:
            require_packages(LOGGERS[name].package, what=f"training.loggers={name}")
