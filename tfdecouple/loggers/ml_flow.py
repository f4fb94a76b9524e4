"""The logger for MLflow, which uses MLflow's own client."""

from __future__ import annotations

import importlib
import os
import pathlib
import time
from collections.abc import Sequence
from typing import Any

from tfdecouple.loggers.base import Logger, Row, flat_options, read_or_create_id, select_numbers


class MLflow(Logger):
    """A logger to `mlflow.db` and `mlartifacts/` in the run folder, or to the server of `MLFLOW_TRACKING_URI`.

    A resumed run adds to the same run of MLflow.
    """

    name = "mlflow"
    package = "mlflow"
    is_foreign = True

    def __init__(self, folder: pathlib.Path, config: Any):
        super().__init__(folder, config)
        # MLflow's module, its client and the id of its run are None until `open` sets them.
        self._mlflow: Any = None
        self._client: Any = None
        self._id: str | None = None

    def open(self, step: int, rows: Sequence[Row]) -> None:
        """Starts or resumes the run of MLflow."""
        self._mlflow = importlib.import_module("mlflow")
        server = os.environ.get("MLFLOW_TRACKING_URI")
        self._client = self._mlflow.MlflowClient(tracking_uri=server or f"sqlite:///{self.folder.resolve()}/mlflow.db")
        self._id = read_or_create_id(self.folder / "mlflow-id", lambda: self._create_run(is_local=not server))

    def _create_run(self, is_local: bool) -> str:
        """Returns the id of a new run of MLflow, whose parameters are the options of the config."""
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "tfdecouple")
        experiment = self._client.get_experiment_by_name(name)
        artifacts = (self.folder.resolve() / "mlartifacts").as_uri() if is_local else None
        number = experiment.experiment_id if experiment else self._client.create_experiment(name, artifacts)
        run = self._client.create_run(number, run_name=self.config.name)
        for option, value in flat_options(self.config).items():
            self._client.log_param(run.info.run_id, option, value)
        return run.info.run_id

    def write(self, kind: str, step: int, values: Row) -> None:
        """Adds a row of metrics to the run of MLflow."""
        now = time.time_ns() // 10**6
        entity = self._mlflow.entities.Metric
        metrics = [entity(name, float(value), now, step) for name, value in select_numbers(kind, values).items()]
        self._client.log_batch(self._id, metrics=metrics)

    def write_picture(self, name: str, step: int, path: pathlib.Path) -> None:
        """Adds a picture, a PNG file, to the artifacts of the run."""
        self._client.log_artifact(self._id, str(path), "images")

    def close(self) -> None:
        """Ends the run of MLflow."""
        if self._id is not None:
            self._client.set_terminated(self._id)
