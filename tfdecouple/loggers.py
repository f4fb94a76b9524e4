"""The log of a run: `metrics.jsonl`, and loggers, which write to TensorBoard, Weights & Biases or MLflow."""

import importlib
import json
import logging
import math
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from tfdecouple.errors import one_line
from tfdecouple.storage.files import Facts, convert_tensorflow_errors, parse_json, replace_file

# The log is read in pieces of at most this length, so a longer line counts as several damaged lines.
_MOST_LINE_BYTES = 2**16
# Name of the metric by which the best weights are chosen; every row of validation metrics has this metric.
_SELECTED_BY = "bits_per_dim"


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

    def write(self, kind: str, step: int, values: Facts) -> None:
        """Adds `values`, {name of a metric: value} of a training step; `kind` is "train", "validation" or "test"."""

    def write_picture(self, name: str, step: int, path: pathlib.Path) -> None:
        """Adds the picture in the PNG file `path`, drawn at a training step, under `name`, such as "samples"."""

    def flush(self) -> None:
        """Writes the metrics and pictures that this logger still holds in memory."""

    def close(self) -> None:
        """Closes this logger's files and connections at the end of a run."""


def select_numbers(kind: str, values: Facts) -> dict[str, float]:
    """Returns {"KIND/NAME": number}, such as "train/bits_per_dim", for the metrics in `values` that are numbers."""
    return {f"{kind}/{name}": value for name, value in values.items() if isinstance(value, int | float)}


class TensorBoard(Logger):
    """The logger that writes metrics, pictures and the config to `tensorboard/` in the run folder, for TensorBoard."""

    _writer: Any = None

    def open(self, step: int) -> None:
        """Opens a new TensorBoard event file and writes the config; TensorBoard drops old values of repeated steps."""
        import tensorflow as tf
        from tensorboard.plugins.hparams import api as hparams

        self._writer = tf.summary.create_file_writer(str(self.folder / "tensorboard"))
        with self._writer.as_default(step=step):
            options = self.config.flatten_options().items()
            hparams.hparams({name: v if isinstance(v, float | int | str) else json.dumps(v) for name, v in options})

    def write(self, kind: str, step: int, values: Facts) -> None:
        import tensorflow as tf

        with self._writer.as_default(step=step):
            for name, value in select_numbers(kind, values).items():
                tf.summary.scalar(name, value)

    def write_picture(self, name: str, step: int, path: pathlib.Path) -> None:
        import numpy as np
        import tensorflow as tf
        from PIL import Image

        with self._writer.as_default(step=step), Image.open(path) as picture:
            tf.summary.image(name, np.asarray(picture.convert("RGB"))[None])

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
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

    def write(self, kind: str, step: int, values: Facts) -> None:
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

    def write(self, kind: str, step: int, values: Facts) -> None:
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


class MetricsLog:
    """Writes metrics as rows of `metrics.jsonl`, and passes rows and pictures on to loggers such as TensorBoard.

    If a logger calls a client of another project, such as `wandb`, and the client fails, the logger is dropped with a
    message and the run continues. All methods raise OSError if the disk is full. Before `open`, nothing is written.
    """

    def __init__(self, folder: pathlib.Path, loggers: Sequence[Logger] = (), report: Callable[[str], None] = print):
        self._path = folder / "metrics.jsonl"
        self._loggers = list(loggers)
        self._report = report

    def open(self, step: int, is_last: bool = False) -> int:
        """Opens the log for new rows, and returns how many damaged lines were removed from metrics.jsonl.

        Rows of steps after `step`, at which the run resumes, are removed, because the run will write them again. If
        `step` is the run's last (`is_last`), its test metrics are removed, too. Test metrics of earlier steps stay, so
        that the log shows how often the test images were evaluated.
        """
        damaged = 0
        if self._path.exists():
            measured_again = (step, "test") if is_last else None
            with replace_file(self._path) as temporary, temporary.open("w", encoding="utf-8") as file:
                for row in _read_log_lines(self._path):
                    if row is None:
                        damaged += 1
                    elif row["step"] <= step and (row["step"], row["kind"]) != measured_again:
                        file.write(_format_log_row(row))
        self._call_loggers(lambda logger: logger.open(step))
        return damaged

    def write(self, kind: str, step: int, values: Facts, pictures: Mapping[str, pathlib.Path] = {}) -> None:
        """Adds a row: step, `kind` ("train", "validation", "test") and metrics; loggers also get `pictures`."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(_format_log_row({"step": step, "kind": kind, **values}))

        def write_row(logger: Logger) -> None:
            logger.write(kind, step, values)
            for name, path in pictures.items():
                logger.write_picture(name, step, path)

        self._call_loggers(write_row)

    def validation_bits_per_dim(self, step: int) -> float | None:
        """Returns the bits/dim of the validation images at `step`; None if the log has no row of such an evaluation."""
        rows = [row for row in read_metrics(self._path) if (row["kind"], row["step"]) == ("validation", step)]
        return float(rows[-1][_SELECTED_BY]) if rows else None

    def flush(self) -> None:
        """Makes all loggers of this log write their buffered rows and pictures to disk."""
        self._call_loggers(lambda logger: logger.flush())

    def close(self) -> None:
        """Closes all loggers of this log, such as the event file of TensorBoard."""
        self._call_loggers(lambda logger: logger.close())

    def _call_loggers(self, call: Callable[[Logger], None]) -> None:
        for logger in list(self._loggers):
            try:
                with convert_tensorflow_errors():
                    call(logger)
            # Every exception is caught, because a client of another project may raise anything.
            except Exception as error:
                if not logger.is_foreign:
                    raise
                self._loggers.remove(logger)
                name = logger.package or type(logger).__name__
                self._report(f"{name} failed and gets no more rows: {one_line(error)}")


def read_metrics(path: pathlib.Path) -> Iterator[Facts]:
    """Yields the rows of a run's metrics.jsonl (`path`) as dicts, without damaged rows; nothing without the file."""
    return filter(None, _read_log_lines(path)) if path.is_file() else iter(())


def _read_log_lines(path: pathlib.Path) -> Iterator[Facts | None]:
    with path.open("rb") as file:
        while line := file.readline(_MOST_LINE_BYTES):
            row = _parse_log_row(line)
            if row or line.endswith(b"\n") or len(line) == _MOST_LINE_BYTES:
                yield row


def _parse_log_row(line: bytes) -> Facts | None:
    try:
        row = parse_json(line)
        if row["kind"] == "validation":
            float(row[_SELECTED_BY])
        return row if type(row["step"]) is int and isinstance(row["kind"], str) else None
    except (ValueError, TypeError, KeyError):
        return None


def _format_log_row(row: Facts) -> str:
    # JSON has no NaN and no infinities, so the log has the texts "nan", "inf" and "-inf".
    safe = {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
    return json.dumps(safe) + "\n"
